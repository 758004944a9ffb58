"""Fast tokenizer backends against `tokenizers`, on every character and on real documents; the folder against transformers."""

import hashlib
import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from train.data.tokenizer import Encoder, TokenizerTrainConfig, save_tokenizer, train_tokenizer
from train.data.tokenizer_file import CHARACTERS, TokenizerFile
from train.model.embedded import materialise_base_model

PATTERNS = ("gpt2", "llama3", "qwen2")
BOTH = ("gigatoken", "tiktoken")
KINDS = {"gpt2": BOTH, "llama3": BOTH, "qwen2": BOTH, "smollm2": BOTH, "digits": ("tiktoken",)}
TRAIN_BYTES, REAL_BYTES = 1_500_000, 3_000_000
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]}
"""The published SmolLM2's; the embedded one, which went through GGUF, has lost it."""
SCRIPT = """
import sys
from pydoc_data.topics import topics
from train.data.tokenizer import TokenizerTrainConfig, train_tokenizer
sys.stdout.write(train_tokenizer(topics.values(), config=TokenizerTrainConfig(vocab_size=4000)).to_str(pretty=True))
"""


def _real_documents() -> Iterator[str]:
    """What every installation has: topics, READMEs in many languages of markup, the standard library's source."""
    yield from topics.values()
    for distribution in importlib.metadata.distributions():
        yield distribution.read_text("METADATA") or ""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("**/*.py")):
        if "site-packages" not in path.parts:
            yield path.read_text("utf-8", errors="replace")


def _take(texts: Iterator[str], num_bytes: int) -> list[str]:
    found: list[str] = []
    for text in texts:
        if num_bytes <= 0:
            break
        found.append(text)
        num_bytes -= len(text.encode())
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = Path.home() / ".autonomous" / "models" / "smollm2-135m-instruct"
    found = {"smollm2": materialise_base_model(home, progress=lambda _: None)}
    for pattern in PATTERNS:
        config = TokenizerTrainConfig(vocab_size=12_000, pattern=pattern)
        texts = _take(_real_documents(), TRAIN_BYTES)
        found[pattern] = tmp_path_factory.mktemp(pattern)
        save_tokenizer(train_tokenizer(texts, config=config), found[pattern], config=config)
    found["digits"] = tmp_path_factory.mktemp("digits")
    data = json.loads((found["smollm2"] / "tokenizer.json").read_text()) | {"pre_tokenizer": DIGITS}
    (found["digits"] / "tokenizer.json").write_text(json.dumps(data))
    return found


def _show_splits(folder: Path, target: Path) -> TokenizerFile:
    """The tokenizer with merges over every border of a character with a letter, digit, sign, blank or line end, and no others.

    In a trained vocabulary few such merges exist, and then ids do not show where a text was split.
    """
    data = json.loads((folder / "tokenizer.json").read_text())
    neighbours, firsts, lasts = b"\na 1!", range(0xC2, 0xF5), range(0x80, 0xC0)
    pairs = [*itertools.product(lasts, neighbours), *itertools.product(neighbours, firsts)]
    merges = [[CHARACTERS[left], CHARACTERS[right]] for left, right in pairs]
    vocabulary = [*map(CHARACTERS.__getitem__, range(256)), *map("".join, merges)]
    data["model"] |= {"vocab": {text: token for token, text in enumerate(vocabulary)}, "merges": merges}
    data["added_tokens"] = [data["added_tokens"][0] | {"id": len(vocabulary)}]
    (target / "tokenizer.json").write_text(json.dumps(data))
    return TokenizerFile.read(target)


@pytest.mark.parametrize("name", ["gpt2", "llama3", "qwen2", "digits"])
def test_every_character_is_split_as_tokenizers_does_in_each_backend(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    file = _show_splits(folders[name], tmp_path)
    codes = [code for code in range(0x80, 0x34000) if not 0xD800 <= code < 0xE000] + list(range(0x34000, 0x110000, 499))
    for kind in KINDS[name]:
        encoder = Encoder(file, kind=kind)
        for first in range(0, len(codes), 40_000):
            encoder.check([f"{c}\n{c}a{c} 1{c}!{c}" for c in map(chr, codes[first : first + 40_000])])


@pytest.mark.parametrize("name", KINDS)
def test_real_documents_have_the_ids_of_tokenizers_in_each_backend(folders: dict[str, Path], name: str) -> None:
    texts = _take(_real_documents(), REAL_BYTES)
    for kind in KINDS[name]:
        Encoder.open(folders[name], backend=kind, sample=texts)


@pytest.mark.parametrize("name", ["gpt2", "llama3", "smollm2"])
def test_a_document_of_one_long_line_has_the_ids_of_its_whole(folders: dict[str, Path], name: str) -> None:
    line = " ".join("".join(_take(_real_documents(), 600_000)).split())
    encoded = "".join(hashlib.sha256(str(number).encode()).hexdigest() for number in range(6_000))
    for kind in KINDS[name]:
        Encoder(TokenizerFile.read(folders[name]), kind=kind).check([line, encoded, "after"])


def test_training_does_not_depend_on_the_process_or_its_threads() -> None:
    found = set()
    for seed, threads in (("1", "1"), ("2", "4")):
        environment = os.environ | {
            "PYTHONHASHSEED": seed,
            "RAYON_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "true",
        }
        command = [sys.executable, "-c", SCRIPT]
        found.add(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert len(found) == 1


@pytest.mark.parametrize("pattern", PATTERNS)
def test_transformers_loads_the_folder_and_gives_the_same_ids(folders: dict[str, Path], pattern: str) -> None:
    theirs = AutoTokenizer.from_pretrained(folders[pattern], local_files_only=True)
    assert (theirs.eos_token, theirs.pad_token, len(theirs)) == ("<|endoftext|>", "<|pad|>", 12_000)
    encoder = Encoder.open(folders[pattern])
    assert theirs.eos_token_id == encoder.end_of_document_id
    texts = _take(_real_documents(), 300_000)
    found = encoder.encode(pa.chunked_array([pa.array(texts, pa.large_string())]))
    for row, text in enumerate(texts):
        ids = theirs(text, add_special_tokens=False).input_ids
        assert np.array_equal(found[row], ids)
        assert theirs.decode(ids) == text
