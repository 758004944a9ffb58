"""AdapterRouter: known tasks are told apart, strange inputs are left alone."""

import pytest
import torch
from torch import Tensor

from train.continual.router import AdapterRouter, RouterConfig


def near(direction: int, *, seed: int, count: int = 200, width: int = 32) -> Tensor:
    """Vectors around a direction."""
    noise = 0.15 * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.one_hot(torch.tensor(direction), width) + noise


def build() -> AdapterRouter:
    router = AdapterRouter()
    for task in range(3):
        router.add(f"task {task}", near(task, seed=task))
    return router


def test_inputs_go_to_their_task_and_few_of_them_to_none() -> None:
    router = build()
    for task in range(3):
        routes = router.route(near(task, seed=10 + task, count=400))
        assert {route.nearest for route in routes} == {f"task {task}"}
        abstained = sum(route.task is None for route in routes) / 400
        assert abstained == pytest.approx(RouterConfig().abstain_share, abs=0.04)
        assert all((route.task is None) == (route.similarity < route.threshold) for route in routes)


def test_strange_inputs_go_to_no_task() -> None:
    routes = build().route(near(7, seed=5))
    assert [route.task for route in routes] == [None] * 200


def test_lengths_of_vectors_do_not_matter() -> None:
    router, inputs = build(), near(1, seed=6)
    assert [route.task for route in router.route(inputs)] == [route.task for route in router.route(3 * inputs)]


def test_a_saved_router_routes_the_same() -> None:
    router, inputs = build(), near(2, seed=7)
    other = AdapterRouter()
    other.load_state_dict(router.state_dict())
    assert other.route(inputs) == router.route(inputs)
    assert other.tasks == ("task 0", "task 1", "task 2")


def test_bad_input_is_refused() -> None:
    router = AdapterRouter()
    with pytest.raises(ValueError, match="knows no task"):
        router.route(near(0, seed=0))
    with pytest.raises(ValueError, match="has 5 inputs: the router needs at least 8"):
        router.add("small", near(0, seed=0, count=5))
    with pytest.raises(ValueError, match="other than zero"):
        router.add("zeros", torch.zeros(20, 8))
    router.add("one", near(0, seed=0))
    with pytest.raises(ValueError, match=r"shape \[1, 8\]"):
        router.route(torch.ones(1, 8))
