import numpy as np
import pytest

from common.errors import ConfigError, UsageError
from coordinator.aggregators import mean
from coordinator.optimizers import sgd
from coordinator.strategies import STRATEGIES, Contribution, Strategy, advance, by_examples, merge, resolve
from support.labs import HALVING
from support.updates import update

MODEL = np.array([1, -2, 0.5], np.float32)
DELTA = np.array([0.1, -0.2, 0.05], np.float32)


def step_of(text: str, memory: tuple[np.ndarray, ...] = ()):
    return advance(resolve(text), MODEL, DELTA, memory)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fedavg", [1.1, -2.2, 0.55]),
        ("fedavg(lr=0.5)", [1.05, -2.1, 0.525]),
        ("fedavg(lr=2)", [1.2, -2.4, 0.6]),
        ("support.labs:HALVING", [1.05, -2.1, 0.525]),
        ("support.labs:scaled", [1.2, -2.4, 0.6]),
        ("support.labs:scaled(by=3)", [1.3, -2.6, 0.65]),
    ],
)
def test_the_model_moves_along_the_delta(text, expected):
    model, _ = step_of(text)
    assert model.dtype == np.float32
    assert model == pytest.approx(expected, rel=1e-6)
    assert MODEL.tolist() == [1, -2, 0.5]


def test_one_whole_round_of_fedavg():
    strategy = resolve("fedavg")
    merged = merge(
        strategy,
        MODEL,
        [
            Contribution(lambda: DELTA, strategy.weigh(update("a", examples=30))),
            Contribution(lambda: -DELTA, strategy.weigh(update("b", examples=10))),
        ],
        (),
    )
    assert merged.model == pytest.approx(MODEL + DELTA / 2, rel=1e-6)
    assert merged.delta == pytest.approx(DELTA / 2, rel=1e-6)
    assert merged.memory == ()


def test_memory_goes_in_and_comes_out():
    _, memory = advance(HALVING, MODEL, DELTA, (MODEL,))
    assert [part.tolist() for part in memory] == [MODEL.tolist(), DELTA.tolist()]


def test_what_is_not_finite_replaces_nothing():
    assert advance(resolve("fedavg"), MODEL, DELTA * np.float32(np.nan), ()) is None
    assert advance(resolve("fedavg(lr=1e38)"), MODEL, DELTA * 1e3, ()) is None
    remembers = Strategy(by_examples, mean(), lambda model, delta, memory: (model, (*memory, delta)))
    assert advance(remembers, MODEL, np.full_like(DELTA, np.inf), ()) is None
    wide = Strategy(
        by_examples, mean(), lambda model, delta, memory: ((model + delta).astype(np.float64) * 1e300, memory)
    )
    assert advance(wide, MODEL, DELTA, ()) is None


def test_a_model_of_another_shape_is_refused():
    short = Strategy(by_examples, mean(), lambda model, delta, memory: ((model + delta)[1:], memory))
    with pytest.raises(ConfigError, match="shape"):
        advance(short, MODEL, DELTA, ())


def test_what_a_strategy_remembers_is_float32_of_the_models_shape():
    wide = Strategy(by_examples, mean(), lambda model, delta, _: (model, (delta.astype(np.float64) / 3,)))
    _, (remembered,) = advance(wide, MODEL, DELTA, ())
    assert remembered.dtype == np.float32
    odd = Strategy(by_examples, mean(), lambda model, delta, _: (model, (delta[:1],)))
    with pytest.raises(ConfigError, match="remembers a vector of the shape"):
        advance(odd, MODEL, DELTA, ())


@pytest.mark.parametrize("weight", [np.float64(2.5), np.float32(2.5), 2.5])
def test_a_weight_is_a_plain_number(weight):
    assert type(Strategy(lambda _: weight, mean(), sgd(1.0)).weight(update("a"))) is float


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), 1e301])
def test_what_is_no_weight_is_refused(weight):
    with pytest.raises(ConfigError, match="the weight"):
        Strategy(lambda _: weight, mean(), sgd(1.0)).weight(update("a"))


@pytest.mark.parametrize(
    ("text", "error", "why"),
    [
        ("fedsgd", UsageError, ", ".join(sorted(STRATEGIES))),
        ("fedavg(lr=", UsageError, "literals"),
        ("fedavg(rate=1)", ConfigError, "lr: float = 1.0"),
        ("fedavg(lr=0)", ConfigError, "above 0"),
        ("fedavg(lr='1')", ConfigError, "above 0"),
        ("fedbuff(lr=0)", ConfigError, "lr must be"),
        ("fedavg(lr=1e999)", ConfigError, "above 0"),
        ("support.labs:NUMBER", UsageError, "not a Strategy"),
        ("support.labs:not_a_module(input_shape=(), num_classes=3)", UsageError, "not a Strategy"),
        ("support.labs:HALVING(lr=1)", ConfigError, "no options"),
    ],
)
def test_what_cannot_be_resolved_is_said(text, error, why):
    with pytest.raises(error, match=why.replace("(", r"\(")):
        resolve(text)
