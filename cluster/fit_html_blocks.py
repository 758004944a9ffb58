"""Fits the two models of train/data/html_blocks.py and prints their weights, as train/data/html_weights.py holds them.

    AUTONOMOUS_HTML_PAGES=FOLDER AUTONOMOUS_BENCH_CORPUS=FOLDER python -m cluster.fit_html_blocks

In: the development half of the labelled pages (see bench_html_pages), where a block is content as far as the expected text has
its 4-grams; and manuals, because nearly all labelled pages are articles. Manuals have no labels: what resiliparse or
trafilatura keeps counts as content, and a manual weighs MANUAL_WEIGHT of a page. The test half is not read.
Out: weights, and the F1 that models fitted without a page's site reach on the development half.
"""

import os
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from cluster.bench_corpus import VARIABLE as CORPUS_VARIABLE
from cluster.bench_html_pages import FOLDER_VARIABLE, LabelledPage, load_pages, score_texts, words_of
from train.data.clean import decode
from train.data.html import HtmlExtractor
from train.data.html_blocks import FINAL, describe_finally, describe_locally, select_blocks
from train.data.html_features import LOCAL, Rows
from train.data.html_scan import Page, scan_page
from train.data.html_tree import B_START, B_STOP

MANUALS_PER_FOLDER, MANUAL_WEIGHT = 24, 0.05
MIN_MANUAL_BYTES, MAX_MANUAL_BYTES = 1_500, 150_000
NUM_FOLDS = 10
PENALTY = 0.01
"""Of the squared weights of standardised numbers, per page."""
MAX_BLOCK_WORDS = 60
"""Up to which a block weighs its words."""
NOT_IN_PAGE = 0.1
"""Pages with a smaller part of their expected text in blocks teach nothing: scripts write it."""


@dataclass(frozen=True)
class Example:
    """A page to learn from: texts of its blocks, how far each is content, its weight."""

    group: str
    page: Page
    texts: list[str]
    labels: Rows
    weights: Rows
    expected: str


def build_example(group: str, html: str, expected: Sequence[str], *, weight: float) -> Example:
    """An example of a page whose content is what any of the expected texts has."""
    page = scan_page(html)
    texts = [bytes(page.buffer[block[B_START] : block[B_STOP]]).decode() for block in page.blocks]
    known = [_grams_of_all_sizes(words_of(text)) for text in expected]
    labels, weights = np.zeros(len(texts)), np.zeros(len(texts))
    for index, text in enumerate(texts):
        words = words_of(text)
        if words:
            grams = _grams(words, min(4, len(words)))
            labels[index] = max(sum(gram in one for gram in grams) for one in known) / len(grams)
            weights[index] = min(len(words), MAX_BLOCK_WORDS) + 0.5
    if (labels * weights).sum() < NOT_IN_PAGE * min(weights.sum(), len(words_of(expected[0]))):
        weight = 0.0
    return Example(group, page, texts, labels, weight * weights / max(weights.sum(), 1.0), expected[0])


def _grams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]


def _grams_of_all_sizes(words: Sequence[str]) -> set[tuple[str, ...]]:
    return {gram for size in (1, 2, 3, 4) for gram in _grams(words, size)}


def load_examples(pages: Sequence[LabelledPage]) -> list[Example]:
    """The labelled pages; a site is a group."""
    found = []
    for page in pages:
        name = page.name.removeprefix("tests/")
        group = page.package + (name.split("/")[0] if "/" in name else re.split(r"[_.\d]|-\d", name)[0])
        found.append(build_example(group, decode(page.content, is_html=True, counts={}), [page.text], weight=1.0))
    return found


def load_manuals(folder: Path) -> list[Example]:
    """Manuals; a folder of them is a group."""
    extractors = HtmlExtractor("resiliparse"), HtmlExtractor("trafilatura")
    found = []
    for group in sorted(path for path in folder.iterdir() if path.is_dir()):
        paths = [path for path in sorted(group.rglob("*.html")) if path.is_file()]
        paths = [path for path in paths if MIN_MANUAL_BYTES < path.stat().st_size < MAX_MANUAL_BYTES]
        for path in random.Random(5).sample(paths, min(MANUALS_PER_FOLDER, len(paths))):
            html = decode(path.read_bytes(), is_html=True, counts={})
            texts = [extractor.extract(html)[0] for extractor in extractors]
            found.append(build_example(group.name, html, texts, weight=MANUAL_WEIGHT))
    return found


def fit(rows: Sequence[Rows], examples: Sequence[Example]) -> npt.NDArray[np.float64]:
    """Weights of a logistic model of the blocks, of numbers as they are; the first number is 1 and not penalised."""
    x, labels = np.vstack(rows), np.concatenate([one.labels for one in examples])
    weights = np.concatenate([one.weights for one in examples]) / len(examples)
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-9
    mean[0], scale[0] = 0.0, 1.0
    z = (x - mean) / scale

    def loss(guess: Rows) -> tuple[float, Rows]:
        rating = z @ guess
        error = weights * (1 / (1 + np.exp(-rating)) - labels)
        penalised = np.concatenate([[0.0], guess[1:]])
        value = (weights * (np.logaddexp(0, rating) - labels * rating)).sum() + PENALTY * (penalised**2).sum()
        return float(value), z.T @ error + 2 * PENALTY * penalised

    found = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x / scale
    found[0] -= (found[1:] * mean[1:]).sum()
    return np.asarray(found)


def fit_both(examples: Sequence[Example]) -> tuple[Rows, Rows]:
    """Weights of the first and of the second model."""
    rows = [describe_locally(one.page) for one in examples]
    local = fit(rows, examples)
    again = [describe_finally(one.page, row @ local) for one, row in zip(examples, rows, strict=True)]
    return local, fit(again, examples)


def select(example: Example, local: Rows, final: Rows) -> str:
    """The main text that models find."""
    is_main = select_blocks(example.page, local=local, final=final)
    return "\n".join(text for text, is_kept in zip(example.texts, is_main, strict=True) if is_kept)


def main() -> None:
    """Fit and print."""
    examples = load_examples(load_pages(Path(os.environ[FOLDER_VARIABLE]), half="development"))
    manuals = load_manuals(Path(os.environ[CORPUS_VARIABLE]))
    groups = sorted({one.group for one in examples})
    random.Random(0).shuffle(groups)
    pairs = []
    for fold in range(NUM_FOLDS):
        held = set(groups[fold::NUM_FOLDS])
        models = fit_both([one for one in examples if one.group not in held] + manuals)
        pairs += [(select(one, *models), one.expected) for one in examples if one.group in held]
    lines = [f'"""Cross-validated by site on {len(pairs)} pages, {len(manuals)} manuals: {score_texts(pairs)}"""']
    for title, names, weights in zip(("LOCAL", "FINAL"), (LOCAL, FINAL), fit_both(examples + manuals), strict=True):
        numbers = [f'    "{name}": {weight:.3f},' for name, weight in zip(names, weights, strict=True)]
        lines += [f"{title}_WEIGHTS = {{", *numbers, "}"]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
