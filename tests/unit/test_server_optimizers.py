"""Optimisers at the coordinator, against the numbers of the papers' formulas and against torch's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from coordinator.optimizers import adagrad, adam, momentum, sgd, yogi
from coordinator.strategies import advance, resolve

MODEL = np.array([1, -2, 0.5], np.float32)
DELTAS = np.array([[0.1, -0.2, 0.05], [0.05, 0.1, -0.02], [-0.03, 0.04, 0.01]], np.float32)


def run(step, deltas=DELTAS, model=MODEL):
    """Take steps; what is remembered goes through float32, as through a checkpoint."""
    memory = ()
    for delta in deltas:
        model, memory = step(model, delta, memory)
    return model


@pytest.mark.parametrize(
    ("step", "steps", "expected"),
    [
        (sgd(1.0), 3, [1.12, -2.06, 0.54]),
        (momentum(1.0, 0.9, nesterov=False), 3, [1.336, -2.312, 0.6075]),
        (momentum(1.0, 0.9, nesterov=True), 3, [1.4224, -2.3408, 0.63675]),
        (adagrad(0.1, 1e-3), 1, [1.0990049999, -2.0995012500, 0.5980199980]),
        (adagrad(0.1, 1e-3), 3, [1.1176350091, -2.0374477739, 0.5794913107]),
        (adam(0.1, 0.9, 0.99, 1e-3, bias_correction=True), 1, [1.0909090909, -2.0952380952, 0.5833333333]),
        (adam(0.1, 0.9, 0.99, 1e-3, bias_correction=True), 3, [1.2254856939, -2.1294151306, 0.6446628260]),
    ],
)
def test_known_numbers(step, steps, expected):
    assert run(step, DELTAS[:steps]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rule", [adam, yogi])
def test_the_adaptive_ones_by_hand(rule):
    x, m, v = MODEL.astype(float), np.zeros(3), np.full(3, 1e-6)
    for delta in DELTAS.astype(float):
        m = 0.9 * m + 0.1 * delta
        v = 0.99 * v + 0.01 * delta**2 if rule is adam else v - 0.01 * delta**2 * np.sign(v - delta**2)
        x = x + 0.3 * m / (v**0.5 + 1e-3)
    assert run(rule(0.3, 0.9, 0.99, 1e-3, bias_correction=False)) == pytest.approx(x, rel=1e-5)


@given(st.integers(0, 2**32), st.sampled_from(["momentum", "nesterov", "adagrad", "adam"]))
def test_they_are_torchs_where_the_delta_is_the_negative_gradient(seed, name):
    rng = np.random.default_rng(seed)
    deltas = rng.normal(size=(6, 4)).astype(np.float32)
    start = rng.normal(size=4).astype(np.float32)
    weights = torch.nn.Parameter(torch.from_numpy(start.copy()))
    ours, theirs = {
        "momentum": (momentum(0.1, 0.8, nesterov=False), torch.optim.SGD([weights], 0.1, momentum=0.8)),
        "nesterov": (
            momentum(0.1, 0.8, nesterov=True),
            torch.optim.SGD([weights], 0.1, momentum=0.8, nesterov=True),
        ),
        "adagrad": (
            adagrad(0.1, 1e-6),
            torch.optim.Adagrad([weights], 0.1, eps=1e-6, initial_accumulator_value=1e-12),
        ),
        "adam": (
            adam(0.1, 0.9, 0.99, 1e-9, bias_correction=True),
            torch.optim.Adam([weights], 0.1, (0.9, 0.99), eps=1e-9),
        ),
    }[name]
    for delta in deltas:
        weights.grad = torch.from_numpy(-delta)
        theirs.step()
    assert run(ours, deltas, start) == pytest.approx(weights.detach().numpy(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    "text",
    [
        "fedavgm",
        "fedavgm(nesterov=True)",
        "fedadagrad",
        "fedadam",
        "fedadam(bias_correction=True)",
        "fedyogi",
        "fedyogi(bias_correction=True)",
    ],
)
def test_a_run_that_is_resumed_from_what_was_remembered_goes_on_bit_by_bit(text):
    through, memory = MODEL, ()
    for delta in DELTAS:
        through, memory = advance(resolve(text), through, delta, memory)
    model, memory = MODEL, ()
    for delta in DELTAS:
        saved = (model.tobytes(), [part.tobytes() for part in memory])
        model = np.frombuffer(saved[0], np.float32)
        memory = tuple(np.frombuffer(part, np.float32) for part in saved[1])
        model, memory = advance(resolve(text), model, delta, memory)
    assert model.tobytes() == through.tobytes()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("fedavgm(momentum=1)", "momentum must be at least 0 and below 1"),
        ("fedadam(beta1=-0.1)", "beta1"),
        ("fedadam(beta2=1.0)", "beta2"),
        ("fedyogi(tau=0)", "tau must be a number above 0"),
        ("fedadagrad(lr='x')", "lr must be"),
    ],
)
def test_options_that_make_no_sense_are_refused(text, why):
    with pytest.raises(ConfigError, match=why):
        resolve(text)
