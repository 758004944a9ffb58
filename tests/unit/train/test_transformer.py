"""MoETransformer: packing, padding, caches, embeddings, recomputation, routes; what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor

from train.model.cache import KVCache
from train.model.config import AttentionConfig, MoEConfig, RouterConfig
from train.model.loss import next_token_labels
from train.model.transformer import MoETransformer, Recomputation


def _config(**fields: object) -> MoEConfig:
    values = {
        "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 48, "moe_intermediate_size": 16, "num_experts": 6, "num_experts_per_token": 2,
        "dense_layers": (1,), "num_shared_experts": 1, "max_position_embeddings": 256, "initializer_range": 0.2,
    }  # fmt: skip
    return MoEConfig.model_validate(values | fields)


CONFIGS = {
    "full": _config(),
    "sliding": _config(attention=AttentionConfig(pattern=("sliding", "full"), window=6, num_sinks=2)),
    "sparse": _config(
        attention=AttentionConfig(pattern=("sparse",), window=8, num_sinks=2, block_size=4, num_selected_blocks=2)
    ),
    "sigmoid": _config(router=RouterConfig(score="sigmoid", balancing="bias"), qk_norm="head"),
}


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> MoETransformer:
    torch.manual_seed(0)
    return MoETransformer(CONFIGS[request.param]).eval()


TOKENS = torch.zeros(1, 4, dtype=torch.long)


def _tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 61, (batch, length), generator=torch.Generator().manual_seed(seed))


def _logits(model: MoETransformer, tokens: Tensor, **arguments: Tensor) -> Tensor:
    logits = model(tokens, **arguments).logits
    assert logits is not None
    return logits


@torch.no_grad()
def test_packed_documents_equal_each_document_alone(model: MoETransformer):
    lengths = (5, 13, 1, 21)
    documents = [_tokens(1, length, seed=length) for length in lengths]
    ids = torch.cat([torch.full((1, length), index) for index, length in enumerate(lengths)], dim=1)
    packed = _logits(model, torch.cat(documents, dim=1), document_ids=ids)
    alone = torch.cat([_logits(model, document) for document in documents], dim=1)
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)


def test_packed_loss_and_gradients_equal_those_of_the_documents(model: MoETransformer):
    lengths = (7, 17)
    documents = [_tokens(1, length, seed=length) for length in lengths]
    ids = torch.cat([torch.full((1, length), index) for index, length in enumerate(lengths)], dim=1)
    tokens = torch.cat(documents, dim=1)
    packed = model(tokens, document_ids=ids, labels=next_token_labels(tokens, ids))
    wanted = [model(document, labels=next_token_labels(document)) for document in documents]
    parameters = list(model.parameters())
    mine = torch.autograd.grad(packed.loss_sum, parameters)
    theirs = torch.autograd.grad(wanted[0].loss_sum + wanted[1].loss_sum, parameters)
    assert packed.num_loss_tokens == sum(lengths) - len(lengths)
    for found, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_no_real_token(model: MoETransformer, side: str):
    short, long = _tokens(1, 9, seed=1), _tokens(1, 20, seed=2)
    padding = torch.zeros(1, 11, dtype=torch.long)
    row = torch.cat([padding, short] if side == "left" else [short, padding], dim=1)
    mask = torch.ones(2, 20, dtype=torch.long)
    real = slice(11, None) if side == "left" else slice(0, 9)
    mask[0] = 0
    mask[0, real] = 1
    logits = _logits(model, torch.cat([row, long]), attention_mask=mask)
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[:1, real], _logits(model, short), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[1:], _logits(model, long), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("chunks", [(30,), (1,) * 30, (7, 3, 1, 19), (29, 1)])
def test_cached_passes_equal_the_whole_one(model: MoETransformer, chunks: tuple[int, ...]):
    tokens = _tokens(2, 30)
    cache = KVCache(model.config, batch=2, device="cpu")
    parts = [model(part, cache=cache).logits for part in tokens.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), _logits(model, tokens), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_embeddings_of_another_encoder_take_the_place_of_tokens(model: MoETransformer):
    """Multi-modal fusion: an encoder's output stands between the text's embeddings, with positions of its own."""
    encoder = torch.nn.Sequential(torch.nn.Linear(12, 64), torch.nn.GELU(), torch.nn.Linear(64, 32))
    image, before, after = torch.randn(1, 4, 12), _tokens(1, 5, seed=3), _tokens(1, 6, seed=4)
    embed = model.model.embed_tokens
    fused = torch.cat([embed(before), encoder(image), embed(after)], dim=1)
    positions = torch.arange(15).unsqueeze(0)
    logits = model(inputs_embeds=fused, position_ids=positions).logits
    assert logits.shape == (1, 15, 61)
    torch.testing.assert_close(logits[:, :5], _logits(model, before), atol=1e-5, rtol=1e-5)
    text = _tokens(1, 15, seed=5)
    torch.testing.assert_close(model(inputs_embeds=embed(text)).logits, _logits(model, text), atol=1e-6, rtol=1e-6)
    shifted = model(inputs_embeds=fused, position_ids=positions * 2).logits
    assert not torch.allclose(shifted[:, 6:], logits[:, 6:], atol=1e-4)


def test_an_encoder_is_trained_through_the_model(model: MoETransformer):
    encoder = torch.nn.Linear(12, 32)
    model(inputs_embeds=encoder(torch.randn(1, 6, 12)), labels=_tokens(1, 6)).loss.backward()
    assert encoder.weight.grad is not None
    assert encoder.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_recomputation_changes_neither_loss_nor_gradients_nor_routes(model: MoETransformer, kind: Recomputation):
    tokens = _tokens(2, 24)

    def run() -> tuple[Tensor, list[Tensor], Tensor]:
        output = model(tokens, labels=next_token_labels(tokens))
        counts = torch.stack([stats.counts for stats in output.router_stats])
        balance = sum(stats.prob_sum.square().sum() for stats in output.router_stats)
        return output.loss, list(torch.autograd.grad(output.loss + 0.01 * balance, list(model.parameters()))), counts

    loss, gradients, counts = run()
    model.set_recomputation(kind)
    again = run()
    assert torch.equal(again[0], loss)
    assert torch.equal(again[2], counts)
    for mine, wanted in zip(again[1], gradients, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("kind", "least_share"), [("selective", 0.02), ("full", 0.5)])
def test_recomputation_keeps_less(kind: Recomputation, least_share: float):
    model = MoETransformer(CONFIGS["full"])

    def kept_bytes() -> int:
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        tokens = _tokens(2, 128)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(tokens, labels=next_token_labels(tokens))
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        return sum(size for pointer, size in kept.items() if pointer not in weights)

    before = kept_bytes()
    model.set_recomputation(kind)
    assert kept_bytes() < (1 - least_share) * before


@torch.no_grad()
def test_replayed_routes_give_the_same_logits_and_others_do_not(model: MoETransformer):
    tokens = _tokens(2, 20)
    output = model(tokens)
    assert output.routes.shape == (2 if model.config.dense_layers else 3, 2, 20, 2)
    assert torch.equal(model(tokens, replay_routes=output.routes).logits, output.logits)
    other = (output.routes + 1) % model.config.num_experts
    assert not torch.allclose(model(tokens, replay_routes=other).logits, output.logits, atol=1e-3)


@torch.no_grad()
def test_only_the_last_logits_are_computed_on_demand(model: MoETransformer):
    tokens = _tokens(2, 12)
    torch.testing.assert_close(
        model(tokens, logits_to_keep=2).logits, _logits(model, tokens)[:, -2:], atol=1e-6, rtol=1e-6
    )


def test_a_later_token_changes_no_earlier_logit(model: MoETransformer):
    tokens = _tokens(1, 40)
    changed = tokens.clone()
    changed[0, 25] = (changed[0, 25] + 1) % 61
    with torch.no_grad():
        before, after = _logits(model, tokens), _logits(model, changed)
    torch.testing.assert_close(before[:, :25], after[:, :25], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(before[:, 25:], after[:, 25:], atol=1e-4)


def test_tied_embeddings_are_one_parameter():
    model = MoETransformer(_config(tie_word_embeddings=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    untied = MoETransformer(_config())
    assert sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in model.parameters()) == 61 * 32


def test_a_trillion_parameters_are_described_without_memory():
    config = MoEConfig(
        vocab_size=128_000, hidden_size=7168, num_hidden_layers=48, num_attention_heads=64, num_key_value_heads=8,
        head_dim=128, num_experts=128, moe_intermediate_size=7424,
    )  # fmt: skip
    model = MoETransformer(config, device="meta", dtype=torch.bfloat16)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) > 0.95e12


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "neither given"),
        ({"input_ids": torch.zeros(1, 4, dtype=torch.long), "inputs_embeds": torch.zeros(1, 4, 32)}, "both given"),
        ({"inputs_embeds": torch.zeros(1, 4, 31)}, r"shape \[1, 4, 31\].*hidden_size = 32"),
        ({"input_ids": torch.zeros(1, 257, dtype=torch.long)}, "max_position_embeddings = 256"),
        (
            {
                "input_ids": torch.zeros(1, 4, dtype=torch.long),
                "attention_mask": torch.ones(1, 4),
                "document_ids": torch.zeros(1, 4),
            },
            "document_ids alone",
        ),
        ({"input_ids": torch.tensor([[3, 61]])}, "input_ids holds 61; tokens of the vocabulary go from 0 to 60"),
        ({"input_ids": torch.tensor([[-1, 3]])}, "input_ids holds -1"),
        (
            {"input_ids": torch.zeros(1, 2, dtype=torch.long), "labels": torch.tensor([[-100, 61]])},
            "labels holds 61",
        ),
        ({"input_ids": torch.zeros(4, dtype=torch.long)}, r"input_ids has shape \[4\]"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "at least one token"),
        ({"input_ids": torch.zeros(1, 4)}, "dtype torch.float32; give token ids"),
        ({"input_ids": torch.zeros(0, 4, dtype=torch.long)}, "at least one token"),
        ({"input_ids": torch.zeros(1, 4, dtype=torch.bool)}, "input_ids has dtype torch.bool"),
        ({"inputs_embeds": torch.zeros(4, 32)}, "inputs_embeds has shape"),
        ({"inputs_embeds": torch.zeros(1, 0, 32)}, "at least one token"),
        ({"inputs_embeds": torch.zeros(1, 4, 32, dtype=torch.bfloat16)}, "inputs_embeds has dtype torch.bfloat16"),
        ({"input_ids": TOKENS, "labels": torch.zeros(1, 4)}, "labels has dtype torch.float32; give integers"),
        ({"input_ids": TOKENS, "position_ids": torch.full((1, 4), 256)}, "position_ids holds 256; .* from 0 to 255"),
        ({"input_ids": TOKENS, "position_ids": torch.full((1, 4), -1)}, "position_ids holds -1"),
        ({"input_ids": TOKENS, "replay_routes": torch.full((2, 1, 4, 2), 6)}, "replay_routes holds 6; experts"),
        ({"input_ids": TOKENS, "replay_routes": torch.zeros(2, 1, 4, 2)}, "replay_routes has dtype torch.float32"),
        ({"input_ids": TOKENS, "logits_to_keep": 0}, "logits_to_keep = 0"),
        *(
            ({"input_ids": torch.zeros(1, 4, dtype=torch.long), name: torch.zeros(1, 5, dtype=torch.long)}, words)
            for name, words in (
                ("labels", r"labels has shape \[1, 5\]; give one number per token, \[1, 4\]"),
                ("attention_mask", "attention_mask has shape"),
                ("document_ids", "document_ids has shape"),
                ("position_ids", "position_ids has shape"),
            )
        ),
        (
            {
                "input_ids": torch.zeros(1, 4, dtype=torch.long),
                "replay_routes": torch.zeros(1, 1, 4, 2, dtype=torch.long),
            },
            r"replay_routes has shape \[1, 1, 4, 2\]; give \[2, 1, 4, 2\]",
        ),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        MoETransformer(CONFIGS["full"])(**arguments)


def test_documents_packed_beyond_the_models_range_are_fine_and_one_such_document_is_not():
    model = MoETransformer(CONFIGS["full"])
    tokens, ids = _tokens(1, 300), (torch.arange(300) // 150).unsqueeze(0)
    assert _logits(model, tokens, document_ids=ids).shape[1] == 300
    with pytest.raises(ValueError, match="max_position_embeddings = 256"):
        model(tokens, document_ids=torch.zeros_like(ids))


def test_an_unknown_recomputation_is_named():
    with pytest.raises(ValueError, match=r"recomputation = 'some'.*selective"):
        MoETransformer(CONFIGS["full"]).set_recomputation("some")  # type: ignore[arg-type]


def test_the_loss_is_asked_for_with_labels():
    output = MoETransformer(CONFIGS["full"])(_tokens(1, 4))
    with pytest.raises(ValueError, match="call the model with labels"):
        _ = output.loss
