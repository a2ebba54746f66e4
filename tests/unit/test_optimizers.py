"""Ours against torch's: step by step on one module, with gradients that have nothing to do with a loss."""

import numpy as np
import pytest
import torch

from common import models
from common.errors import ConfigError
from common.messages import Plan
from edge_client.optimizers import make_optimizer, step_norm


def follow(module: torch.nn.Module, optimizer: object) -> list[np.ndarray]:
    chance = torch.Generator().manual_seed(0)
    path = []
    for _ in range(20):
        for weight in module.parameters():
            weight.grad = torch.randn(weight.shape, generator=chance)
        optimizer.step()
        path.append(models.get_flat(module))
    return path


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs(momentum, decay):
    ours, theirs = models.build("linear", (4,), 3), models.build("linear", (4,), 3)
    plan = Plan(lr=0.1, momentum=momentum, weight_decay=decay)
    oracle = torch.optim.SGD(theirs.parameters(), 0.1, momentum=momentum, weight_decay=decay)
    for mine, other in zip(
        follow(ours, make_optimizer(ours.parameters(), plan)), follow(theirs, oracle), strict=True
    ):
        assert mine == pytest.approx(other, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_torchs(decay):
    ours, theirs = models.build("linear", (4,), 3), models.build("linear", (4,), 3)
    plan = Plan(lr=0.1, optimizer="adam", weight_decay=decay)
    oracle = torch.optim.Adam(theirs.parameters(), 0.1, weight_decay=decay)
    for mine, other in zip(
        follow(ours, make_optimizer(ours.parameters(), plan)), follow(theirs, oracle), strict=True
    ):
        assert mine == pytest.approx(other, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_what_has_no_gradient_stays(name):
    module = models.build("linear", (4,), 3)
    before = models.get_flat(module)
    optimizer = make_optimizer(module.parameters(), Plan(optimizer=name, weight_decay=1.0))
    optimizer.step()
    assert np.array_equal(models.get_flat(module), before)


def test_an_unknown_one_is_told_those_that_are():
    with pytest.raises(ConfigError, match="sgd, adam"):
        make_optimizer([], Plan(optimizer="lion"))


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 40])
def test_the_norm_of_the_steps_is_wangs_closed_form(rho, steps):
    closed = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    assert step_norm(Plan(momentum=rho), steps) == pytest.approx(closed, rel=1e-12)


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_the_norm_of_the_steps_is_how_each_gradient_counts_in_the_delta(rho):
    plan, steps = Plan(lr=0.1, momentum=rho, proximal_mu=0.3), 15

    def moved(gradients: np.ndarray) -> float:
        w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = make_optimizer([w], plan)
        for gradient in gradients:
            w.grad = gradient + plan.proximal_mu * w.detach()
            optimizer.step()
        return -w.item() / plan.lr

    counts = [moved(torch.eye(steps, dtype=torch.float64)[:, i]) for i in range(steps)]
    assert step_norm(plan, steps) == pytest.approx(sum(counts), rel=1e-9)


@pytest.mark.parametrize(
    "plan", [Plan(optimizer="adam"), Plan(keep_momentum=True), Plan(lr=0.5, proximal_mu=2.1)]
)
def test_steps_that_are_no_sum_of_gradients_have_no_norm(plan):
    assert step_norm(plan, 3) is None
    assert step_norm(Plan(), 0) is None
