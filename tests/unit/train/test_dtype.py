"""Which precision auto takes."""

import pytest

from train import dtype as module
from train.dtype import has_fast_bfloat16, pick_dtype


def test_auto_takes_float32_only_on_a_cpu_that_does_not_multiply_bfloat16(monkeypatch: pytest.MonkeyPatch):
    assert pick_dtype("auto", device_type="cpu") == ("bfloat16" if has_fast_bfloat16() else "float32")
    for fast, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(module, "has_fast_bfloat16", lambda fast=fast: fast)
        assert pick_dtype("auto", device_type="cpu") == expected
        assert pick_dtype("auto", device_type="cuda") == "bfloat16"


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32"])
def test_a_named_precision_is_taken_as_it_is(kind: str):
    assert pick_dtype(kind, device_type="cpu") == kind
