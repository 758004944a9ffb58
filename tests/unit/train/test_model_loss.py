"""The chunked loss against torch's cross entropy; labels of packed rows."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from train.model.loss import IGNORE, LanguageHead, linear_cross_entropy, next_token_labels


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 20), chunk=st.integers(1, 25), ignored=st.integers(0, 20), seed=st.integers(0, 99))
def test_loss_and_gradients_equal_torch_for_any_chunk(tokens: int, chunk: int, ignored: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, 8, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(13, 8, dtype=torch.float64, generator=generator).requires_grad_()
    labels = torch.randint(0, 13, (tokens,), generator=generator)
    labels[:ignored] = IGNORE
    expected = F.cross_entropy(hidden @ weight.T, labels, reduction="sum", ignore_index=IGNORE)
    wanted = torch.autograd.grad(expected * 0.3, (hidden, weight))
    found = linear_cross_entropy(hidden, weight, labels, chunk_tokens=chunk)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(torch.autograd.grad(found * 0.3, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_all_labels_ignored_is_zero_with_zero_gradients():
    head, hidden = LanguageHead(8, 13), torch.randn(1, 4, 8, requires_grad=True)
    loss = head(hidden, torch.full((1, 4), IGNORE))
    loss.backward()
    assert loss == 0
    assert hidden.grad is not None
    assert head.weight.grad is not None
    assert not hidden.grad.any()
    assert not head.weight.grad.any()


def test_a_frozen_head_still_gives_the_gradient_of_the_hidden_states():
    head, hidden = LanguageHead(8, 13).requires_grad_(False), torch.randn(1, 4, 8, requires_grad=True)
    labels = torch.tensor([[1, 2, 3, 4]])
    (gradient,) = torch.autograd.grad(head(hidden, labels), hidden)
    (wanted,) = torch.autograd.grad(F.cross_entropy(head(hidden)[0], labels[0], reduction="sum"), hidden)
    torch.testing.assert_close(gradient, wanted)


def test_under_autocast_the_matmuls_are_bf16_and_the_loss_is_fp32():
    head, hidden = LanguageHead(64, 50), torch.randn(1, 40, 64, requires_grad=True)
    labels = torch.randint(0, 50, (1, 40))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head(hidden, labels)
    loss.backward()
    rounded = hidden.detach().bfloat16() @ head.weight.bfloat16().T
    expected = F.cross_entropy(rounded[0].float(), labels[0], reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-3)
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32


def test_no_gradient_is_computed_where_none_is_wanted():
    with torch.no_grad():
        assert not linear_cross_entropy(torch.randn(3, 8), torch.randn(13, 8), torch.tensor([1, 2, 3])).requires_grad


def test_labels_stop_at_the_end_of_a_document_and_at_padding():
    tokens = torch.tensor([[5, 6, 7, 8, 9, 0]])
    documents = torch.tensor([[0, 0, 0, 1, 1, -1]])
    assert next_token_labels(tokens).tolist() == [[6, 7, 8, 9, 0, IGNORE]]
    assert next_token_labels(tokens, documents).tolist() == [[6, 7, IGNORE, 9, IGNORE, IGNORE]]


def test_a_label_beyond_the_vocabulary_is_an_error():
    with pytest.raises((RuntimeError, IndexError)):
        linear_cross_entropy(torch.randn(2, 8), torch.randn(13, 8), torch.tensor([1, 13]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_factor_on_the_loss_is_not_rounded_to_the_dtype_of_the_weights(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 8, generator=generator).to(dtype).requires_grad_() for n in (20, 32))
    labels = torch.randint(0, 32, (20,), generator=generator)
    whole = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels), (hidden, weight))
    part = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels) / 3, (hidden, weight))
    assert torch.equal(part[0], (whole[0].float() * torch.tensor(1 / 3)).to(dtype))
    torch.testing.assert_close(part[1].float(), whole[1].float() / 3, rtol=float(torch.finfo(dtype).eps), atol=0)


def test_a_float16_gradient_that_only_the_sum_over_all_tokens_overflows_stays_finite():
    count = 70_000
    hidden = torch.ones(count, 4, dtype=torch.float16)
    weight = torch.zeros(16, 4, dtype=torch.float16, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.zeros(count, dtype=torch.long), chunk_tokens=1000) / count
    (gradient,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(gradient[0].float(), torch.full((4,), 1 / 16 - 1), rtol=2e-3, atol=0)
