"""Ours against torch's: step by step on one module, with gradients that have nothing to do with a loss."""

import numpy as np
import pytest
import torch

from common import models
from common.errors import ConfigError
from common.messages import Plan
from edge_client.optimizers import make_optimizer


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
