"""TokenizerFile: a Hugging Face tokenizer.json, read for what other libraries must be told of it.

In: the file. Out: its tokens as bytes, its split as one regular expression, its added tokens, or CannotExpress.

A vocabulary may lack single bytes (SmolLM2's lacks 0x04). Libraries that need all 256 get placeholder ids for them, above the
vocabulary, which no merge uses; the Encoder gives texts that contain one to the reference.
Sources: byte alphabet of GPT-2's encoder.py; the split patterns are those of GPT-2, Llama 3 and Qwen2's tokenizer.json.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+"
_LLAMA_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "gpt2": rf"{_GPT2_WORDS}| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+",
    "llama3": rf"{_LLAMA_WORDS}|\p{{N}}{{1,3}}|{_LLAMA_REST}",
    "qwen2": rf"{_LLAMA_WORDS}|\p{{N}}|{_LLAMA_REST}",
}
"""Where a text is split before merging. Numbers: whole with the space before, by three digits, or digit by digit."""


class CannotExpress(ValueError):
    """A backend that cannot give this tokenizer's ids: names what it lacks."""


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer.json: what it says about bytes, merges and splits."""

    path: Path
    content: bytes
    data: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> "TokenizerFile":
        """From the file or the folder that holds it. Raises ValueError if it is missing or no tokenizer."""
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        fix = "give the folder of a tokenizer, or leave it out and one is trained"
        try:
            content = path.read_bytes()
            data = json.loads(content)
        except OSError as error:
            raise ValueError(f"tokenizer {path} cannot be read ({error.strerror}): {fix}") from error
        except ValueError as error:
            raise ValueError(f"tokenizer {path} is no JSON ({error}): {fix}") from error
        if not isinstance(data, dict) or not isinstance(data.get("model"), dict) or "vocab" not in data["model"]:
            raise ValueError(f"tokenizer {path} has no model with a vocab: {fix}")
        return cls(path, content, data)

    @property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def added(self) -> dict[str, int]:
        """Tokens that are matched as a whole, before anything is split: text -> id."""
        return {token["content"]: token["id"] for token in self.data.get("added_tokens") or ()}

    @property
    def plain_added(self) -> list[str]:
        """Those that are not special: the reference finds them in documents too."""
        return [token["content"] for token in self.data.get("added_tokens") or () if not token["special"]]

    @cached_property
    def num_ids(self) -> int:
        """One more than the largest id."""
        vocabulary = self.data["model"]["vocab"]
        ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else range(len(vocabulary))
        return int(max([*ids, *self.added.values()], default=-1)) + 1

    @cached_property
    def pattern(self) -> str | None:
        """The regular expression whose matches, one after the other, are what is merged; None if it is no known one."""
        if self.data.get("normalizer") is not None:
            return None
        parts = self.data.get("pre_tokenizer") or {}
        *splits, last = (parts.get("pretokenizers") if parts.get("type") == "Sequence" else None) or [parts]
        if last.get("type") != "ByteLevel" or last.get("add_prefix_space") or len(splits) > 1:
            return None
        has_regex = last.get("use_regex", True)
        if not splits:
            return PATTERNS["gpt2"] if has_regex else None
        split = splits[0]
        if split.get("type") == "Digits" and has_regex:
            # spaces before a number end their piece, so nothing non-blank follows them there
            digits = r"\p{N}" if split.get("individual_digits") else r"\p{N}+"
            return rf"{digits}|{_GPT2_WORDS}| ?[^\s\p{{L}}\p{{N}}]+|\s+(?![^\s\p{{N}}])|\s+"
        is_isolated = split.get("behavior") == "Isolated" and not split.get("invert")
        regex = split.get("pattern", {}).get("Regex")
        is_known = split.get("type") == "Split" and is_isolated and regex in PATTERNS.values()
        return str(regex) if is_known and not has_regex else None

    @cached_property
    def byte_tokens(self) -> dict[bytes, int]:
        """Ids of the tokens that merging can give, by their bytes; a lacking byte has an id of num_ids or above.

        Raises CannotExpress if this is not byte-level BPE.
        """
        model = self.data["model"]
        odd = [
            name
            for name in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
            if model.get(name)
        ]
        if model.get("type") != "BPE" or odd:
            raise CannotExpress(
                f"its model is {model.get('type')}{' with ' + odd[0] if odd else ''}, not byte-level BPE"
            )
        tokens: dict[bytes, int] = {}
        for text, token in model["vocab"].items():
            if text in self.added:
                continue
            if not BYTES.keys() >= set(text):
                raise CannotExpress(f"its token {text!r} is not written in GPT-2's byte alphabet")
            tokens[to_bytes(text)] = token
        for byte in range(256):
            tokens.setdefault(bytes([byte]), self.num_ids + byte)
        return tokens

    @cached_property
    def byte_lengths(self) -> npt.NDArray[np.uint16]:
        """By id: bytes that it stands for. 0 for placeholders and for what merging cannot give."""
        lengths = np.zeros(self.num_ids + 256, np.uint16)
        for text, token in self.byte_tokens.items():
            lengths[token] = len(text) if token < self.num_ids else 0
        return lengths

    def reference(self) -> Any:
        """The tokenizer of `tokenizers`, which takes special tokens in a text for text. Raises ValueError if it refuses."""
        try:
            tokenizer = tokenizers.Tokenizer.from_str(self.content.decode())
        except Exception as error:  # it raises nothing narrower
            raise ValueError(
                f"tokenizer {self.path} is not accepted by `tokenizers` ({error}): give the folder of another"
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        return tokenizer


BYTES = {
    character: byte
    for byte, character in zip(
        [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100), *range(0x21), *range(0x7F, 0xA1), 0xAD],
        [*map(chr, range(0x21, 0x7F)), *map(chr, range(0xA1, 0xAD)), *map(chr, range(0xAE, 0x144))],
        strict=True,
    )
}
"""GPT-2's way to write bytes as printable characters."""
CHARACTERS = {byte: character for character, byte in BYTES.items()}
assert set(ByteLevel.alphabet()) == set(BYTES)


def to_bytes(text: str) -> bytes:
    """What a token of the file stands for."""
    return bytes(BYTES[character] for character in text)
