"""vLLM serves the folders that save_pretrained writes, as they are: same scores, same answers as our own model."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from serve.config import EngineConfig
from serve.engine import AdapterRef, GenerateRequest, ModelFolderError, UnknownAdapterError
from serve.engine_vllm import VllmEngine
from train.model.config import MoEConfig
from train.model.generate import SamplingConfig
from train.model.transformer import MoETransformer

TEXT = "A lighthouse stands on the northern cape; its lamp was lit in 1871."
SHAPE = {
    "vocab_size": 384, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 128, "moe_intermediate_size": 64, "num_experts": 4, "max_position_embeddings": 512,
    "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
FAMILIES = {
    "mixtral": {},
    "mixtral with tied embeddings": {"tie_word_embeddings": True},
    "qwen3_moe": {"qk_norm": "head", "dense_layers": [0]},
    "glm4_moe": {
        "num_shared_experts": 1, "router": {"score": "sigmoid", "balancing": "bias"}, "qk_norm": "head", "dense_layers": [0]
    },
}  # fmt: skip


@pytest.mark.asyncio
@pytest.mark.parametrize("family", FAMILIES)
async def test_vllm_scores_and_continues_a_saved_folder_as_our_model_does(
    family: str, tiny_llama: Path, tmp_path: Path
):
    torch.manual_seed(0)
    model = MoETransformer(MoEConfig.model_validate(SHAPE | FAMILIES[family]), dtype=torch.bfloat16).eval()
    folder = model.save_pretrained(tmp_path / "model", tokenizer_from=tiny_llama)
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids
    reference = model.float()
    with torch.no_grad():
        logprobs = reference(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    expected = logprobs.gather(1, torch.tensor(ids[1:]).unsqueeze(1)).squeeze(1)
    (answer,) = reference.generate([ids], SamplingConfig(max_new_tokens=8))
    engine = VllmEngine(
        EngineConfig(max_model_len=256, max_num_seqs=4, kv_cache_bytes=32 << 20, max_loras=0), model_folder=folder
    )
    await engine.start()
    try:
        with pytest.raises(UnknownAdapterError, match=r"engine\.max_loras to 1"):
            await engine.load_adapter(AdapterRef("ver-1", 1, str(folder)))
        scores = torch.tensor(await engine.score(TEXT, None))
        request = GenerateRequest("r", TEXT, max_tokens=8)
        text = "".join([chunk.text async for chunk in engine.generate(request)])
    finally:
        await engine.stop()
    difference = (scores - expected).abs()
    assert difference.median() < 0.05, difference  # bf16 there, float32 here
    assert difference.mean() < 0.3, difference
    wanted = Tokenizer.from_file(str(folder / "tokenizer.json")).decode(answer.token_ids[:1])
    assert text.startswith(wanted.rstrip("\ufffd"))


@pytest.mark.asyncio
async def test_adapters_on_experts_on_a_cpu_are_refused_with_the_fix(tiny_llama: Path, tmp_path: Path):
    model = MoETransformer(MoEConfig.model_validate(SHAPE), dtype=torch.bfloat16)
    folder = model.save_pretrained(tmp_path / "model", tokenizer_from=tiny_llama)
    engine = VllmEngine(EngineConfig(max_model_len=256, kv_cache_bytes=32 << 20), model_folder=folder)
    with pytest.raises(ModelFolderError, match=r"has experts.*set engine\.max_loras = 0"):
        await engine.start()
