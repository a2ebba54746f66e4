"""The attacks are what their papers say: an attack that is none would prove a defence."""

import numpy as np
import pytest
import torch

from support.attacks import FORGED, POISONED, Seen, alie_z, triggered


@pytest.fixture
def seen():
    rng = np.random.default_rng(3)
    rows = rng.normal(1, 0.5, size=(12, 30)).astype(np.float32)
    return Seen(rows[:9], rows[9:], rows[9:] / 2, rng)


@pytest.mark.parametrize("name", FORGED)
def test_each_bad_client_sends_a_row(seen, name):
    kept = seen.honest.copy()
    forged = FORGED[name](seen)
    assert (forged.shape, forged.dtype) == ((3, 30), np.float32)
    assert np.array_equal(seen.honest, kept)


def test_signs_are_flipped(seen):
    mean = seen.honest.mean(0)
    assert FORGED["sign flip"](seen)[0] == pytest.approx(-mean)
    assert FORGED["sign flip x5"](seen)[2] == pytest.approx(-5 * mean)
    assert FORGED["IPM 0.1"](seen)[1] == pytest.approx(-0.1 * mean)


@pytest.mark.parametrize(("n", "f", "z"), [(50, 24, 1.4261), (20, 4, 0.1573), (10, 2, 0.0)])
def test_a_little_is_enough(n, f, z):
    """By the normal table: half of all, less the bad ones, lie within z."""
    assert alie_z(n, f) == pytest.approx(z, abs=2e-4)


def test_alie_hides_within_the_spread(seen):
    assert np.all(np.abs(FORGED["ALIE"](seen)[0] - seen.honest.mean(0)) <= 2 * seen.honest.std(0, ddof=1))


def test_min_max_is_as_far_as_honest_rows_are_from_one_another(seen):
    reach = max(np.linalg.norm(a - b) for a in seen.honest for b in seen.honest)
    away = np.linalg.norm(seen.honest - FORGED["min-max"](seen)[0], axis=1).max()
    assert away == pytest.approx(reach, rel=1e-3)


def test_a_replacement_outweighs_all_others(seen):
    rows = [*seen.honest, FORGED["replacement"](seen)[0] / 1]
    assert np.mean(rows, axis=0) @ seen.own[0] > 0.9 * seen.own[0] @ seen.own[0]


def test_data_are_poisoned():
    x, y = torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 8, 9])
    x[0, 0, 7, 7] = 5
    assert POISONED["label flip"](x, y, 10)[1].tolist() == [9, 8, 1, 0]
    marked, labels = POISONED["backdoor"](x, y, 10)
    assert labels.tolist() == [0, 0, 0, 0]
    assert torch.equal(marked, triggered(x))
    assert (marked[1, 0, :3, :3] == 5).all()
    assert marked[1, 0, 3:, 3:].sum() == 0
