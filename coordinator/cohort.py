"""Who is asked in a round."""

from collections.abc import Iterable

import numpy as np

from common.ids import ClientId


def draw(clients: Iterable[ClientId], size: int | None, *, seed: int, number: int) -> tuple[ClientId, ...]:
    """Draw `size` clients for round `number`, uniformly and without replacement, sorted; None takes all.

    The draw depends on the seed, the round and the set of clients alone, so that a resumed run repeats it.
    """
    ordered = sorted(set(clients))
    if size is None or size >= len(ordered):
        return tuple(ordered)
    picked = np.random.default_rng([seed, number]).choice(len(ordered), size=size, replace=False)
    return tuple(ordered[index] for index in sorted(picked))


def plan_seed(seed: int, number: int) -> int:
    """Derive what chance in round `number`'s local training starts from."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
