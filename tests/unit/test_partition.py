from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from common.partition import dirichlet, iid, shards

labels = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)
alphas = st.sampled_from([1e-3, 0.1, 0.5, 1.0, 100.0, 1e6])
seeds = st.integers(0, 2**32)


def assert_dealt(parts: Sequence[np.ndarray], count: int, at_least: int = 1) -> None:
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    assert min(map(len, parts)) >= at_least
    assert all(np.all(np.diff(part) > 0) for part in parts)


@given(st.data(), labels, alphas, seeds)
def test_dirichlet_deals_every_index_once_and_enough_to_each(data, labels, alpha, seed):
    clients = data.draw(st.integers(1, len(labels)))
    at_least = data.draw(st.integers(1, len(labels) // clients))
    parts = dirichlet(labels, clients, alpha, seed, at_least)
    assert len(parts) == clients
    assert_dealt(parts, len(labels), at_least)


@given(st.integers(1, 50), st.data(), seeds)
def test_iid_parts_differ_by_one_at_most(count, data, seed):
    parts = iid(count, data.draw(st.integers(1, count)), seed)
    assert_dealt(parts, count)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(labels, st.data(), seeds)
def test_shards_deal_every_index_once(labels, data, seed):
    clients = data.draw(st.integers(1, len(labels)))
    per_client = data.draw(st.integers(1, len(labels) // clients))
    assert_dealt(shards(labels, clients, per_client, seed), len(labels))


def test_the_same_seed_deals_the_same_and_another_does_not():
    classes = np.arange(500) % 10
    for deal in (
        lambda seed: dirichlet(classes, 7, 0.5, seed),
        lambda seed: iid(500, 7, seed),
        lambda seed: shards(classes, 7, 2, seed),
    ):
        first, second, other = ([part.tolist() for part in deal(seed)] for seed in (1, 1, 2))
        assert first == second
        assert first != other


def test_a_small_alpha_makes_clients_differ_and_a_large_one_makes_them_alike():
    classes = np.arange(5000) % 10

    def most_common_share(alpha: float) -> float:
        parts = dirichlet(classes, 10, alpha, seed=0)
        return float(np.mean([np.bincount(classes[part]).max() / len(part) for part in parts]))

    assert most_common_share(1e6) == pytest.approx(0.1, abs=0.01)
    assert most_common_share(0.05) > 0.5


def test_a_client_gets_examples_from_all_over_a_class():
    parts = dirichlet(np.zeros(1000, int), 4, 1e6, seed=0)
    assert all(part[0] < 50 and part[-1] > 950 for part in parts)


def test_two_shards_hold_few_classes():
    classes = np.arange(1000) % 10
    assert all(len(np.unique(classes[part])) <= 2 for part in shards(classes, 10, 2, seed=0))


def test_more_clients_than_chance_would_serve_are_served():
    assert_dealt(dirichlet(np.zeros(3000, int), 2999, 0.01, seed=0), 3000)


@pytest.mark.parametrize(
    "deal",
    [
        lambda: dirichlet(np.zeros(5, int), 6, 0.5, 0),
        lambda: dirichlet(np.zeros(5, int), 3, 0.5, 0, min_examples=2),
        lambda: dirichlet(np.zeros(5, int), 0, 0.5, 0),
        lambda: dirichlet(np.zeros(5, int), 2, 0.5, 0, min_examples=0),
        *(lambda alpha=alpha: dirichlet(np.zeros(5, int), 2, alpha, 0) for alpha in (0, -1, np.nan, np.inf)),
        lambda: iid(5, 6, 0),
        lambda: iid(5, -1, 0),
        lambda: shards(np.zeros(5, int), 3, 2, 0),
        lambda: shards(np.zeros(5, int), 3, 0, 0),
    ],
)
def test_what_cannot_be_dealt_is_a_config_error(deal):
    with pytest.raises(ConfigError):
        deal()
