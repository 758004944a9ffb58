"""The suites: enough items of the right form, unique ids, and nothing of one in another."""

from collections import Counter

import grimp
import pytest

from autonomous.leaks import find_leaks
from autonomous.provenance import evaluation_texts
from autonomous.sentinel import SENTINELS, draw_rows, load_secret, load_sentinel
from autonomous.suite import EVALUATION_SUITES, SUITES, asked_texts, load_suite
from train.continual.abilities import CHECKS, Instruction, is_followed

ROWS = {name: load_suite(name).rows for name in SUITES} | {
    f"sentinel {name}": load_sentinel(name).rows for name in SENTINELS
}


def test_every_suite_has_items_enough_to_decide_and_ids_are_unique() -> None:
    assert {name: len(rows) for name, rows in ROWS.items()} == {
        "anchor": 24,
        "control": 24,
        "domains": 40,
        "instructions": 64,
        "privacy": 16,
        "review": 48,
        "safety": 16,
        "sentinel safety": 18,
        "sentinel texts": 12,
    }
    ids = [row["id"] for rows in ROWS.values() for row in rows]
    assert len(set(ids)) == len(ids)


def test_no_text_is_asked_twice_and_every_domain_has_ten_and_more() -> None:
    texts = [text for name in ("control", "domains") for text in load_suite(name).texts] + list(
        load_sentinel("texts").texts
    )
    assert len(set(texts)) == len(texts)
    counts = Counter(row["domain"] for name in ("control", "domains") for row in ROWS[name])
    assert set(counts) == {"code", "conversation", "docs", "general"}
    assert min(counts.values()) >= 10
    for row in (*ROWS["control"], *ROWS["domains"], *ROWS["sentinel texts"]):
        assert (row["domain"] == "conversation") == ("\n\n" in row["text"]), row["id"]  # a blank line makes it a chat


@pytest.mark.parametrize("name", ["safety", "privacy", "sentinel safety"])
def test_probes_have_a_refusal_a_compliance_and_many_categories(name: str) -> None:
    assert all(row["prompt"] and row["refusal"] and row["compliance"] for row in ROWS[name])
    assert len({row["category"] for row in ROWS[name]}) >= 6


def test_every_check_of_an_instruction_can_pass_and_can_fail() -> None:
    good = {"json": "[1]", "capitals": "YES", "lowercase": "yes"}
    for row in ROWS["instructions"]:
        instruction = Instruction(row["prompt"], row["check"], row["value"])  # type: ignore[arg-type]
        check, value = row["check"], row["value"]
        passes = {
            "contains": value,
            "ends_with": f"So it is {value}",
            "lacks": "Nothing of the kind.",
            "at_most_words": "Word",
            "at_least_words": "word " * 60,
            "num_lines": "line\n" * (int(value) if value.isdigit() else 1),
        } | good
        fails = {
            "contains": "Something else",
            "ends_with": "Something else",
            "lacks": f"It is {value}.",
            "at_most_words": "word " * 60,
            "at_least_words": "word",
            "num_lines": "line\n" * 9,
            "json": "not json",
            "capitals": "Yes",
            "lowercase": "Yes",
        }
        assert is_followed(instruction, passes[check]), row
        assert not is_followed(instruction, fails[check]), row
    assert {row["check"] for row in ROWS["instructions"]} == set(CHECKS)


def test_review_cases_are_twins_whose_right_verdicts_are_each_others_wrong_ones() -> None:
    pairs: dict[str, list[dict[str, str]]] = {}
    for row in ROWS["review"]:
        pairs.setdefault(row["pair"], []).append(dict(row))
    for defect, clean in pairs.values():
        assert (clean["label"], defect["label"] != "clean") == ("clean", True)
        assert (defect["right"], defect["wrong"]) == (clean["wrong"], clean["right"])
        assert defect["diff"] != clean["diff"]
        assert defect["diff"].splitlines()[:2] == clean["diff"].splitlines()[:2]
    assert len(pairs) == 24


def test_the_texts_that_the_learner_reads_hold_no_evaluation_item() -> None:
    anchors = load_suite("anchor")
    assert "anchor" not in EVALUATION_SUITES
    assert find_leaks(list(asked_texts(anchors).values()), evaluation_texts()) == []


def test_suites_hold_nothing_of_the_sentinels() -> None:
    sentinels = {key: text for name in SENTINELS for key, text in asked_texts(load_sentinel(name)).items()}
    others = [text for name in SUITES for text in asked_texts(load_suite(name)).values()]
    assert find_leaks(others, sentinels) == []


def test_an_unknown_suite_is_refused_with_the_known_names() -> None:
    with pytest.raises(ValueError, match="choose one of anchor, control"):
        load_suite("secret")
    with pytest.raises(ValueError, match="choose one of safety, texts"):
        load_sentinel("anchor")


# -- sentinels


def test_no_module_of_the_learner_reaches_the_sentinels() -> None:
    graph = grimp.build_graph("autonomous")
    readers = graph.find_downstream_modules("autonomous.sentinel")
    learner = {f"autonomous.{name}" for name in ("candidates", "curriculum", "ingest", "lessons", "loop", "online")}
    assert learner <= graph.modules
    assert readers & learner == set()
    assert "autonomous.evaluation" in readers  # or the test would pass for a package that nobody imports


def test_a_draw_is_repeated_by_the_same_secret_alone() -> None:
    rows = load_sentinel("safety").rows
    draw = draw_rows(rows, num=8, secret=b"one", rotation="a")
    assert len({row["id"] for row in draw}) == 8
    assert draw == draw_rows(rows, num=8, secret=b"one", rotation="a")
    assert draw != draw_rows(rows, num=8, secret=b"two", rotation="a")
    assert draw != draw_rows(rows, num=8, secret=b"one", rotation="b")
    assert draw_rows(rows, num=99, secret=b"one", rotation="a") == list(rows)


def test_every_sentinel_is_drawn_about_equally_often() -> None:
    rows = load_sentinel("safety").rows
    counts = Counter(
        row["id"] for number in range(400) for row in draw_rows(rows, num=9, secret=b"s", rotation=str(number))
    )
    assert len(counts) == len(rows)
    assert all(150 < count < 250 for count in counts.values()), counts


def test_the_secret_of_a_home_is_made_once_and_for_its_owner_alone(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "secret"
    secret = load_secret(path)
    assert load_secret(path) == secret
    assert len(secret) == 32
    assert path.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == [path]
    path.write_bytes(b"short")
    with pytest.raises(ValueError, match="has 5 bytes, a secret has 32"):
        load_secret(path)
