"""Four real domains of text for the continual-learning measurements of language models: code, prose, manuals, German.

code     the Python standard library
prose    the Debian Administrator's Handbook, a book in English
manuals  git's manual pages
german   the same book in German

The books and manuals are the documentation packages that configs/data/small.toml names, unpacked under ~/.autonomous/corpus.
"""

import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.continual.domain import Domain, build_domain
from train.data.html import HtmlExtractor

CORPUS = Path("~/.autonomous/corpus/usr/share/doc")
MIN_CHARACTERS = 1000
"""Of a text that is taken."""


def load_domains(
    tokenizer: Any, *, sequence_length: int, num_train: int, num_held_out: int, seed: int = 0
) -> list[Domain]:
    """Domains with so many sequences each. Raises FileNotFoundError if the packages are not there."""
    found = []
    for index, (name, read) in enumerate(DOMAINS.items()):
        texts = [text for text in read() if len(text) >= MIN_CHARACTERS]
        found.append(
            build_domain(
                name, texts, tokenizer=tokenizer, sequence_length=sequence_length, num_train=num_train,
                num_held_out=num_held_out, first_id=index * 1_000_000, seed=seed,
            )
        )  # fmt: skip
    return found


def _code() -> list[str]:
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for path in stdlib.rglob("*.py") if not {"site-packages", "test"} & set(path.parts))
    return [path.read_text("utf-8", "replace") for path in paths]


def _pages(folder: str) -> list[str]:
    path = CORPUS.expanduser() / folder
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} is not there: fetch and unpack the documentation packages as configs/data/small.toml says at its top"
        )
    extractor = HtmlExtractor("blocks")
    return [extractor.extract(page.read_text("utf-8", "replace"))[0] for page in sorted(path.rglob("*.html"))]


DOMAINS: dict[str, Callable[[], list[str]]] = {
    "code": _code,
    "prose": lambda: _pages("debian-handbook/html/en-US"),
    "manuals": lambda: _pages("git-doc"),
    "german": lambda: _pages("debian-handbook/html/de-DE"),
}
