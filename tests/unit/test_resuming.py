"""The settings of a run that is resumed: which flags contradict them, and how that is said."""

import pytest

from common.errors import ConfigError
from common.ids import Digest, RunId
from common.settings import Settings, load
from coordinator import resuming
from coordinator.ledger import Unfinished

MODEL = Digest("0" * 64)


def begun(settings):
    """A run that was begun with these settings."""
    return Unfinished(RunId("r"), resuming.written(settings), MODEL, 0, MODEL, (), "")


def test_a_run_goes_on_with_its_own_settings():
    run = begun(load(training__lr=0.01, run__num_rounds=7, seed=3))
    own = resuming.settings_of(load(training__lr=0.01, log__level="debug"), run)
    assert (own.training.lr, own.run.num_rounds, own.seed, own.log.level) == (0.01, 7, 3, "debug")


@pytest.mark.parametrize(
    ("was", "flags", "said"),
    [
        ({}, {"run__strategy": "fedavg(lr=0.5)"}, "run.strategy = fedavg, not fedavg(lr=0.5)"),
        ({"run__mode": "buffered"}, {"run__strategy": "fedavg"}, "run.strategy = fedbuff, not fedavg"),
        ({}, {"run__keep_updates": True}, "run.keep_updates = false, not true"),
        ({"run__cohort_size": 2}, {"run__cohort_size": 3}, "run.cohort_size = 2, not 3"),
        ({}, {"run__cohort_size": 3}, "run.cohort_size = unset, not 3"),
        ({}, {"data__options": {"shape": "[1,2]"}}, 'data.options = {}, not {"shape": [1, 2]}'),
    ],
)
def test_a_flag_that_contradicts_is_said_as_it_is_written(was, flags, said):
    with pytest.raises(ConfigError) as raised:
        resuming.settings_of(load(**flags), begun(load(**was)))
    assert str(raised.value) == f"run r was begun with {said}"
    assert "--resume" in raised.value.advice


@pytest.mark.parametrize(
    ("was", "flags"),
    [
        ({}, {"run__strategy": "fedavg"}),
        ({"run__strategy": "fedavg"}, {"run__strategy": "fedavg"}),
        ({"run__mode": "buffered"}, {"run__strategy": "fedbuff", "run__mode": "buffered"}),
    ],
)
def test_naming_the_strategy_that_is_in_force_contradicts_nothing(was, flags):
    run = begun(load(**was))
    assert resuming.settings_of(load(**flags), run).run == load(**was).run


def test_the_device_is_that_of_the_machine_which_goes_on():
    run = begun(load(training__device="cuda", training__lr=0.01))
    own = resuming.settings_of(load(training__device="cpu"), run)
    assert (own.training.device, own.training.lr) == ("cpu", 0.01)
    assert resuming.settings_of(Settings(), run).training.device == "auto"
