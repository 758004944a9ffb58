"""MixedPrecisionManager: what layers compute in, and how gradients are kept from vanishing.

Master weights, gradients that are added up, and the optimizer are float32 always; routing, norms' means and the loss are
computed in float32 by the model. `bf16` and `fp16` cast what layers compute with. `fp16` scales the objective, since its small
gradients would be zero, and finds the scale as torch.amp.GradScaler does: down at an overflow, up after a while without one.
`fp8` is bf16 whose linear layers of attention and dense feed-forward parts multiply in float8 with a scale per tensor
(torchao.float8, arXiv:2209.05433); experts, router, embedding and head stay in bf16. A device without float8 matmuls can
emulate them: the same rounding, slowly.
"""

import logging
import warnings
from collections.abc import Mapping
from typing import Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from train.dtype import Dtype, pick_dtype
from train.model.loss import LanguageHead
from train.model.transformer import MoETransformer

FP8_MULTIPLE = 16
"""Widths that float8 matmuls take."""
FP8_CAPABILITY = (8, 9)
"""CUDA devices from this one on multiply in float8."""
DTYPES: dict[str, Dtype] = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp8": "bfloat16"}


class PrecisionConfig(BaseModel):
    """Of the layers' arithmetic."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["auto", "fp32", "bf16", "fp16", "fp8"] = "auto"
    """auto: bf16, or fp32 on a CPU that is slow in it."""
    initial_scale: float = Field(2.0**16, gt=0)
    """fp16: factor on the objective at the beginning."""
    growth_factor: float = Field(2.0, gt=1)
    """fp16: on the scale after `growth_interval` steps without an overflow."""
    backoff_factor: float = Field(0.5, gt=0, lt=1)
    """fp16: on the scale at an overflow."""
    growth_interval: int = Field(2000, gt=0)
    """fp16: optimizer steps."""
    is_emulated: bool | None = None
    """fp8: compute the rounding in bf16. None: where the device has no float8 matmuls."""


class MixedPrecisionManager:
    """The precision of a run on this process; the same on all ranks."""

    def __init__(self, config: PrecisionConfig, *, device_type: str) -> None:
        """Raises ValueError for what the device cannot do."""
        self.config = config
        self.compute_dtype: torch.dtype = getattr(torch, pick_dtype(DTYPES[config.kind], device_type=device_type))
        self.is_scaled = config.kind == "fp16"
        """Whether the objective is scaled, so that gradients may overflow now and then."""
        self.scale = config.initial_scale if self.is_scaled else 1.0
        """Factor on the objective of the next step."""
        self._num_good = 0
        has_fp8 = device_type == "cuda" and torch.cuda.get_device_capability() >= FP8_CAPABILITY
        if config.kind == "fp8" and config.is_emulated is False and not has_fp8:
            raise ValueError(
                f"precision.is_emulated = false, but {device_type} has no float8 matmuls here: leave it out to emulate them, "
                "or take precision.kind = 'bf16'"
            )
        self._is_emulated = not has_fp8 if config.is_emulated is None else config.is_emulated

    def finish_step(self, *, is_finite: bool) -> None:
        """Move the scale after a step whose gradients were finite or not. As torch.amp.GradScaler.update."""
        if not self.is_scaled:
            return
        config = self.config
        if not is_finite:
            self.scale, self._num_good = self.scale * config.backoff_factor, 0
            return
        self._num_good += 1
        if self._num_good == config.growth_interval:
            self.scale, self._num_good = self.scale * config.growth_factor, 0

    def convert(self, model: MoETransformer) -> None:
        """fp8: exchange the linear layers that multiply in float8. Before the model is sharded."""
        if self.config.kind == "fp8":
            _convert_to_float8(model, is_emulated=self._is_emulated)

    def state_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"scale": self.scale, "num_good": self._num_good, "is_scaled": self.is_scaled}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on with that scale, if the run was scaled before and is now."""
        if self.is_scaled and state["is_scaled"]:
            self.scale, self._num_good = float(state["scale"]), int(state["num_good"])


def has_float16() -> bool:
    """Whether this CPU multiplies float16 matrices."""
    return cast(bool, torch.ops.mkldnn._is_mkldnn_fp16_supported())


def _convert_to_float8(model: MoETransformer, *, is_emulated: bool) -> None:
    logging.getLogger("torchao").setLevel(
        logging.ERROR
    )  # it tells of each compiled extension that is not for this machine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    convert_to_float8_training(model, module_filter_fn=_is_converted, config=Float8LinearConfig(emulate=is_emulated))


def _is_converted(module: nn.Module, name: str) -> bool:
    if not isinstance(module, nn.Linear) or isinstance(module, LanguageHead):
        return False
    return all(width % FP8_MULTIPLE == 0 for width in (module.in_features, module.out_features))
