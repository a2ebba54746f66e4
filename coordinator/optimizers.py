"""Optimisers at the coordinator: how a round's delta moves the model.

    step(model, delta, memory) -> the next model, and what the optimiser remembers

Δ is a direction in which the loss falls: the model moves along it, x + η(…). Formulas are those of Reddi et al. 2021,
Algorithm 2 (arXiv:2003.00295), and are computed in float64.
Shapes: model, delta and each part of the memory float32[d]; the memory is empty before the first step.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from common import plugins
from common.tensors import Vector

Memory = tuple[Vector, ...]
Step = Callable[[Vector, Vector, Memory], tuple[Vector, Memory]]
Real = NDArray[np.float64]


def sgd(lr: float) -> Step:
    """x + ηΔ."""
    plugins.require_above_zero(lr=lr)

    def step(model: Vector, delta: Vector, memory: Memory) -> tuple[Vector, Memory]:
        return model + np.float32(lr) * delta, memory

    return step


def momentum(lr: float, beta: float, *, nesterov: bool) -> Step:
    """v = βv + Δ; x + ηv, or with Nesterov's look ahead x + η(Δ + βv). Hsu et al. 2019 (arXiv:1909.06335)."""
    plugins.require_above_zero(lr=lr)
    plugins.require_share(momentum=beta)

    def step(model: Vector, delta: Vector, memory: Memory) -> tuple[Vector, Memory]:
        (before,) = memory or (np.zeros_like(delta),)
        speed = beta * _real(before) + delta
        along = delta + beta * speed if nesterov else speed
        return _single(model + lr * along), (_single(speed),)

    return step


def adagrad(lr: float, tau: float) -> Step:
    """v = v + Δ², from τ²; x + η Δ / (√v + τ)."""
    plugins.require_above_zero(lr=lr, tau=tau)

    def step(model: Vector, delta: Vector, memory: Memory) -> tuple[Vector, Memory]:
        (before,) = memory or (np.full_like(delta, tau**2),)
        squares = _real(before) + np.square(_real(delta))
        return _single(model + lr * delta / (np.sqrt(squares) + tau)), (_single(squares),)

    return step


def adam(lr: float, beta1: float, beta2: float, tau: float, *, bias_correction: bool) -> Step:
    """m = β₁m + (1−β₁)Δ; v = β₂v + (1−β₂)Δ²; x + η m / (√v + τ)."""

    def squares(before: Real, delta: Real) -> Real:
        return beta2 * before + (1 - beta2) * np.square(delta)

    return _adaptive(squares, lr, beta1, beta2, tau, bias_correction=bias_correction)


def yogi(lr: float, beta1: float, beta2: float, tau: float, *, bias_correction: bool) -> Step:
    """m as Adam; v = v − (1−β₂) Δ² sign(v − Δ²); x as Adam."""

    def squares(before: Real, delta: Real) -> Real:
        square = np.square(delta)
        return before - (1 - beta2) * square * np.sign(before - square)

    return _adaptive(squares, lr, beta1, beta2, tau, bias_correction=bias_correction)


def _adaptive(
    squares: Callable[[Real, Real], Real],
    lr: float,
    beta1: float,
    beta2: float,
    tau: float,
    *,
    bias_correction: bool,
) -> Step:
    """Take v from τ² and no correction; with it, from 0 and η √(1−β₂ᵗ)/(1−β₁ᵗ).

    The correction: Kingma and Ba 2015, Algorithm 1 (arXiv:1412.6980). The number of the step rides along in the memory,
    of each element the same.
    """
    plugins.require_above_zero(lr=lr, tau=tau)
    plugins.require_share(beta1=beta1, beta2=beta2)

    def step(model: Vector, delta: Vector, memory: Memory) -> tuple[Vector, Memory]:
        mean, square, *count = memory or _nothing(delta)
        mean_ = beta1 * _real(mean) + (1 - beta1) * delta
        square_ = squares(_real(square), _real(delta))
        number = int(count[0][0]) + 1 if bias_correction else 1
        rate = lr * np.sqrt(1 - beta2**number) / (1 - beta1**number) if bias_correction else lr
        kept = (np.full_like(delta, number),) if bias_correction else ()
        stepped = model + rate * mean_ / (np.sqrt(square_) + tau)
        return _single(stepped), (_single(mean_), _single(square_), *kept)

    def _nothing(delta: Vector) -> Memory:
        zero = np.zeros_like(delta)
        return (zero, zero, zero) if bias_correction else (zero, np.full_like(delta, tau**2))

    return step


def _real(vector: Vector) -> Real:
    return vector.astype(np.float64)


def _single(vector: Real) -> Vector:
    return vector.astype(np.float32)
