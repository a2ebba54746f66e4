from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from common.errors import ConfigError, UsageError
from common.partition import (
    PARTITIONS,
    Examples,
    classes,
    deal,
    dirichlet,
    iid,
    natural,
    quantity,
    resolve,
    shards,
)

labels = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)
alphas = st.sampled_from([1e-3, 0.1, 0.5, 1.0, 100.0, 1e6])
seeds = st.integers(0, 2**32)
TEN_CLASSES = np.arange(1000) % 10


DEALT = {
    "iid": [[2, 4, 7, 9], [0, 3, 5, 11], [1, 6, 8, 10]],
    "dirichlet": [[1], [0, 4, 6, 7], [2, 3, 5, 8, 9, 10, 11]],
    "shards": [[1, 4, 7, 10], [2, 5, 8, 11], [0, 3, 6, 9]],
    "quantity": [[2, 4, 7, 9], [0, 3, 5, 6, 11], [1, 8, 10]],
    "classes": [[2, 3, 6, 8], [1, 5, 7, 11], [0, 4, 9, 10]],
    "natural": [[0, 1, 2, 6, 7, 8], [3, 4, 5], [9, 10, 11]],
}


def of(labels: np.ndarray, owners: np.ndarray | None = None) -> Examples:
    return Examples(len(labels), np.asarray(labels), owners)


def assert_dealt(parts: Sequence[np.ndarray], count: int, at_least: int = 1) -> None:
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    assert min(map(len, parts)) >= at_least
    assert all(np.all(np.diff(part) > 0) for part in parts)


