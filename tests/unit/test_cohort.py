"""Who is drawn: by seed, round and records alone, and as each selection says."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError, UsageError
from common.ids import ClientId
from coordinator.cohort import SELECTIONS, Draws, Record, by_examples, fair, power_of_choice, resolve, uniform
from support.updates import update

NAMES = [ClientId(f"c{index}") for index in range(10)]


def draws(selection, seed=1, **records):
    made = Draws(selection, seed)
    made.records = {ClientId(name): record for name, record in records.items()}
    return made


def counted(selection, size, rounds=1000, **records):
    """Count how often each is drawn."""
    made = draws(selection, **records)
    return Counter(client for number in range(rounds) for client in made.draw(NAMES, size, number))


@pytest.mark.parametrize("name", SELECTIONS)
@given(size=st.integers(0, 12), seed=st.integers(0, 2**32), number=st.integers(1, 1000))
def test_a_cohort_is_drawn_by_seed_round_and_records_alone(name, size, seed, number):
    records = {"c1": Record(3, 10, 0.5), "c2": Record(1, 500, 2.0)}
    made, again = (draws(resolve(name), seed, **records) for _ in range(2))
    drawn = made.draw(NAMES, size, number)
    assert drawn == again.draw(reversed(NAMES), size, number)
    assert len(set(drawn)) == min(size, 10)
    assert list(drawn) == sorted(drawn)
    assert set(drawn) <= set(NAMES)


@pytest.mark.parametrize("name", SELECTIONS)
def test_without_a_size_all_are_asked(name):
    assert draws(resolve(name)).draw(NAMES, None, 1) == tuple(NAMES)


def test_uniformly_every_client_is_drawn_about_equally_often():
    assert all(240 < counted(uniform(), 3)[name] < 360 for name in NAMES)  # 300 ± 4 standard deviations


def test_by_examples_who_has_more_is_drawn_more_often_and_the_unknown_as_the_mean():
    records = {str(name): Record(examples=100) for name in NAMES[:8]} | {"c8": Record(examples=900)}
    found = counted(by_examples(), 1, 4000, **records)
    assert found["c8"] / 4000 == pytest.approx(900 / (800 + 900 + 1700 / 9), abs=0.04)
    assert found["c9"] / 4000 == pytest.approx((1700 / 9) / (800 + 900 + 1700 / 9), abs=0.02)
    assert found["c0"] / 4000 == pytest.approx(100 / (800 + 900 + 1700 / 9), abs=0.02)


def test_power_of_choice_takes_the_largest_losses_of_those_that_were_drawn():
    records = {str(name): Record(examples=1, loss=float(index)) for index, name in enumerate(NAMES)}
    all_candidates = draws(power_of_choice(candidates=5), **records)
    assert all_candidates.draw(NAMES, 2, 1) == ("c8", "c9")
    found = counted(power_of_choice(), 2, **records)
    assert found["c9"] > found["c5"] > found["c1"]
    assert found["c0"] == 0  # of four candidates it is never among the best two
    assert counted(power_of_choice(candidates=1), 2, **records)["c0"] > 100


def test_a_loss_that_nobody_knows_yet_is_the_largest():
    records = {str(name): Record(examples=1, loss=9.0) for name in NAMES[:9]}
    assert "c9" in draws(power_of_choice(candidates=10), **records).draw(NAMES, 1, 1)


@given(st.lists(st.sets(st.sampled_from(NAMES), min_size=4), min_size=5, max_size=30))
def test_fairly_nobody_starves_who_is_seldom_here(weather):
    """Whoever is here and was passed over was asked at least as often as each of those who were taken."""
    made = draws(fair())
    for number, here in enumerate(weather):
        before = {name: made.records.get(name, Record()).asked for name in here}
        drawn = made.draw(here, 3, number)
        made.asked(drawn)
        passed_over = [before[name] for name in here if name not in drawn]
        assert max(before[name] for name in drawn) <= min(passed_over, default=99)


def test_what_updates_say_is_remembered():
    made = draws(uniform())
    made.asked([NAMES[0], NAMES[0]])
    made.learn([update("c0", examples=7)])
    assert made.records[NAMES[0]] == Record(2, 7, update("c0").loss)


def first(clients, records, size, rng):
    return clients[:size]


def last(count=0):
    def select(clients, records, size, rng):
        return clients[len(clients) - size - count : len(clients) - count]

    return select


def broken(clients, records, size, rng):
    raise ZeroDivisionError("oh")


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("unit.test_cohort:first", ("c0", "c1")),
        ("unit.test_cohort:last", ("c8", "c9")),
        ("unit.test_cohort:last(count=3)", ("c5", "c6")),
    ],
)
def test_one_of_ones_own_is_a_selection_or_returns_one(text, drawn):
    assert draws(resolve(text)).draw(NAMES, 2, 1) == drawn


@pytest.mark.parametrize(
    "selection", [broken, lambda *_: NAMES[:1], lambda *_: [NAMES[0]] * 2, lambda *_: ["x", "y"]]
)
def test_one_that_fails_or_chooses_wrongly_is_an_error_in_words(selection):
    with pytest.raises(ConfigError, match="the selection"):
        draws(selection).draw(NAMES, 2, 1)


@pytest.mark.parametrize(
    ("text", "error", "why"),
    [
        ("lottery", UsageError, "power_of_choice"),
        ("fair(x=1)", ConfigError, "none"),
        ("power_of_choice(candidates=0.5)", ConfigError, "from 1 to 1000"),
        ("power_of_choice(candidates='2')", ConfigError, "from 1 to 1000"),
        ("support.labs:NUMBER", UsageError, "not a selection"),
    ],
)
def test_what_cannot_be_resolved_is_said(text, error, why):
    with pytest.raises(error, match=why):
        resolve(text)


def test_records_cannot_be_written_to_by_a_selection():
    def writes(clients, records, size, rng):
        records["x"] = Record()

    with pytest.raises(ConfigError, match="TypeError"):
        draws(writes).draw(NAMES, 2, 1)
