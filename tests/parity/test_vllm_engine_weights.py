"""vLLM beside itself: each version of full weights computes what transformers computes from its folder, also side by side."""

import asyncio
from pathlib import Path

import pytest
import torch

from serve.config import EngineConfig
from serve.engine import AdapterRef, GenerateRequest, UnknownAdapterError
from serve.engine_weights import WeightsEngine
from tests.tiny_model import write_tiny_moe
from train.adapt.base import load_base_model, pick_device
from train.adapt.reference import MODEL_FOLDER
from train.adapt.weights import load_version, save_weights

TEXT = "A lighthouse stands on the northern cape; its lamp was lit in 1871."


def save_version(base: Path, folder: Path, *, number: int) -> AdapterRef:
    model = load_version(None, base=load_base_model(base, dtype="float32", device=pick_device("cpu")))
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    save_weights(model, folder=folder, base_folder=base)
    return AdapterRef(f"v-{number}", number, str(folder), kind="weights")


def scores_of(folder: Path) -> list[float]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
    return logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).flatten().tolist()


@pytest.mark.parametrize("family", ["llama", "moe"])
async def test_original_and_versions_compute_what_their_folders_say_and_at_the_same_time(
    family: str, tiny_llama: Path, tmp_path: Path
) -> None:
    base = tiny_llama if family == "llama" else write_tiny_moe(tmp_path / "moe", tokenizer_from=tiny_llama)
    versions = [save_version(base, tmp_path / f"{number}", number=number) for number in (1, 2)]
    config = EngineConfig(
        dtype="float32", max_model_len=128, max_num_seqs=4, kv_cache_bytes=32 << 20, max_loras=0, max_weights=1
    )
    engine = WeightsEngine(config, model_folder=base)
    await engine.start()
    try:
        for version in versions:  # the second takes the first one's place
            found = await asyncio.gather(*(engine.score(TEXT, one) for one in (None, version, None, version)))
            wanted = [scores_of(folder) for folder in (base, Path(version.folder) / MODEL_FOLDER)]
            for number, scores in enumerate(found):
                assert scores == pytest.approx(wanted[number % 2], abs=1e-3)
            request = GenerateRequest("r", TEXT, max_tokens=4, adapter=version)
            assert [chunk async for chunk in engine.generate(request)][-1].num_output_tokens > 0
        assert engine.stats().adapters == ("v-2",)
        (tmp_path / "2" / MODEL_FOLDER / "config.json").unlink()
        with pytest.raises(UnknownAdapterError, match=r"no model/config\.json"):
            await engine.load_adapter(AdapterRef("v-3", 3, versions[1].folder, kind="weights"))
    finally:
        await engine.stop()
