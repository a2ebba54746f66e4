"""Attacks on a round: what bad clients send, knowing all that the honest ones do; or what they train on.

Sources: ALIE, Baruch et al. 2019 (arXiv:1902.06156); IPM, Xie et al. 2020 (arXiv:1903.03936); min-max, Shejwalkar and
Houmansadr 2021 (NDSS); scaled replacement and backdoors, Bagdasaryan et al. 2020 (arXiv:1807.00459).
Shapes: honest float32[m, d]; own float32[f, d], what the bad ones would have sent; first float32[f, d], what they would
have sent in the first round; result float32[f, d].
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch

Matrix = np.ndarray
SIDE = 3  # of a backdoor's square, in pixels


@dataclass(frozen=True)
class Seen:
    """What the bad clients of a round know."""

    honest: Matrix
    own: Matrix
    first: Matrix
    rng: np.random.Generator


Forge = Callable[[Seen], Matrix]
Poison = Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


def repeated(row, seen):
    return np.repeat(np.asarray(row, np.float32)[None], len(seen.own), axis=0)


def sign_flip(kappa):
    return lambda seen: repeated(-kappa * seen.honest.mean(0), seen)


def gaussian(seen):
    spread = seen.honest.std(0, ddof=1)
    return (seen.rng.normal(size=seen.own.shape) * spread * 10).astype(np.float32)


def alie_z(n, f):
    """Say how many standard deviations hide in the crowd: Φ⁻¹((n − f − s) / (n − f)) with s = ⌊n/2⌋ + 1 − f."""
    return NormalDist().inv_cdf((n - f - (n // 2 + 1 - f)) / (n - f))


def alie(seen):
    n, f = len(seen.honest) + len(seen.own), len(seen.own)
    return repeated(seen.honest.mean(0) - alie_z(n, f) * seen.honest.std(0, ddof=1), seen)


def ipm(epsilon):
    return lambda seen: repeated(-epsilon * seen.honest.mean(0), seen)


def min_max(seen):
    """The farthest against the spread that is no farther from any honest row than they are from one another."""
    mean, against = seen.honest.mean(0), -seen.honest.std(0, ddof=1)
    reach = max(float(np.linalg.norm(seen.honest - row, axis=1).max()) for row in seen.honest)
    low, high = 0.0, 1e3
    for _ in range(50):
        gamma = (low + high) / 2
        farthest = float(np.linalg.norm(seen.honest - (mean + gamma * against), axis=1).max())
        low, high = (gamma, high) if farthest <= reach else (low, gamma)
    return repeated(mean + low * against, seen)


def scaled_replacement(seen):
    return (len(seen.honest) + len(seen.own)) * seen.own


def free_rider(seen):
    return np.zeros_like(seen.own)


def stale(seen):
    return seen.first


def filled(value):
    return lambda seen: np.full_like(seen.own, value)


def label_flip(x, y, classes):
    return x, classes - 1 - y


def backdoor(x, y, classes):
    """Let what has the trigger be of class 0."""
    return triggered(x), torch.zeros_like(y)


def triggered(x):
    marked = x.clone()
    marked[..., :SIDE, :SIDE] = x.max()
    return marked


FORGED: dict[str, Forge] = {
    "sign flip": sign_flip(1),
    "sign flip x5": sign_flip(5),
    "gaussian": gaussian,
    "ALIE": alie,
    "IPM 0.1": ipm(0.1),
    "IPM 10": ipm(10),
    "min-max": min_max,
    "replacement": scaled_replacement,
    "free rider": free_rider,
    "stale flood": stale,
    "NaN": filled(np.nan),
    "inf": filled(np.inf),
}
POISONED: dict[str, Poison] = {"label flip": label_flip, "backdoor": backdoor}
