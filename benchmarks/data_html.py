"""HTML to text: speed and F1 of the default tier, beside trafilatura and resiliparse.

Run as a script it measures one extractor in a process of its own, in process CPU seconds. The pages are real ones with known
text, of the folder that AUTONOMOUS_HTML_PAGES names (see cluster/bench_html_pages.py); F1 is reported for both halves of the
sites, and judged on the test half: the default tier's weights were fitted on the other. The speed is also measured on pydoc's
pages of the standard library, which are dense with markup; without the folder on those only.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cluster.bench import BenchContext, Claim
from cluster.bench_html_pages import FOLDER_VARIABLE, HALVES, PYDOC_NAME, load_pages, pydoc_pages, score_texts
from cluster.bench_variants import VariantResult, child_main, run_variants, speed_up

LEAST_F1, STRETCH_F1 = 0.93, 0.955
LEAST_SPEED, STRETCH_SPEED, LEAST_OF_RESILIPARSE = 6.0, 4.0, 0.9
NUM_PYDOC_PAGES = 40
SHOWN = ("ours", "resiliparse", "trafilatura", "quality tier")


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    rounds = 3 if context.quick else 5
    found = run_variants(
        Path(__file__), list(EXTRACTORS), arguments={}, rounds=rounds, num_threads=1, note=context.note
    )
    conditions = f"process CPU time, {rounds} rounds of processes in turns; {found['ours'].reports[0]['corpus']}; "
    fast = speed_up(found["ours"], found["trafilatura"])
    yield Claim(
        "HTML extraction, default tier vs trafilatura fast", f">= {LEAST_SPEED}x", round(fast.ratio, 2), "x",
        fast.ratio >= LEAST_SPEED, conditions + _describe_rates(found) + f", 95 % interval {fast.low:.2f}-{fast.high:.2f}",
    )  # fmt: skip
    bare = speed_up(found["ours"], found["resiliparse"])
    yield Claim(
        "HTML extraction, default tier vs resiliparse", f">= {LEAST_OF_RESILIPARSE}x", round(bare.ratio, 3), "x",
        bare.ratio >= LEAST_OF_RESILIPARSE,
        f"{conditions}95 % interval {bare.low:.2f}-{bare.high:.2f}; on {PYDOC_NAME}: {_describe_dense(found)}",
    )  # fmt: skip
    scores = {name: found[name].reports[0]["scores"] for name in SHOWN}
    if not scores["ours"]:
        yield Claim(
            "HTML extraction, F1 of the default tier", f">= {LEAST_F1}", None, "F1", None,
            f"no labelled pages; set {FOLDER_VARIABLE} to their folder, which cluster/bench_html_pages.py makes",
        )  # fmt: skip
        return
    told = "; ".join(f"{name} {_describe_scores(scores[name])}" for name in SHOWN)
    measured = scores["ours"]["test"]["f1"]
    yield Claim(
        "HTML extraction, F1 of the default tier", f">= {LEAST_F1}", round(measured, 4), "F1", measured >= LEAST_F1,
        f"4-gram shingles, test half; {told}",
    )  # fmt: skip
    yield Claim(
        "HTML extraction, stretch: F1 of the default tier", f">= {STRETCH_F1} at {STRETCH_SPEED}x trafilatura fast",
        round(measured, 4), "F1", measured >= STRETCH_F1 and fast.ratio >= STRETCH_SPEED,
        f"at {fast.ratio:.1f}x; {scores['ours']['test']['pages']:.0f} pages, so a page more or less found moves it by .02",
    )  # fmt: skip


def _describe_rates(found: dict[str, VariantResult]) -> str:
    return ", ".join(
        f"{name} {result.median_of('pages_per_s'):.0f} pages/s ({1 / result.median_s:.1f} MB/s)"
        for name, result in found.items()
    )


def _describe_dense(found: dict[str, VariantResult]) -> str:
    return ", ".join(f"{name} {result.median_of('dense_mb_per_s'):.1f} MB/s" for name, result in found.items())


def _describe_scores(scores: dict[str, dict[str, float]]) -> str:
    return ", ".join(
        f"{half} {one['f1']:.3f} (P {one['precision']:.3f}, R {one['recall']:.3f}, {one['pages']:.0f} pages)"
        for half, one in scores.items()
    )


def measure(variant: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds per megabyte of HTML, the better of two passes where one is quick; F1 by half."""
    del arguments
    from train.data.clean import decode

    folder = os.environ.get(FOLDER_VARIABLE)
    extract = EXTRACTORS[variant]()
    labelled = load_pages(Path(folder)) if folder else []
    decoded = [decode(page.content, is_html=True, counts={}) for page in labelled]
    dense = list(itertools.islice((page for page in pydoc_pages() if len(page) <= 30_000), NUM_PYDOC_PAGES))
    decoded = decoded or dense
    num_passes = 2 if variant in ("ours", "resiliparse") else 1
    dense_seconds, _ = _time_passes(extract, dense, num_passes=num_passes)
    best, texts = _time_passes(extract, decoded, num_passes=num_passes)
    megabytes = sum(map(len, decoded)) / 1e6
    scores = {}
    for half in HALVES if labelled else ():
        pairs = [(text, page.text) for text, page in zip(texts, labelled, strict=True) if page.half == half]
        score = score_texts(pairs)
        scores[half] = {"f1": score.f1, "precision": score.precision, "recall": score.recall, "pages": len(pairs)}
    name = f"labelled pages of {FOLDER_VARIABLE}" if labelled else PYDOC_NAME
    return {
        "seconds": best / megabytes,
        "pages_per_s": len(decoded) / best,
        "dense_mb_per_s": sum(map(len, dense)) / 1e6 / dense_seconds,
        "scores": scores,
        "corpus": f"{len(decoded)} pages, {megabytes:.1f} MB: {name}",
    }


def _time_passes(extract: Callable[[str], str], pages: list[str], *, num_passes: int) -> tuple[float, list[str]]:
    """(CPU seconds of the best pass, the texts); the first pass of ours may compile."""
    seconds, texts = [], []
    for _ in range(num_passes):
        start = time.process_time()
        texts = [extract(page) for page in pages]
        seconds.append(time.process_time() - start)
    return float(np.min(seconds)), texts


def _ours() -> Callable[[str], str]:
    from train.data.html import HtmlExtractor

    extractor = HtmlExtractor("blocks")
    return lambda html: extractor.extract(html)[0]


def _quality() -> Callable[[str], str]:
    from train.data.html import HtmlExtractor

    extractor = HtmlExtractor("trafilatura")
    return lambda html: extractor.extract(html)[0]


def _resiliparse() -> Callable[[str], str]:
    from resiliparse.extract.html2text import extract_plain_text

    return lambda html: extract_plain_text(
        html, main_content=True, comments=False, post_meta=False, list_bullets=False, alt_texts=False
    )


def _trafilatura() -> Callable[[str], str]:
    from trafilatura import extract

    return lambda html: extract(html, fast=True) or ""


EXTRACTORS: dict[str, Callable[[], Callable[[str], str]]] = {
    "ours": _ours,
    "resiliparse": _resiliparse,
    "trafilatura": _trafilatura,
    "quality tier": _quality,
}

if __name__ == "__main__":
    child_main(measure)
