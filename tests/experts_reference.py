"""A small layer of experts, and experts computed token by token as their definition says."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from train.model.config import MoEConfig
from train.model.experts import Experts
from train.model.moe import NO_EXPERT

WIDTH, EXPERT_WIDTH, NUM_EXPERTS = 32, 16, 8
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def layer_config(**fields: Any) -> MoEConfig:
    values = {
        "hidden_size": WIDTH, "num_attention_heads": 4, "num_key_value_heads": 2, "moe_intermediate_size": EXPERT_WIDTH,
        "num_experts": NUM_EXPERTS, "num_experts_per_token": 2,
    }  # fmt: skip
    return MoEConfig.model_validate(values | fields)


def random_tensor(*shape: int, seed: int, std: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * std


def matrices_of(experts: Experts) -> tuple[Tensor, Tensor, Tensor]:
    return experts.w1, experts.w3, experts.w2


def experts_token_by_token(x: Tensor, ids: Tensor, weights: Tensor, matrices: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    w1, w3, w2 = matrices
    rows = [x.new_zeros(0, x.shape[1])]
    for token in range(len(x)):
        row = torch.zeros_like(x[token])
        for k, expert in enumerate(ids[token].tolist()):
            if expert != NO_EXPERT:
                hidden = F.silu(w1[expert] @ x[token]) * (w3[expert] @ x[token])
                row = row + weights[token, k] * (w2[expert] @ hidden)
        rows.append(row.unsqueeze(0))
    return torch.cat(rows)