@given(st.data(), labels, alphas, seeds, st.sampled_from([dirichlet, quantity]))
def test_shares_deal_every_index_once_and_enough_to_each(data, labels, alpha, seed, kind):
    clients = data.draw(st.integers(1, len(labels)))
    at_least = data.draw(st.integers(1, len(labels) // clients))
    parts = kind(alpha, at_least)(of(labels), clients, seed)
    assert len(parts) == clients
    assert_dealt(parts, len(labels), at_least)


@given(st.integers(1, 50), st.data(), seeds)
def test_iid_parts_differ_by_one_at_most(count, data, seed):
    parts = iid()(Examples(count), data.draw(st.integers(1, count)), seed)
    assert_dealt(parts, count)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(labels, st.data(), seeds)
def test_shards_deal_every_index_once(labels, data, seed):
    clients = data.draw(st.integers(1, len(labels)))
    per_client = data.draw(st.integers(1, len(labels) // clients))
    assert_dealt(shards(per_client)(of(labels), clients, seed), len(labels))


@given(st.integers(1, 8), st.data(), seeds)
def test_each_client_has_k_classes_and_each_class_is_shared_evenly(num_classes, data, seed):
    k = data.draw(st.integers(1, num_classes))
    clients = data.draw(st.integers(-(-num_classes // k), 20))
    sizes = data.draw(st.lists(st.integers(clients, 40), min_size=num_classes, max_size=num_classes))
    names = data.draw(st.permutations(range(0, 3 * num_classes, 3)))[:num_classes]  # with gaps
    labels = data.draw(st.randoms()).sample(
        whole := [n for n, s in zip(names, sizes, strict=True) for _ in range(s)], len(whole)
    )
    parts = classes(k)(of(labels), clients, seed)
    assert_dealt(parts, len(labels))
    held = [Counter(np.array(labels)[part].tolist()) for part in parts]
    assert {len(has) for has in held} == {k}
    holders = Counter(label for has in held for label in has)
    assert max(holders.values()) - min(holders.values()) <= 1
    for name in names:
        shares = [has[name] for has in held if name in has]
        assert max(shares) - min(shares) <= 1


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.data(), seeds, st.booleans())
def test_natural_parts_are_whole_owners(ids, data, seed, in_words):
    owners = np.array([f"writer-{id_}" for id_ in ids] if in_words else ids)
    clients = data.draw(st.integers(1, len(set(ids))))
    parts = natural()(Examples(len(ids), owners=owners), clients, seed)
    assert_dealt(parts, len(ids))
    mine = [set(owners[part].tolist()) for part in parts]
    assert sum(map(len, mine)) == len(set(ids))  # nobody is torn apart
    assert max(map(len, mine)) - min(map(len, mine)) <= 1


@given(st.sampled_from(sorted(PARTITIONS)), st.integers(1, 5), seeds)
def test_the_same_arguments_deal_the_same(name, clients, seed):
    examples = of(np.arange(100) % 5, np.arange(100) % 7)
    assume(name != "classes" or clients >= 3)
    first, again = ([part.tolist() for part in deal(name, examples, clients, seed)] for _ in range(2))
    assert first == again
    assert_dealt(first, 100)


@pytest.mark.parametrize("name", sorted(PARTITIONS))
def test_another_seed_deals_something_else(name):
    examples = of(TEN_CLASSES, np.arange(1000) // 20)
    one, other = ([part.tolist() for part in deal(name, examples, 7, seed)] for seed in (1, 2))
    assert one != other


def test_a_deal_stays_what_it_was():
    examples = of(np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]), np.arange(12) // 3)
    dealt = {name: [part.tolist() for part in deal(name, examples, 3, 0)] for name in PARTITIONS}
    assert dealt == DEALT


def test_a_small_alpha_makes_clients_differ_and_a_large_one_makes_them_alike():
    labels = np.arange(5000) % 10

    def most_common_share(alpha: float) -> float:
        parts = dirichlet(alpha)(of(labels), 10, 0)
        return float(np.mean([np.bincount(labels[part]).max() / len(part) for part in parts]))

    assert most_common_share(1e6) == pytest.approx(0.1, abs=0.01)
    assert most_common_share(0.05) > 0.5


def test_a_client_gets_examples_from_all_over_a_class():
    parts = dirichlet(1e6)(of(np.zeros(1000, int)), 4, 0)
    assert all(part[0] < 50 and part[-1] > 950 for part in parts)


def test_a_small_alpha_makes_sizes_differ_and_leaves_the_classes_alone():
    def sizes(alpha: float) -> list[int]:
        return sorted(map(len, quantity(alpha)(of(TEN_CLASSES), 5, 0)))

    assert sizes(1e6) == pytest.approx([200] * 5, abs=2)
    smallest, *_, largest = sizes(0.1)
    assert smallest < 20
    assert largest > 500
    part = max(quantity(0.5)(of(TEN_CLASSES), 5, 0), key=len)
    assert np.bincount(TEN_CLASSES[part]) / len(part) == pytest.approx([0.1] * 10, abs=0.05)


def test_two_shards_hold_few_classes():
    parts = shards(2)(of(TEN_CLASSES), 10, 0)
    assert all(len(np.unique(TEN_CLASSES[part])) <= 2 for part in parts)


def test_which_classes_a_client_has_is_left_to_chance():
    pairs = {
        tuple(np.unique(TEN_CLASSES[classes(2)(of(TEN_CLASSES), 10, seed)[-1]]).tolist())
        for seed in range(20)
    }
    assert len(pairs) > 10


def test_examples_of_a_class_are_dealt_out_from_all_over_it():
    first, *_ = classes(1)(of(np.zeros(1000, int)), 4, 0)
    assert first[0] < 50
    assert first[-1] > 950


def test_more_clients_than_chance_would_serve_are_served():
    assert_dealt(dirichlet(0.01)(of(np.zeros(3000, int)), 2999, 0), 3000)
    assert_dealt(quantity(0.01)(Examples(3000), 2999, 0), 3000)


FIVE = of(np.zeros(5, int), np.array([1, 1, 2, 2, 3]))


@pytest.mark.parametrize(
    ("text", "examples", "clients", "why"),
    [
        ("dirichlet", FIVE, 6, "5 examples cannot be dealt out where at least 6"),
        ("dirichlet(min_examples=2)", FIVE, 3, "at least 6"),
        ("dirichlet", FIVE, 0, "at least one client"),
        ("dirichlet(min_examples=0)", FIVE, 2, "min_examples must be a whole number"),
        ("dirichlet(alpha=0)", FIVE, 2, "alpha must be a number from 0.001 to 1e\\+06, not 0"),
        ("dirichlet(alpha=-1)", FIVE, 2, "alpha"),
        ("dirichlet(alpha='much')", FIVE, 2, "alpha"),
        ("dirichlet(alpha=1e999)", FIVE, 2, "alpha"),
        ("quantity(alpha=1e-9)", FIVE, 2, "alpha"),
        ("quantity(min_examples=1.5)", FIVE, 2, "whole number of at least 1, not 1.5"),
        ("quantity(min_examples=3)", FIVE, 2, "at least 6"),
        ("iid", FIVE, 6, "at least 6"),
        ("iid", FIVE, -1, "at least one client"),
        ("iid(k=2)", FIVE, 2, "its options are: none"),
        ("shards", FIVE, 3, "at least 6"),
        ("shards(per_client=0)", FIVE, 3, "per_client must"),
        ("classes(k=0)", FIVE, 3, "k must be a whole number of at least 1, not 0"),
        ("classes(k=2)", FIVE, 2, "k is 2, and there are 1 classes"),
        ("classes(k=1)", FIVE, 6, "at least 6"),
        ("classes(k=2)", of(TEN_CLASSES), 4, "4 clients with 2 classes each cannot have all 10"),
        ("classes(k=2)", of(np.array([0] * 9 + [1])), 3, "class 1 has 1 examples for 3 clients"),
        ("natural", FIVE, 4, "3 owners of examples cannot be dealt out to 4 clients"),
        ("natural", FIVE, 0, "3 owners"),
        ("natural", of(np.zeros(5, int)), 2, "does not say whose"),
        ("dirichlet", Examples(5), 2, "no integer labels, as dirichlet"),
        ("shards", Examples(5), 2, "no integer labels, as shards"),
        ("classes", Examples(5), 2, "no integer labels, as classes"),
    ],
)
def test_what_cannot_be_dealt_is_a_config_error(text, examples, clients, why):
    with pytest.raises(ConfigError, match=why):
        deal(text, examples, clients, 0)


def test_who_asks_for_too_few_classes_is_told_how_many_do():
    with pytest.raises(ConfigError) as said:
        deal("classes(k=2)", of(TEN_CLASSES), 4, 0)
    assert said.value.advice == "Take k=3, or 5 clients."


# --- partitions of one's own ----------------------------------------------------------------------


def test_a_partition_of_ones_own_is_found_with_its_options():
    parts = deal("support.labs:in_turn(first=1)", Examples(7), 3, 0)
    assert [part.tolist() for part in parts] == [[2, 5], [0, 3, 6], [1, 4]]
    assert {part.dtype for part in parts} == {np.dtype(np.int64)}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([[0, 1], [2, 2, 3]], "every example exactly once"),
        ([[0, 1], [2]], "every example exactly once"),
        ([[0, 1], [2, 3, 4]], "every example exactly once"),
        ([[0.0, 1.0], [2.0, 3.0]], "every example exactly once"),
        ([[0, 1, 2, 3], []], "without examples"),
        ([[0, 1, 2, 3]], "without examples"),
        ([0, 1], "arrays of indices"),
        (None, "arrays of indices"),
    ],
)
def test_a_partition_of_ones_own_keeps_the_laws_or_is_refused(given, why):
    with pytest.raises(UsageError, match=why):
        deal(f"support.labs:dealing(parts={given!r})", Examples(4), 2, 0)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("halves", "no 'halves' among the partitions; there are: classes, dirichlet, iid, natural, quantity"),
        ("support.labs:NUMBER", "not a function"),
        ("support.labs:numbered", "not a function"),
        ("classes(2)", "name"),
    ],
)
def test_what_is_no_partition_is_a_usage_error(text, why):
    with pytest.raises(UsageError, match=why):
        resolve(text)
