"""Ingest of what a careless or hostile sender posts, and titles of files."""

from autonomous.ingest import IngestConfig, Prepared, prepare_document
from autonomous.safety.screen import SafetyScreen
from train.data.clean import CleanConfig, DataCleaner
from train.data.document import RawDocument

TOKEN = "ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2


def _prepare(content: str, *, level: str = "high", title: str = "", path: str = "") -> Prepared:
    metadata = {"path": path} if path else {}
    raw = RawDocument("", "api", title, content, None, 7.0, metadata)
    screen = SafetyScreen(level)  # type: ignore[arg-type]
    return prepare_document(raw, cleaner=DataCleaner(CleanConfig()), screen=screen, config=IngestConfig())


def test_a_lone_surrogate_from_json_is_repaired_and_stored() -> None:
    assert _prepare("hello \ud800 world").episodes[0].text == "hello \ufffd world"


def test_a_secret_is_not_kept_in_clear_even_where_it_is_only_noted() -> None:
    for level in ("high", "low"):
        prepared = _prepare(f"deploy with {TOKEN}", level=level)
        assert prepared.reason
        assert [episode.text for episode in prepared.episodes] == ["deploy with <TOKEN>"]


def test_the_title_of_a_file_is_its_first_heading_else_its_path() -> None:
    assert _prepare("# Heading\n\nx", title="b/two.md", path="b/two.md").episodes[0].title == "Heading"
    assert _prepare("no heading", title="b/two.md", path="b/two.md").episodes[0].title == "b/two.md"
