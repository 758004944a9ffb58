"""The kernels that compute experts, against experts computed token by token: forward, backward, bits, precision."""

import pytest
import torch
from torch import Tensor

from tests.experts_reference import CLOSE, experts_token_by_token, matrices_of, random_tensor
from train.model.experts import KINDS, Experts, Kernel, run_loop
from train.model.moe import NO_EXPERT


def _spread(tokens: int, top_k: int) -> Tensor:
    return random_tensor(tokens, 5, seed=11).topk(top_k).indices


ROUTES: dict[str, Tensor] = {
    "spread": _spread(21, 2),
    "top 1": _spread(21, 1),
    "all experts": _spread(7, 5),
    "experts without a token": torch.tensor([[0, 3]] * 9 + [[3, 0]] * 2),
    "first and last expert without a token": torch.tensor([[2, 1], [1, 3], [3, 2]]),
    "one expert for all": torch.full((13, 1), 2),
    "gaps": torch.where(random_tensor(21, 2, seed=12) > 0, _spread(21, 2), NO_EXPERT),
    "one row": torch.tensor([[NO_EXPERT, NO_EXPERT], [NO_EXPERT, 4], [NO_EXPERT, NO_EXPERT]]),
    "nowhere": torch.full((6, 2), NO_EXPERT),
    "no token": torch.zeros(0, 2, dtype=torch.long),
}
Differentiable = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(params=ROUTES)
def ids(request: pytest.FixtureRequest) -> Tensor:
    return ROUTES[request.param]


def _inputs(ids: Tensor, *, hidden: int = 16, width: int = 8, experts: int = 5) -> Differentiable:
    """x, weights, w1, w3, w2."""
    shapes = [(len(ids), hidden), tuple(ids.shape), (experts, width, hidden), (experts, width, hidden)]
    shapes.append((experts, hidden, width))
    x, weights, w1, w3, w2 = (
        random_tensor(*shape, seed=seed, std=0.5).requires_grad_() for seed, shape in enumerate(shapes)
    )
    return x, weights, w1, w3, w2


def _run(kernel: Kernel, ids: Tensor, inputs: Differentiable) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output and gradients of x, weights, w1, w3, w2; a kernel gives each of them, zero where nothing depends on it."""
    x, weights, w1, w3, w2 = inputs
    out = KINDS[kernel](x, ids, weights, (w1, w3, w2))
    return out, torch.autograd.grad(out, inputs, random_tensor(*out.shape, seed=20).to(out.dtype))


@pytest.mark.parametrize("kernel", KINDS)
def test_a_kernel_equals_experts_token_by_token_with_all_gradients(kernel: Kernel, ids: Tensor):
    inputs = _inputs(ids)
    out, gradients = _run(kernel, ids, inputs)
    x, weights, w1, w3, w2 = inputs
    expected = experts_token_by_token(x, ids, weights, (w1, w3, w2))
    wanted: tuple[Tensor | None, ...] = (None,) * 5
    if expected.requires_grad:
        wanted = torch.autograd.grad(expected, inputs, random_tensor(*out.shape, seed=20), allow_unused=True)
    torch.testing.assert_close(out, expected, **CLOSE)
    names = ("x", "weights", "w1", "w3", "w2")
    for name, argument, gradient, want in zip(names, inputs, gradients, wanted, strict=True):
        expected = torch.zeros_like(argument) if want is None else want
        torch.testing.assert_close(gradient, expected, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


def test_the_kernels_equal_each_other_with_all_gradients(ids: Tensor):
    inputs = _inputs(ids)
    out, gradients = _run("loop", ids, inputs)
    expected, wanted = _run("grouped_mm", ids, inputs)
    torch.testing.assert_close(out, expected, **CLOSE)
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, want, **CLOSE)


@pytest.mark.parametrize("kernel", KINDS)
def test_a_kernel_gives_the_same_bits_again(kernel: Kernel, ids: Tensor):
    first, gradients = _run(kernel, ids, _inputs(ids))
    for _ in range(3):
        again, others = _run(kernel, ids, _inputs(ids))
        assert torch.equal(again, first)
        assert all(torch.equal(a, b) for a, b in zip(others, gradients, strict=True))


@pytest.mark.parametrize(
    "routes",
    [
        torch.tensor([[0, 2], [2, 0], [0, 2], [2, 0]]),
        torch.tensor([[0, NO_EXPERT], [NO_EXPERT, NO_EXPERT], [2, 0], [NO_EXPERT, 2]]),
    ],
    ids=["whole, an expert idle", "gaps, an expert idle"],
)
def test_the_hand_written_backward_of_the_loop_is_the_derivative(routes: Tensor):
    inputs = tuple(t.detach().double().requires_grad_() for t in _inputs(routes, hidden=3, width=2, experts=3))

    def run(x: Tensor, weights: Tensor, w1: Tensor, w3: Tensor, w2: Tensor) -> Tensor:
        return run_loop(x, routes, weights, (w1, w3, w2))

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("kernel", KINDS)
def test_under_bfloat16_autocast_the_output_is_bfloat16_and_close_and_gradients_keep_their_dtype(
    kernel: Kernel, ids: Tensor
):
    experts = Experts(16, 8, num_experts=5, kernel=kernel)
    x, weights, *matrices = _inputs(ids)
    with torch.no_grad():
        for mine, value in zip(matrices_of(experts), matrices, strict=True):
            mine.copy_(value)
    inputs = (x, weights, *matrices_of(experts))
    upstream = random_tensor(len(ids), 16, seed=20)
    expected = experts(x, ids, weights)
    wanted = torch.autograd.grad(expected, inputs, upstream)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = experts(x, ids, weights)
    gradients = torch.autograd.grad(out, inputs, upstream.bfloat16())
    assert expected.dtype == torch.float32
    assert out.dtype == torch.bfloat16
    for found, want in ((out, expected), *zip(gradients, wanted, strict=True)):
        scale = want.abs().max().item() if want.numel() else 0.0
        torch.testing.assert_close(found.float(), want, atol=0.02 * scale, rtol=0)
        assert found is out or found.dtype == want.dtype


def test_the_automatic_kernel_of_the_cpu_is_the_loop():
    routes = ROUTES["gaps"]
    x, weights, *matrices = _inputs(routes)
    outputs = []
    for kernel in ("auto", "loop"):
        experts = Experts(16, 8, num_experts=5, kernel=kernel)  # type: ignore[arg-type]
        with torch.no_grad():
            for mine, value in zip(matrices_of(experts), matrices, strict=True):
                mine.copy_(value)
        outputs.append(experts(x, routes, weights))
    assert torch.equal(*outputs)
    assert type(outputs[0].grad_fn) is type(outputs[1].grad_fn)
