"""Who holds what: one data set dealt out to clients.

Laws: 1. Every index is dealt exactly once. 2. No client is empty. 3. Same arguments, same deal.
Each part is ascending: the order of examples within a client is the trainer's affair.
Shapes: labels int64[n]; a deal is a list of int64 arrays, one for each client.
"""

import heapq
import math

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError

Indices = NDArray[np.int64]


def iid(num_examples: int, num_clients: int, seed: int) -> list[Indices]:
    """Deal at random, in equal parts."""
    _check_enough(num_examples, num_clients)
    order = np.random.default_rng(seed).permutation(num_examples)
    return [np.sort(part) for part in np.array_split(order, num_clients)]


def dirichlet(
    labels: NDArray[np.int64], num_clients: int, alpha: float, seed: int, min_examples: int = 1
) -> list[Indices]:
    """Deal each class in shares drawn from Dir(alpha): the smaller alpha, the more clients differ.

    Source: Li et al. 2022, §IV "label distribution skew" (arXiv:2102.02079), after Hsu et al. 2019.
    Unlike the paper: who gets fewer than `min_examples` is given some by whoever has most, instead of drawing
    all again until chance is kind, which with many clients it never is.
    """
    if not (math.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"alpha must be a number above 0, not {alpha}")
    if min_examples < 1:
        raise ConfigError(f"min_examples must be at least 1, not {min_examples}")
    _check_enough(len(labels), num_clients * min_examples)
    rng = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in range(num_clients)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(num_clients, alpha))  # [num_clients], sums to 1
        cuts = (np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for part, dealt in zip(parts, np.split(members, cuts), strict=True):
            part.extend(dealt.tolist())
    _top_up(parts, min_examples, rng)
    return [np.sort(np.array(part, dtype=np.int64)) for part in parts]


def shards(labels: NDArray[np.int64], num_clients: int, shards_per_client: int, seed: int) -> list[Indices]:
    """Sort by label, cut into equal shards, deal each client some: few classes for each.

    Source: McMahan et al. 2017, §3 (arXiv:1602.05629), with 2 shards for each client.
    """
    if shards_per_client < 1:
        raise ConfigError(f"shards_per_client must be at least 1, not {shards_per_client}")
    _check_enough(len(labels), num_clients * shards_per_client)
    cut = np.array_split(np.argsort(labels, kind="stable"), num_clients * shards_per_client)
    order = np.random.default_rng(seed).permutation(len(cut)).reshape(num_clients, shards_per_client)
    return [np.sort(np.concatenate([cut[shard] for shard in hand])) for hand in order]


def _check_enough(have: int, need: int) -> None:
    if need < 1:
        raise ConfigError("there must be at least one client")
    if have < need:
        raise ConfigError(f"{have} examples cannot be dealt out where at least {need} are needed")


def _top_up(parts: list[list[int]], min_examples: int, rng: np.random.Generator) -> None:
    """Move examples from the largest parts to those below `min_examples`.

    While one part is below it, another is above it (the mean is not below), so a giver never falls below.
    A receiver's entry in the heap is then out of date, but too small to come to its top.
    """
    largest = [(-len(part), index) for index, part in enumerate(parts)]
    heapq.heapify(largest)
    for part in parts:
        while len(part) < min_examples:
            size, giver = largest[0]
            part.append(parts[giver].pop(int(rng.integers(-size))))
            heapq.heapreplace(largest, (size + 1, giver))
