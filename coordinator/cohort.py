"""Who is asked in a round.

    uniform          by chance alone
    by_examples      by chance, the more often the more examples
    power_of_choice  of some that were drawn by examples, those with the largest loss
    fair             those who were asked least often: nobody starves, however slow or seldom here

A selection is a function (clients, records, size, rng) -> `size` of the clients; one of your own is that, or a function
(**options) that returns one and has no parameter `clients`.
Law: a draw depends on the seed, the round, who can be asked and what the run's rounds have shown: a resumed run repeats
it.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from common import plugins
from common.errors import ConfigError, UsageError
from common.ids import ClientId
from common.messages import Update


@dataclass(frozen=True, slots=True)
class Record:
    """What the rounds of a run have shown of a client."""

    asked: int = 0
    examples: int | None = None  # of its last update that counted
    loss: float | None = (
        None  # of a base: on its own held-out examples, or where it has none while it trained
    )


Records = Mapping[ClientId, Record]
Selection = Callable[[Sequence[ClientId], Records, int, np.random.Generator], Sequence[ClientId]]
NO_RECORDS: Records = MappingProxyType({})
_NEW = Record()


def uniform() -> Selection:
    """Draw uniformly, without replacement: McMahan et al. 2017, Algorithm 1 (arXiv:1602.05629)."""

    def select(
        clients: Sequence[ClientId], records: Records, size: int, rng: np.random.Generator
    ) -> Sequence[ClientId]:
        del records
        return _drawn(clients, None, size, rng)

    return select


def by_examples() -> Selection:
    """Draw in proportion to examples, without replacement; who has reported none counts as the mean of the others."""

    def select(
        clients: Sequence[ClientId], records: Records, size: int, rng: np.random.Generator
    ) -> Sequence[ClientId]:
        return _drawn(clients, _shares(clients, records), size, rng)

    return select


def power_of_choice(candidates: float = 2.0) -> Selection:
    """Draw `candidates` times as many by examples, and take those with the largest loss; an unknown one is the largest.

    Cho et al. 2022, Algorithm 1 (arXiv:2010.01243), with the losses that clients reported last (its variant rpow-d).
    """
    if not isinstance(candidates, int | float) or isinstance(candidates, bool) or not 1 <= candidates <= 1000:
        raise ConfigError(f"power_of_choice: candidates must be from 1 to 1000, not {candidates!r}")

    def select(
        clients: Sequence[ClientId], records: Records, size: int, rng: np.random.Generator
    ) -> Sequence[ClientId]:
        count = min(len(clients), max(size, round(candidates * size)))
        drawn = _drawn(clients, _shares(clients, records), count, rng)
        return sorted(drawn, key=lambda client: (-_loss(records.get(client, _NEW)), client))[:size]

    return select


def fair() -> Selection:
    """Take those who were asked least often, by chance where they were so equally often."""

    def select(
        clients: Sequence[ClientId], records: Records, size: int, rng: np.random.Generator
    ) -> Sequence[ClientId]:
        chance = dict(zip(clients, rng.permutation(len(clients)).tolist(), strict=True))
        return sorted(clients, key=lambda client: (records.get(client, _NEW).asked, chance[client]))[:size]

    return select


def _drawn(
    clients: Sequence[ClientId], shares: Sequence[float] | None, size: int, rng: np.random.Generator
) -> Sequence[ClientId]:
    picked = rng.choice(len(clients), size=size, replace=False, p=shares)
    return [clients[index] for index in picked]


def _shares(clients: Sequence[ClientId], records: Records) -> Sequence[float]:
    known = [records.get(client, _NEW).examples for client in clients]
    told = [examples for examples in known if examples is not None]
    usual = sum(told) / len(told) if told else 1.0
    weights = [usual if examples is None else examples for examples in known]
    return [weight / sum(weights) for weight in weights]


def _loss(record: Record) -> float:
    return float("inf") if record.loss is None else record.loss


SELECTIONS: Mapping[str, Callable[..., Selection]] = {
    "uniform": uniform,
    "by_examples": by_examples,
    "power_of_choice": power_of_choice,
    "fair": fair,
}


def resolve(text: str) -> Selection:
    """Find `fair`, `power_of_choice(candidates=3)`, an installed one, or `package.module:attribute`.

    Raises: UsageError for what is not there, ConfigError for options that it does not take.
    """
    name, options = plugins.parse(text)
    found = plugins.find("fedmq.selections", SELECTIONS, name)
    if not callable(found):
        raise UsageError(
            f"{name!r} is a {type(found).__name__}, not a selection or a function that returns one"
        )
    if options or "clients" not in inspect.signature(found).parameters:
        found = plugins.call(name, found, **options)
    if not callable(found):
        raise UsageError(f"{name!r} returned a {type(found).__name__}, not a selection")
    selection: Selection = found
    return selection


class Draws:
    """The cohorts of one run: how they are selected, and what is known of clients."""

    def __init__(self, selection: Selection, seed: int) -> None:
        self._selection, self._seed = selection, seed
        self.records: dict[ClientId, Record] = {}

    def draw(self, clients: Iterable[ClientId], size: int | None, number: int) -> tuple[ClientId, ...]:
        """Choose `size` clients for round `number`, sorted; None takes all. Raises: ConfigError for a wrong choice."""
        ordered = sorted(set(clients))
        if size is None or size >= len(ordered):
            return tuple(ordered)
        if size == 0:
            return ()
        rng = np.random.default_rng([self._seed, number])
        try:
            chosen = self._selection(ordered, MappingProxyType(self.records), size, rng)
        except Exception as error:  # of a selection of someone's own
            raise ConfigError(f"the selection failed: {type(error).__name__}: {error}") from error
        if len(set(chosen)) != size or not set(chosen) <= set(ordered):
            raise ConfigError(f"the selection chose {list(chosen)}, not {size} of {ordered}")
        return tuple(sorted(chosen))

    def asked(self, clients: Iterable[ClientId]) -> None:
        """Note who was asked."""
        for client in clients:
            record = self.records.get(client, _NEW)
            self.records[client] = replace(record, asked=record.asked + 1)

    def learn(self, updates: Iterable[Update]) -> None:
        """Note what updates that count say of their clients."""
        for update in updates:
            loss = update.loss if update.local_loss is None else update.local_loss
            record = self.records.get(update.client, _NEW)
            self.records[update.client] = replace(record, examples=update.examples, loss=loss)


def plan_seed(seed: int, number: int) -> int:
    """Derive what chance in round `number`'s local training starts from."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
