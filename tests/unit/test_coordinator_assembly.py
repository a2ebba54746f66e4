"""What a coordinator refuses before anything is connected."""

import pytest

from common import models
from common.errors import ConfigError
from common.settings import Settings
from coordinator import strategies
from coordinator.assembly import require_personal, require_steps


def whole(**groups):
    return Settings(**groups)


@pytest.mark.parametrize(
    "training", [{"optimizer": "adam"}, {"keep_momentum": True}, {"lr": 0.5, "proximal_mu": 2.1}]
)
def test_steps_are_needed_that_are_sums_of_gradients_where_a_strategy_divides_by_them(training):
    settings = whole(training=training)
    require_steps(strategies.resolve("fedavg"), settings)
    require_steps(strategies.resolve("fednova"), whole(training={"lr": 0.5, "proximal_mu": 2.0}))
    with pytest.raises(ConfigError, match="steps"):
        require_steps(strategies.resolve("fednova"), settings)


def test_personal_tensors_have_to_be_there_and_to_stay_zero_in_an_update():
    mlp = models.build("mlp", (4,), 3)
    require_personal(mlp, whole())
    require_personal(mlp, whole(training={"personal": ("5.*",)}, run={"codec": "int8"}))
    with pytest.raises(ConfigError, match="fc"):
        require_personal(mlp, whole(training={"personal": ("fc*",)}))
    with pytest.raises(ConfigError, match="eden2"):
        require_personal(mlp, whole(training={"personal": ("5.*",)}, run={"codec": "eden2+zstd"}))
