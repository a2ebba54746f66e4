"""A run goes on with its own settings: what this start was told counts where it is not of the run."""

from pathlib import Path

import pytest

from common import settings
from common.errors import ConfigError
from common.ids import Digest, RunId
from common.settings import NAMES, Settings
from coordinator import resuming
from coordinator.ledger import Unfinished

OF_THIS_START = {"state_dir", "keys_dir", "training.device"} | {
    name for name, (group, _) in NAMES.items() if group in {"broker", "link", "outbox", "log"}
}


def unfinished(begun: Settings) -> Unfinished:
    """What the ledger knows of a run that was begun with these."""
    model = Digest("0" * 64)
    return Unfinished(RunId("run-1"), resuming.written(begun), model, 0, model, (), (), "", stopping=False)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory without a file of settings."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


BEGUN = {
    "federation": "lab",
    "seed": 7,
    "data__dataset": "synthetic",
    "data__data_dir": Path("/data"),
    "data__alpha": 0.1,
    "data__options": {"shape": [1, 8, 8], "noise": 0.1},
    "model__name": "cnn",
    "model__options": {"width": 32},
    "training__lr": 1 / 3,
    "training__local_epochs": 2,
    "run__num_rounds": 9,
    "run__mode": "buffered",
    "run__cohort_size": 4,
    "run__keep_updates": True,
}


def test_a_run_goes_on_with_all_the_settings_that_it_was_begun_with():
    begun = settings.load(**BEGUN)
    resumed = resuming.settings_of(Settings(), unfinished(begun))
    assert settings.values(resumed) == settings.values(begun)
    assert resumed.model_dump() == begun.model_dump()
    assert resumed.data.data_dir == Path("/data")


def test_the_settings_of_a_run_are_those_that_decide_what_comes_of_it():
    """Where its state and its keys are, and how it reaches its broker, is not among them."""
    begun = settings.load(
        **BEGUN,
        state_dir=Path("/then"),
        link__brokers="then:1",
        log__level="debug",
        broker__port=1,
        outbox__days_max=1,
    )
    now = settings.load(
        state_dir=Path("/now"), keys_dir=Path("/keys"), link__brokers="now:2", log__level="error"
    )
    resumed = settings.values(resuming.settings_of(now, unfinished(begun)))
    of_now, of_then = settings.values(now), settings.values(begun)
    assert resumed == {name: (of_now if name in OF_THIS_START else of_then)[name] for name in NAMES}
    for secret in ("/then", "then:1"):
        assert secret not in resuming.written(begun)


def test_what_is_not_a_flag_gives_way(elsewhere, monkeypatch):
    (elsewhere / "fedmq.toml").write_text("seed = 2\n[training]\nlr = 0.5")
    monkeypatch.setenv("FEDMQ_RUN__NUM_ROUNDS", "3")
    now = settings.load()
    resumed = resuming.settings_of(now, unfinished(settings.load(**BEGUN)))
    assert (resumed.seed, resumed.training.lr, resumed.run.num_rounds) == (7, 1 / 3, 9)


@pytest.mark.parametrize("name", sorted(set(BEGUN) - {"data__data_dir"}))
def test_a_flag_that_says_the_same_again_is_no_contradiction(name):
    begun = settings.load(**BEGUN)
    resumed = resuming.settings_of(settings.load(**{name: BEGUN[name]}), unfinished(begun))
    assert resumed.model_dump() == begun.model_dump()


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("seed", 8, "seed = 7, not 8"),
        ("federation", "other", "federation = lab, not other"),
        ("data__alpha", 0.2, "data.alpha = 0.1, not 0.2"),
        ("data__data_dir", Path("/other"), "data.data_dir = /data, not /other"),
        (
            "data__options",
            {"noise": 0.1},
            'data.options = {"shape": [1, 8, 8], "noise": 0.1}, not {"noise": 0.1}',
        ),
        ("model__name", "mlp", "model.name = cnn, not mlp"),
        ("training__lr", 0.3, "training.lr = 0.3333333333333333, not 0.3"),
        ("run__mode", "sync", "run.mode = buffered, not sync"),
        ("run__cohort_size", 5, "run.cohort_size = 4, not 5"),
        ("run__keep_updates", False, "run.keep_updates = true, not false"),
        ("run__strategy", "fedavg", "run.strategy = fedbuff, not fedavg"),
    ],
)
def test_a_flag_that_contradicts_the_run_is_an_error_that_says_what_to_do(flag, value, says):
    with pytest.raises(ConfigError) as error:
        resuming.settings_of(settings.load(**{flag: value}), unfinished(settings.load(**BEGUN)))
    assert str(error.value) == f"run run-1 was begun with {says}"
    assert "--resume" in error.value.advice


@pytest.mark.parametrize(
    ("begun", "flags"),
    [
        ({}, {"run__strategy": "fedavg"}),
        ({"run__strategy": "fedavg"}, {"run__strategy": "fedavg"}),
        ({"run__mode": "buffered"}, {"run__strategy": "fedbuff", "run__mode": "buffered"}),
    ],
)
def test_naming_the_strategy_that_is_in_force_contradicts_nothing(begun, flags):
    was = settings.load(**begun)
    assert resuming.settings_of(settings.load(**flags), unfinished(was)).run == was.run


def test_the_device_is_that_of_the_machine_which_goes_on():
    run = unfinished(settings.load(training__device="cuda", training__lr=0.01))
    own = resuming.settings_of(settings.load(training__device="cpu"), run)
    assert (own.training.device, own.training.lr) == ("cpu", 0.01)
    assert resuming.settings_of(Settings(), run).training.device == "auto"


def test_a_default_that_is_given_as_a_flag_contradicts_a_run_that_chose_otherwise():
    with pytest.raises(ConfigError, match=r"run\.num_rounds = 9, not 5"):
        resuming.settings_of(settings.load(run__num_rounds=5), unfinished(settings.load(**BEGUN)))


def test_a_flag_that_is_not_of_the_run_contradicts_nothing(tmp_path):
    now = settings.load(state_dir=tmp_path, log__level="debug", broker__port=0)
    assert resuming.settings_of(now, unfinished(settings.load(**BEGUN))).state_dir == tmp_path


def test_a_run_of_before_a_setting_was_added_has_its_default():
    """What an older release wrote down is read."""
    old = Unfinished(
        RunId("r"),
        '{"seed":3,"run":{"num_rounds":2}}',
        Digest("0" * 64),
        0,
        Digest("0" * 64),
        (),
        (),
        "",
        stopping=False,
    )
    resumed = resuming.settings_of(settings.load(training__lr=0.05), old)
    assert (resumed.seed, resumed.run.num_rounds, resumed.run.patience) == (3, 2, Settings().run.patience)
    assert resumed.federation == Settings().federation


def test_where_the_settings_came_from_is_still_known():
    now = settings.load(log__level="debug")
    resumed = resuming.settings_of(now, unfinished(settings.load(**BEGUN)))
    assert settings.origins(resumed)["log.level"] == "flag"
