"""Which tensors patterns name, in modules of torch and in one with normalisation."""

import numpy as np
import pytest
import torch

from common import models, selection
from common.errors import ConfigError

NORMED = models.build("support.labs:normed", (5,), 3)  # 1: linear 5-4, 2: normalisation of 4, 4: linear 4-3


def runs(selected: np.ndarray) -> list[int]:
    """Name the elements that are marked."""
    return np.flatnonzero(selected).tolist()


def test_a_pattern_names_whole_tensors_where_they_lie_in_the_flat_vector():
    assert runs(selection.select(NORMED, ["1.bias"])) == [20, 21, 22, 23]
    assert runs(selection.select(NORMED, ["1.*", "4.b*"])) == [*range(24), 52, 53, 54]
    assert not selection.select(NORMED, []).any()


def test_bn_names_the_normalisation_layers_with_what_they_have_seen():
    assert selection.names(NORMED, ["bn"]) == {"2.weight", "2.bias", "2.running_mean", "2.running_var"}
    assert runs(selection.select(NORMED, ["bn"])) == list(range(24, 40))


@pytest.mark.parametrize(
    "layer", [torch.nn.GroupNorm(2, 4), torch.nn.LayerNorm(4), torch.nn.InstanceNorm1d(4, affine=True)]
)
def test_every_kind_of_normalisation_is_one(layer):
    module = torch.nn.Sequential(torch.nn.Linear(5, 4), layer, torch.nn.Linear(4, 3))
    assert selection.names(module, ["bn"]) == {"1.weight", "1.bias"}


@pytest.mark.parametrize(
    ("model", "patterns", "why"),
    [
        ("linear", ["fc*"], "no tensor named 'fc\\*'; its tensors are: 1.weight, 1.bias"),
        ("linear", ["1.bias", "1.BIAS"], "1.BIAS"),
        ("linear", ["bn"], "no normalisation layer"),
        ("linear", ["1.*"], "every tensor"),
    ],
)
def test_patterns_that_leave_nothing_to_do_are_refused(model, patterns, why):
    with pytest.raises(ConfigError, match=why):
        selection.select(models.build(model, (5,), 3), patterns)
