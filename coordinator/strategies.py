"""Strategies: what a round's updates do to the model.

    weigh(update) -> how much it counts       combine(deltas, weights) -> delta, an aggregator
    step(model, delta, memory) -> the next model, and what the strategy remembers

A strategy is a value of these three. Memory goes in and comes out, so it can be written to a checkpoint, and one
strategy serves many runs. One of your own is such a value, or a function (**options) returning one. To all of them
`combine="krum(f=2)"` gives another aggregator than the mean.
Shapes: model, delta and each part of the memory float32[d].
Not here: the steps of server optimisers (`optimizers`), the rules that combine (`aggregators`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common import limits, plugins
from common.errors import ConfigError, UsageError
from common.messages import Update
from common.tensors import Vector
from coordinator import aggregators, optimizers
from coordinator.aggregator import Aggregator
from coordinator.aggregators import mean
from coordinator.distances import Real
from coordinator.optimizers import Memory, Step, sgd
from coordinator.rows import Spooled


@dataclass(frozen=True, slots=True)
class Strategy:
    """How updates are weighed, combined and applied."""

    weigh: Callable[[Update], float]
    combine: Aggregator
    step: Step

    def weight(self, update: Update) -> float:
        """Weigh an update. Raises: ConfigError where a strategy of someone's own says what is no weight."""
        weight = float(self.weigh(update))
        if not 0 <= weight <= limits.FLOAT_MAX:
            raise ConfigError(f"the strategy gave an update the weight {weight}")
        return weight


def by_examples(update: Update) -> float:
    """Weigh a client by how many examples it trained on."""
    return float(update.examples)


def fedavg(lr: float = 1.0) -> Strategy:
    """Federated averaging: McMahan et al. 2017, Algorithm 1 (arXiv:1602.05629), with the coordinator's η."""
    return Strategy(by_examples, mean(), sgd(lr))


def fedavgm(lr: float = 1.0, momentum: float = 0.9, nesterov: bool = False) -> Strategy:
    """FedAvg with momentum at the coordinator: Hsu et al. 2019 (arXiv:1909.06335)."""
    return Strategy(by_examples, mean(), optimizers.momentum(lr, momentum, nesterov=nesterov))


def fedadagrad(lr: float = 0.1, tau: float = 1e-3) -> Strategy:
    """Adagrad at the coordinator: Reddi et al. 2021, Algorithm 2 (arXiv:2003.00295), with β₁ = 0."""
    return Strategy(by_examples, mean(), optimizers.adagrad(lr, tau))


def fedadam(
    lr: float = 0.1, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3, bias_correction: bool = False
) -> Strategy:
    """Adam at the coordinator: Reddi et al. 2021, Algorithm 2 (arXiv:2003.00295)."""
    return Strategy(
        by_examples, mean(), optimizers.adam(lr, beta1, beta2, tau, bias_correction=bias_correction)
    )


def fedyogi(
    lr: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
    bias_correction: bool = False,
) -> Strategy:
    """Yogi at the coordinator: Reddi et al. 2021, Algorithm 2 (arXiv:2003.00295)."""
    return Strategy(
        by_examples, mean(), optimizers.yogi(lr, beta1, beta2, tau, bias_correction=bias_correction)
    )


def fedbuff(lr: float = 1.0) -> Strategy:
    """Buffered asynchronous averaging: Nguyen et al. 2022, Algorithm 1 (arXiv:2106.06639); x + η (1/K) Σ s(τ)Δ.

    Every update counts the same; `merge` scales each delta by s(τ), so the mean over the K that were merged is the sum.
    """
    return Strategy(lambda _: 1.0, mean(), sgd(lr))


STRATEGIES: Mapping[str, Callable[..., Strategy]] = {
    "fedavg": fedavg,
    "fedavgm": fedavgm,
    "fedadagrad": fedadagrad,
    "fedadam": fedadam,
    "fedyogi": fedyogi,
    "fedbuff": fedbuff,
}


def resolve(text: str) -> Strategy:
    """Find `fedavg`, `fedadam(lr=0.5, combine="krum(f=2)")`, an installed one, or `package.module:attribute`.

    Raises: UsageError for what is not there, ConfigError for options that it does not take.
    """
    name, given = plugins.parse(text)
    options = dict(given)
    rule = options.pop("combine", None)
    found = plugins.find("fedmq.strategies", STRATEGIES, name)
    if callable(found):
        found = plugins.call(name, found, **options)
    elif options:
        raise ConfigError(f"{name} is a strategy as it is and takes no options")
    if not isinstance(found, Strategy):
        raise UsageError(
            f"{name!r} is a {type(found).__name__}, not a Strategy or a function that returns one"
        )
    return found if rule is None else replace(found, combine=aggregators.resolve(str(rule)))


@dataclass(frozen=True, slots=True)
class Contribution:
    """An update in a merge."""

    read: Callable[[], Vector]  # its delta: as often as the aggregator asks
    weight: float
    staleness: int = 0

    def delta(self) -> Vector:
        """Read the delta, scaled by its staleness."""
        return discounted(self.read(), self.staleness)


@dataclass(frozen=True, slots=True)
class Merged:
    """What came of a round."""

    model: Vector
    memory: Memory
    delta: Vector
    scores: Real | None  # by the aggregator's own measure, one for each contribution


def merge(
    strategy: Strategy,
    model: Vector,
    contributions: Sequence[Contribution],
    memory: Memory,
    spool: Path | None = None,
) -> Merged | None:
    """Merge in the given order; None where the result is not finite.

    An audit merges with this too: the same updates give the same model, bit for bit. `spool`: a directory with room for
    all deltas, for aggregators that read columns. Raises: ConfigError, OSError.
    """
    rows = Spooled([one.delta for one in contributions], model.size, spool)
    weights = np.array([one.weight for one in contributions])
    before, own = (memory[0], memory[1:]) if strategy.combine.remembers and memory else (None, memory)
    made = strategy.combine.judge(rows, weights, before)
    advanced = advance(strategy, model, made.delta, own)
    if advanced is None:
        return None
    stepped, remembered = advanced
    kept = (made.delta, *remembered) if strategy.combine.remembers else remembered
    return Merged(stepped, kept, made.delta, made.scores)


def discounted(delta: Vector, staleness: int) -> Vector:
    """Scale a delta by s(τ) = 1/√(1 + τ): Nguyen et al. 2022, FedBuff (arXiv:2106.06639).

    Unlike a weight so scaled, it does not cancel in a mean where all are equally stale.
    """
    return delta * np.float32(1 / math.sqrt(1 + staleness)) if staleness else delta


def advance(strategy: Strategy, model: Vector, delta: Vector, memory: Memory) -> tuple[Vector, Memory] | None:
    """Apply a round's delta; None where the result is not finite, and then model and memory stay as they are.

    Raises: ConfigError where a strategy of someone's own returns something that is no model.
    """
    with np.errstate(all="ignore"):  # what overflows is found below
        stepped, remembered = strategy.step(model, delta, memory)
        stepped = np.asarray(stepped, np.float32)
        remembered = tuple(np.asarray(part, np.float32) for part in remembered)
    for what, vector in (("made a model", stepped), *(("remembers a vector", part) for part in remembered)):
        if vector.shape != model.shape:
            raise ConfigError(f"the strategy {what} of the shape {vector.shape}, not {model.shape}")
    if not all(np.isfinite(vector).all() for vector in (stepped, *remembered)):
        return None
    return stepped, remembered
