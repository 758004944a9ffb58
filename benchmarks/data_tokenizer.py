"""Documents to token ids, beside `tokenizers` and bare `tiktoken`, with our own vocabulary and with SmolLM2's.

Run as a script it measures one library in a process of its own, on one thread, in process CPU seconds per megabyte, on texts
that neither the process nor the training of the vocabulary has seen. Ours takes an Arrow column and gives flat ids, with all
of its checks; `tokenizers` takes strings and is not charged for reading the ids out. Every process hashes its ids, and all
must be equal.
"""

import hashlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.bench import BenchContext, Claim
from cluster.bench_corpus import describe_corpus, read_texts
from cluster.bench_variants import VariantResult, child_main, run_variants, speed_up
from train.data.tokenizer import Encoder, TokenizerTrainConfig, save_tokenizer, train_tokenizer
from train.data.tokenizer_file import TokenizerFile
from train.model.embedded import EMBEDDED_NAME, materialise_base_model

TARGETS = {"own": {"encode_batch": 15.0, "encode_batch_fast": 15.0, "tiktoken": 3.0}, "SmolLM2": {"encode_batch": 5.0}}
"""Vocabulary -> peer -> least ratio of megabytes per CPU second."""
TRAIN_BYTES = 6_000_000
CONFIG = TokenizerTrainConfig(vocab_size=32_768, min_frequency=1)
THREADS = {"RAYON_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
WARM_UP = ["A first text, so that all is compiled and loaded."]


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    rounds, num_bytes = (3, 3_000_000) if context.quick else (5, 12_000_000)
    context.note("training a vocabulary")
    own = context.folder / "own"
    save_tokenizer(train_tokenizer(_texts(num_bytes)[0], config=CONFIG), own, config=CONFIG)
    cache = context.config.model.cache.expanduser().resolve() / EMBEDDED_NAME
    folders = {"own": own, "SmolLM2": materialise_base_model(cache, progress=context.note)}
    for name, targets in TARGETS.items():
        found = run_variants(
            Path(__file__), ["ours", *targets], arguments={"folder": str(folders[name]), "num_bytes": num_bytes},
            rounds=rounds, environment=THREADS, num_threads=1, note=context.note,
        )  # fmt: skip
        about = found["ours"].reports[0]
        conditions = (
            f"process CPU time, one thread, cold texts, {rounds} rounds of processes in turns; backend {about['backend']}, "
            f"{about['vocab_size']:,} ids; {about['corpus']}"
        )
        for peer, least in targets.items():
            yield _speed_claim(name, found["ours"], found[peer], least=least, conditions=conditions)
        ids = {report["ids"] for result in found.values() for report in result.reports}
        yield Claim(
            f"token ids, {name} vocabulary: different results of {', '.join(found)}", "1", len(ids), "", len(ids) == 1,
            f"hashes of all ids of all documents; {about['num_tokens']:,} tokens; {conditions}",
        )  # fmt: skip


def _speed_claim(name: str, ours: VariantResult, theirs: VariantResult, *, least: float, conditions: str) -> Claim:
    speed = speed_up(ours, theirs)
    return Claim(
        f"tokenizing, {name} vocabulary, vs {theirs.name}", f">= {least:.0f}x", round(speed.ratio, 2), "x",
        speed.ratio >= least, f"ours {1 / ours.median_s:.1f}, {theirs.name} {1 / theirs.median_s:.2f} MB/s; 95 % interval "
        f"{speed.low:.1f}-{speed.high:.1f}; {conditions}",
    )  # fmt: skip


def _texts(num_bytes: int) -> tuple[list[str], list[str]]:
    """(to train on, to measure on): different files in a mixed order."""
    texts = read_texts(max_bytes=TRAIN_BYTES + num_bytes)
    sizes = np.cumsum([len(text.encode()) for text in texts])
    border = int(np.searchsorted(sizes, TRAIN_BYTES))
    return texts[:border], texts[border:]


def measure(variant: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds per megabyte, and the hash of all ids."""
    texts = _texts(arguments["num_bytes"])[1]
    encode, read, about = VARIANTS[variant](Path(arguments["folder"]))
    encode(_column(WARM_UP))
    column = _column(texts)
    start = time.process_time()
    found = encode(column)
    seconds = time.process_time() - start
    ids = read(found)
    return about | {
        "seconds": seconds / (sum(len(text.encode()) for text in texts) / 1e6),
        "ids": hashlib.sha256(b"".join(np.asarray(one, np.uint32).tobytes() for one in ids)).hexdigest(),
        "num_tokens": sum(map(len, ids)),
        "corpus": describe_corpus(texts),
    }


def _column(texts: list[str]) -> dict[str, Any]:
    """Texts as each side wants them."""
    return {"arrow": pa.chunked_array([pa.array(texts, pa.large_string())]), "strings": texts}


Prepared = tuple[Callable[[dict[str, Any]], Any], Callable[[Any], list[Any]], dict[str, Any]]
"""(what is timed, how its result is read as ids by document, what the report says besides)."""


def _ours(folder: Path) -> Prepared:
    encoder = Encoder.open(folder)
    about = {"backend": encoder.kind, "vocab_size": encoder.vocab_size}
    return lambda texts: encoder.encode(texts["arrow"]), lambda found: [found[row] for row in range(len(found))], about


def _tokenizers(method: str) -> Callable[[Path], Prepared]:
    def prepare(folder: Path) -> Prepared:
        encode = getattr(TokenizerFile.read(folder).reference(), method)
        return (
            lambda texts: encode(texts["strings"], add_special_tokens=False),
            lambda found: [one.ids for one in found],
            {},
        )

    return prepare


def _tiktoken(folder: Path) -> Prepared:
    import tiktoken

    file = TokenizerFile.read(folder)
    encoding = tiktoken.Encoding("bench", pat_str=file.pattern, mergeable_ranks=file.byte_tokens, special_tokens={})
    return lambda texts: [encoding.encode_ordinary(text) for text in texts["strings"]], lambda found: found, {}


VARIANTS: dict[str, Callable[[Path], Prepared]] = {
    "ours": _ours,
    "encode_batch": _tokenizers("encode_batch"),
    "encode_batch_fast": _tokenizers("encode_batch_fast"),
    "tiktoken": _tiktoken,
}

if __name__ == "__main__":
    child_main(measure)
