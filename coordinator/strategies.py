"""Strategies: what a round's updates do to the model.

    weigh(update) -> how much it counts       combine(d) -> an aggregator
    step(model, delta, memory) -> the next model, and what the strategy remembers

A strategy is a value of three functions. Memory goes in and comes out, so it can be written to a checkpoint,
and one strategy serves many runs. One of your own is such a value, or a function (**options) returning one.
Shapes: model, delta and each part of the memory float32[d].
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from common import limits, plugins
from common.errors import ConfigError, UsageError
from common.messages import Update
from common.tensors import Vector
from coordinator.aggregators import Aggregator, Mean

Memory = tuple[Vector, ...]  # empty before the first step
Step = Callable[[Vector, Vector, Memory], tuple[Vector, Memory]]


@dataclass(frozen=True, slots=True)
class Strategy:
    """How updates are weighed, combined and applied."""

    weigh: Callable[[Update], float]
    combine: Callable[[int], Aggregator]
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


def sgd(lr: float) -> Step:
    """Move the model along the delta: x + ηΔ."""

    def step(model: Vector, delta: Vector, memory: Memory) -> tuple[Vector, Memory]:
        return model + np.float32(lr) * delta, memory

    return step


def fedavg(lr: float = 1.0) -> Strategy:
    """Federated averaging: McMahan et al. 2017, Algorithm 1 (arXiv:1602.05629), with the coordinator's η."""
    return Strategy(by_examples, Mean, sgd(_rate("fedavg", lr)))


def fedbuff(lr: float = 1.0) -> Strategy:
    """Buffered asynchronous averaging: Nguyen et al. 2022, Algorithm 1 (arXiv:2106.06639); x + η (1/K) Σ s(τ)Δ.

    Every update counts the same; `merge` scales each delta by s(τ), so the mean over the K that were merged is the sum.
    """
    return Strategy(lambda _: 1.0, Mean, sgd(_rate("fedbuff", lr)))


def _rate(name: str, lr: float) -> float:
    if not (isinstance(lr, int | float) and 0 < lr < np.inf):
        raise ConfigError(f"{name}: lr must be a number above 0, not {lr!r}")
    return lr


STRATEGIES: Mapping[str, Callable[..., Strategy]] = {"fedavg": fedavg, "fedbuff": fedbuff}


def resolve(text: str) -> Strategy:
    """Find `fedavg`, `fedavg(lr=0.5)`, an installed one, or `package.module:attribute`.

    Raises: UsageError for what is not there, ConfigError for options that it does not take.
    """
    name, options = plugins.parse(text)
    found = plugins.find("fedmq.strategies", STRATEGIES, name)
    if callable(found):
        found = plugins.call(name, found, **options)
    elif options:
        raise ConfigError(f"{name} is a strategy as it is and takes no options")
    if not isinstance(found, Strategy):
        raise UsageError(
            f"{name!r} is a {type(found).__name__}, not a Strategy or a function that returns one"
        )
    return found


def merge(
    strategy: Strategy, model: Vector, updates: Iterable[tuple[Vector, float, int]], memory: Memory
) -> tuple[Vector, Memory] | None:
    """Merge (delta, weight, staleness) in their order; None where the result is not finite.

    An audit merges with this too: the same updates give the same model, bit for bit. Raises: ConfigError.
    """
    aggregate = strategy.combine(model.size)
    for delta, weight, staleness in updates:
        aggregate.add(discounted(delta, staleness), weight)
    return advance(strategy, model, aggregate.result(), memory)


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
