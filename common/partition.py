"""Who holds what: one data set dealt out to clients.

Laws: 1. Every index is dealt exactly once. 2. No client is empty. 3. Same arguments, same deal.
Each part is ascending: the order of examples within a client is the trainer's affair.
A partition of your own is `(**options) -> Deal`; that it keeps laws 1 and 2 is checked.
Shapes: labels int64[n]; a deal is a list of int64 arrays, one for each client.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from common import plugins
from common.errors import ConfigError, UsageError

Indices = NDArray[np.int64]
Labels = NDArray[np.int64]
ALPHA_MIN, ALPHA_MAX = 1e-3, 1e6  # beyond them, shares are no longer numbers


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """What is known of the examples that are dealt out."""

    count: int
    labels: Labels | None = None  # [count], the class of each; None where there are none, or no integers
    owners: NDArray[Any] | None = None  # [count], whose each is, by an id of any kind; None where nobody says


Deal = Callable[[Examples, int, int], Sequence[Indices]]  # (examples, num_clients, seed) -> parts


def iid() -> Deal:
    """Deal at random, in equal parts."""

    def dealt(examples: Examples, num_clients: int, seed: int) -> list[Indices]:
        _check_enough(examples.count, num_clients)
        order = np.random.default_rng(seed).permutation(examples.count)
        return [np.sort(part) for part in np.array_split(order, num_clients)]

    return dealt


def dirichlet(alpha: float = 0.5, min_examples: int = 1) -> Deal:
    """Deal each class in shares drawn from Dir(alpha): the smaller alpha, the more clients differ.

    Source: Li et al. 2022, §IV "label distribution skew" (arXiv:2102.02079), after Hsu et al. 2019.
    Unlike the paper: who gets fewer than `min_examples` is given some by whoever has most, instead of drawing
    all again until chance is kind, which with many clients it never is.
    """
    _check_alpha(alpha)
    plugins.require_whole(1, min_examples=min_examples)

    def dealt(examples: Examples, num_clients: int, seed: int) -> list[Indices]:
        labels = _labels("dirichlet", examples)
        _check_enough(len(labels), num_clients, min_examples)
        rng = np.random.default_rng(seed)
        parts: list[list[int]] = [[] for _ in range(num_clients)]
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            for part, cut in zip(parts, _in_shares(members, num_clients, alpha, rng), strict=True):
                part.extend(cut.tolist())
        return _topped_up(parts, min_examples, rng)

    return dealt


def quantity(alpha: float = 0.5, min_examples: int = 1) -> Deal:
    """Deal at random, in parts of sizes drawn from Dir(alpha): the smaller alpha, the more sizes differ.

    Source: Li et al. 2022, §IV "quantity skew" (arXiv:2102.02079), where alpha is β.
    Unlike the paper: too small a part is topped up, as in `dirichlet`.
    """
    _check_alpha(alpha)
    plugins.require_whole(1, min_examples=min_examples)

    def dealt(examples: Examples, num_clients: int, seed: int) -> list[Indices]:
        _check_enough(examples.count, num_clients, min_examples)
        rng = np.random.default_rng(seed)
        cut = _in_shares(rng.permutation(examples.count), num_clients, alpha, rng)
        return _topped_up([part.tolist() for part in cut], min_examples, rng)

    return dealt


def shards(per_client: int = 2) -> Deal:
    """Sort by label, cut into equal shards, deal each client some: few classes for each.

    Source: McMahan et al. 2017, §3 (arXiv:1602.05629), with 2 shards for each client.
    """
    plugins.require_whole(1, per_client=per_client)

    def dealt(examples: Examples, num_clients: int, seed: int) -> list[Indices]:
        labels = _labels("shards", examples)
        _check_enough(len(labels), num_clients, per_client)
        cut = np.array_split(np.argsort(labels, kind="stable"), num_clients * per_client)
        order = np.random.default_rng(seed).permutation(len(cut)).reshape(num_clients, per_client)
        return [np.sort(np.concatenate([cut[shard] for shard in hand])) for hand in order]

    return dealt


def classes(k: int = 2) -> Deal:
    """Give each client k classes, and deal each class in equal parts to those that have it.

    Source: Li et al. 2022, §IV "quantity-based label imbalance", #C = k (arXiv:2102.02079).
    Unlike the paper: of the classes, a client gets those that the fewest have so far, and chance decides among
    these only. So no class is left without a client, and its examples with it.
    """
    plugins.require_whole(1, k=k)

    def dealt(examples: Examples, num_clients: int, seed: int) -> list[Indices]:
        labels = _labels("classes", examples)
        _check_enough(len(labels), num_clients, k)
        rng = np.random.default_rng(seed)
        there_are, sizes = np.unique(labels, return_counts=True)
        holders = _holders(len(there_are), num_clients, k, rng)
        parts: list[list[Indices]] = [[] for _ in range(num_clients)]
        for label, size, having in zip(there_are, sizes, holders, strict=True):
            if size < len(having):
                raise ConfigError(
                    f"class {label} has {size} examples for {len(having)} clients: lower k, or take fewer clients"
                )
            members = rng.permutation(np.flatnonzero(labels == label))
            for client, cut in zip(having, np.array_split(members, len(having)), strict=True):
                parts[client].append(cut)
        return [np.sort(np.concatenate(part)) for part in parts]

    return dealt


def natural() -> Deal:
    """Deal by owner: one whole owner for each client, or several where there are more owners than clients.

    Source: Caldas et al. 2018, LEAF (arXiv:1812.01097): writers, users, devices as they are.
    """

    def dealt(examples: Examples, num_clients: int, seed: int) -> list[Indices]:
        if examples.owners is None:
            raise ConfigError("this data set does not say whose example each is, as natural needs it")
        there_are, whose = np.unique(examples.owners, return_inverse=True)
        if len(there_are) < num_clients or num_clients < 1:
            raise ConfigError(
                f"{len(there_are)} owners of examples cannot be dealt out to {num_clients} clients"
            )
        client_of = np.empty(len(there_are), np.int64)  # [owners]
        order = np.random.default_rng(seed).permutation(len(there_are))
        for client, hand in enumerate(np.array_split(order, num_clients)):
            client_of[hand] = client
        takers = client_of[whose]  # [count]
        sizes = np.bincount(takers, minlength=num_clients)
        return np.split(np.argsort(takers, kind="stable"), np.cumsum(sizes)[:-1])

    return dealt


PARTITIONS: Mapping[str, Callable[..., Deal]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "shards": shards,
    "quantity": quantity,
    "classes": classes,
    "natural": natural,
}


def resolve(text: str) -> Deal:
    """Find `iid`, `classes(k=3)`, an installed one, or `package.module:attribute`.

    Raises: UsageError for what is not there, ConfigError for options that it does not take.
    """
    name, options = plugins.parse(text)
    found = plugins.find("fedmq.partitions", PARTITIONS, name)
    made = plugins.call(name, found, **options) if callable(found) else found
    if not callable(made):
        raise UsageError(f"partition {name!r} is not a function of its options that returns a Deal")
    return cast("Deal", made)


def deal(text: str, examples: Examples, num_clients: int, seed: int) -> list[Indices]:
    """Deal examples out by what `text` names. Raises: UsageError, ConfigError."""
    given = resolve(text)(examples, num_clients, seed)
    try:
        parts = [np.sort(np.asarray(part)) for part in given]
        whole = np.sort(np.concatenate(parts))
    except (TypeError, ValueError) as error:
        raise UsageError(f"partition {text!r} did not return arrays of indices: {error}") from None
    if len(parts) != num_clients or not all(map(len, parts)):
        raise UsageError(f"partition {text!r} left clients without examples")
    if not np.array_equal(whole, np.arange(examples.count)) or whole.dtype.kind not in "iu":
        raise UsageError(f"partition {text!r} did not deal every example exactly once")
    return [part.astype(np.int64) for part in parts]


# --- what they share ------------------------------------------------------------------------------


def _labels(name: str, examples: Examples) -> Labels:
    if examples.labels is None:
        raise ConfigError(
            f"this data set has no integer labels, as {name} needs them; iid and quantity do not"
        )
    return examples.labels


def _check_alpha(alpha: object) -> None:
    if not isinstance(alpha, int | float) or not ALPHA_MIN <= alpha <= ALPHA_MAX:
        raise ConfigError(f"alpha must be a number from {ALPHA_MIN:g} to {ALPHA_MAX:g}, not {alpha!r}")


def _check_enough(have: int, num_clients: int, each: int = 1) -> None:
    need = num_clients * each
    if need < 1:
        raise ConfigError("there must be at least one client")
    if have < need:
        raise ConfigError(f"{have} examples cannot be dealt out where at least {need} are needed")


def _in_shares(members: Indices, num_clients: int, alpha: float, rng: np.random.Generator) -> list[Indices]:
    """Cut into parts whose sizes are shares drawn from Dir(alpha)."""
    shares = rng.dirichlet(np.full(num_clients, alpha))  # [num_clients], sums to 1
    return np.split(members, (np.cumsum(shares)[:-1] * len(members)).astype(np.int64))


def _holders(num_classes: int, num_clients: int, k: int, rng: np.random.Generator) -> list[list[int]]:
    """Say for each class which clients have it: k classes for each client, numbers of clients as even as can be."""
    if k > num_classes:
        raise ConfigError(f"k is {k}, and there are {num_classes} classes")
    if num_clients * k < num_classes:
        raise ConfigError(
            f"{num_clients} clients with {k} classes each cannot have all {num_classes} classes between them",
            advice=f"Take k={-(-num_classes // num_clients)}, or {-(-num_classes // k)} clients.",
        )
    holders: list[list[int]] = [[] for _ in range(num_classes)]
    for client in range(num_clients):
        order = rng.permutation(num_classes)
        rarest = sorted(order.tolist(), key=lambda label: len(holders[label]))
        for label in rarest[:k]:
            holders[label].append(client)
    return holders


def _topped_up(parts: list[list[int]], min_examples: int, rng: np.random.Generator) -> list[Indices]:
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
    return [np.sort(np.array(part, dtype=np.int64)) for part in parts]
