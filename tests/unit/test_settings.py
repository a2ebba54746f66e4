"""Settings: which source wins, what is refused, and what the operator is told."""

import re
from pathlib import Path

import pytest

from common import settings
from common.errors import ConfigError
from common.settings import Link, Settings


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory and a home without any file of settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_defaults():
    loaded = settings.load()
    assert loaded.model_dump() == Settings().model_dump()
    assert (loaded.federation, loaded.data.dataset, loaded.run.effective_strategy) == (
        "demo",
        "digits",
        "fedavg",
    )
    assert set(settings.origins(loaded).values()) == {"default"}


def test_flag_beats_environment_beats_file_beats_default_key_by_key(elsewhere, monkeypatch):
    written(elsewhere / "fedmq.toml", "seed = 1\n[run]\nnum_rounds = 10\npatience = 4\ncodec = 'fp16'")
    monkeypatch.setenv("FEDMQ_RUN__NUM_ROUNDS", "20")
    monkeypatch.setenv("FEDMQ_RUN__PATIENCE", "5")
    loaded = settings.load(run__num_rounds=30, run__strategy=None)
    assert (loaded.seed, loaded.run.codec, loaded.run.patience, loaded.run.num_rounds) == (1, "fp16", 5, 30)
    assert loaded.run.effective_strategy == "fedavg"
    assert {name: origin for name, origin in settings.origins(loaded).items() if origin != "default"} == {
        "seed": "file fedmq.toml",
        "run.codec": "file fedmq.toml",
        "run.patience": "environment FEDMQ_RUN__PATIENCE",
        "run.num_rounds": "flag",
    }


def test_the_file_that_is_named_wins_over_the_usual_places(elsewhere, monkeypatch):
    home = written(elsewhere / "config" / "fedmq" / "config.toml", "seed = 1")
    assert settings.load().seed == 1
    written(elsewhere / "fedmq.toml", "seed = 2")
    assert settings.load().seed == 2
    monkeypatch.setenv("FEDMQ_CONFIG", str(written(elsewhere / "three.toml", "seed = 3")))
    assert settings.load().seed == 3
    assert settings.load(home).seed == 1


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("FEDMQ_ROUDNS", "5", "FEDMQ_ROUDNS is no setting"),
        ("FEDMQ_RUN__NUM_ROUDNS", "5", "did you mean FEDMQ_RUN__NUM_ROUNDS?"),
        ("FEDMQ_SEED__X", "5", "FEDMQ_SEED__X is no setting"),
        ("FEDMQ_RUN__NUM_ROUNDS__X", "5", "is no setting"),
        ("fedmq_sede", "5", "did you mean FEDMQ_SEED?"),
        ("FEDMQ_RUN", "not JSON", r"run \(from .*\): Input should be"),
        ("FEDMQ_CONFIG", "missing.toml", "cannot read missing.toml: No such file"),
        ("FEDMQ_CONFIG", "/", "cannot read /: Is a directory"),
    ],
)
def test_an_environment_that_cannot_work_is_refused(monkeypatch, variable, value, says):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=says):
        settings.load()


def test_empty_variables_and_those_of_the_tests_are_passed_over(monkeypatch):
    monkeypatch.setenv("FEDMQ_SEED", "")
    monkeypatch.setenv("FEDMQ_TEST_REQUIRE", "1")
    assert settings.load().seed == 0


@pytest.mark.parametrize("text", ["seed = ", "[run\n", "seed = 1\nseed = 2"])
def test_broken_toml_names_the_file_and_the_place(elsewhere, text):
    path = written(elsewhere / "broken.toml", text)
    with pytest.raises(ConfigError, match=r"broken.toml is not valid TOML: .*(line|end)"):
        settings.load(path)


def test_a_file_that_is_not_text_is_refused(elsewhere):
    path = elsewhere / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary.toml is not valid TOML"):
        settings.load(path)


def test_one_complaint_names_every_wrong_setting_its_origin_and_what_is_allowed(elsewhere, monkeypatch):
    path = written(
        elsewhere / "f.toml", "[data]\ndatset = 'x'\nalpha = nan\n[bogus]\na = 1\n[log]\nlevel = 'loud'"
    )
    monkeypatch.setenv("FEDMQ_RUN__NUM_ROUNDS", "hunter2")
    with pytest.raises(ConfigError) as raised:
        settings.load(path, broker__port=70000, link__brokers="nonsense", federation="mesh")
    told = str(raised.value)
    lines = told.splitlines()
    assert lines[0] == "these settings cannot be used:"
    for pattern in (
        rf"data.datset \(from file {re.escape(str(path))}\): no such setting; did you mean data.dataset\?",
        r"data.alpha \(from file .*\): .* \(>= 0.001, <= 1000000.0\)",
        r"bogus \(from file .*\): no such setting; there are: .*run",
        r"log.level \(from file .*\): Input should be 'debug', 'info', 'warning' or 'error'",
        r"run.num_rounds \(from environment FEDMQ_RUN__NUM_ROUNDS\): .*integer.* \(>= 1, <= 1000000\)",
        r"broker.port \(from flag\): .* \(>= 0, <= 65535\)",
        r"link.brokers \(from flag\): give HOST:PORT",
        r"federation \(from flag\): a name matches .* and is not reserved",
    ):
        assert any(re.fullmatch(f"  {pattern}.*", line) for line in lines), pattern
    assert len(lines) == 9
    assert "hunter2" not in told
    assert raised.value.__cause__ is None


@pytest.mark.parametrize("name", settings.NAMES)
def test_every_setting_has_a_description_and_every_number_has_bounds(name):
    group, leaf = settings.NAMES[name]
    holder = Settings.model_fields[group].annotation if group else Settings
    field = holder.model_fields[leaf]
    assert field.description
    if "int" in str(field.annotation) or "float" in str(field.annotation):
        assert settings._range(name) or name in {"broker.ws_port", "broker.pairing_port"}


def test_settings_cannot_be_changed():
    for holder, name in ((Settings(), "seed"), (Settings().run, "num_rounds")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(holder, name, 1)


def test_settings_made_by_hand_take_nothing_from_outside(elsewhere, monkeypatch):
    written(elsewhere / "fedmq.toml", "seed = 1")
    monkeypatch.setenv("FEDMQ_SEED", "2")
    assert Settings().seed == 0
    assert Settings(link=Link(brokers=("h:1",))).link.brokers == ("h:1",)


@pytest.mark.parametrize(
    ("text", "brokers"),
    [
        ("localhost:1883", ("localhost:1883",)),
        ("a.example:1, b.example:65535", ("a.example:1", "b.example:65535")),
        ("[::1]:1883", ("[::1]:1883",)),
    ],
)
def test_brokers_come_as_one_text_or_as_a_list(elsewhere, monkeypatch, text, brokers):
    assert settings.load(link__brokers=text).link.brokers == brokers
    assert settings.load(link__brokers=text.split(",")).link.brokers == tuple(text.split(","))
    monkeypatch.setenv("FEDMQ_LINK__BROKERS", text)
    assert settings.load().link.brokers == brokers
    listed = ", ".join(f'"{part.strip()}"' for part in text.split(","))
    monkeypatch.setenv("FEDMQ_LINK__BROKERS", f"[{listed}]")
    assert settings.load().link.brokers == brokers


@pytest.mark.parametrize("text", ["", "host", "host:", ":1883", "host:0", "host:65536", "host:x", "host:²"])
def test_a_broker_is_a_host_and_a_port(text):
    with pytest.raises(ConfigError, match=r"link\.brokers"):
        settings.load(link__brokers=text)


def test_options_are_typed_and_merged_key_by_key(elsewhere, monkeypatch):
    path = written(elsewhere / "f.toml", "[model.options]\nhidden = 32\nact = 'relu'\nshape = [1, 8, 8]")
    monkeypatch.setenv("FEDMQ_MODEL__OPTIONS__HIDDEN", "64")
    monkeypatch.setenv("FEDMQ_DATA__OPTIONS", '{"classes": 10}')
    loaded = settings.load(path, model__options={"bias": "true"})
    assert loaded.model.options == {"hidden": 64, "act": "relu", "shape": [1, 8, 8], "bias": True}
    assert loaded.data.options == {"classes": 10}
    with pytest.raises(ConfigError, match=r"model\.options \(from flag\)"):
        settings.load(model__options="no table")


def test_values_are_plain_and_complete():
    shown = settings.values(settings.load(state_dir=Path("/somewhere"), link__brokers=["h:1"]))
    assert list(shown) == list(settings.NAMES)
    assert (shown["state_dir"], shown["link.brokers"], shown["run.cohort_size"]) == (
        "/somewhere",
        ["h:1"],
        None,
    )


def test_state_and_keys_have_their_place_below_the_state_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert settings.default_state("demo", "client", "client-1") == tmp_path / "fedmq/demo/client-client-1"
    assert settings.default_keys("demo") == tmp_path / "fedmq/demo/keys"
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/passed/over")
    assert settings.default_keys("demo") == Path("/home/somebody/.local/state/fedmq/demo/keys")


def test_a_tilde_is_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert settings.load(state_dir="~/state").state_dir == Path("/home/somebody/state")


def test_the_strategy_goes_with_the_mode_unless_one_is_chosen():
    assert settings.load().run.effective_strategy == "fedavg"
    assert settings.load(run__mode="buffered").run.effective_strategy == "fedbuff"
    assert settings.load(run__mode="buffered", run__strategy="fedavg").run.effective_strategy == "fedavg"


@pytest.mark.parametrize("name", ["buffer_size", "buffer_min", "buffer_per_client"])
def test_what_is_for_the_buffered_mode_cannot_be_set_without_it(name):
    with pytest.raises(ConfigError, match=f"{name} is for the buffered mode"):
        settings.load(**{f"run__{name}": 3})
    assert getattr(settings.load(**{f"run__{name}": 3}, run__mode="buffered").run, name) == 3
    assert (
        settings.load(**Settings().model_dump(mode="json")).run.mode == "sync"
    )  # as one process tells another


@pytest.mark.parametrize(
    ("chosen", "dealt"),
    [
        ("dirichlet", "dirichlet(alpha=0.1)"),
        ("quantity", "quantity(alpha=0.1)"),
        ("dirichlet(min_examples=2)", "dirichlet(alpha=0.1, min_examples=2)"),
        ("dirichlet( alpha=3 )", "dirichlet( alpha=3 )"),
        ("quantity()", "quantity(alpha=0.1)"),
        ("classes(k=3)", "classes(k=3)"),
        ("my_lab:dealer", "my_lab:dealer"),  # which need not be here
    ],
)
def test_alpha_is_for_the_partitions_that_take_one_and_bring_none(chosen, dealt):
    assert settings.load(data__partition=chosen, data__alpha=0.1).data.effective_partition == dealt


@pytest.mark.parametrize(
    ("chosen", "why"),
    [
        ("halves", "there are: classes, dirichlet, iid"),
        ("classes(k=0)", "k must be a whole number"),
        ("iid(k=1)", "options are: none"),
        ("classes(2)", "name"),
    ],
)
def test_a_partition_that_cannot_be_is_refused_at_once(chosen, why):
    with pytest.raises(ConfigError, match=why):
        settings.load(data__partition=chosen)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"training__personal": "bn", "training__ditto_lambda": 0.1}, "whole model"),
        ({"training__keep_momentum": True, "training__optimizer": "adam"}, "sgd"),
        ({"training__personal": "bn,"}, "training.personal"),
    ],
)
def test_algorithms_of_clients_that_do_not_go_together_are_refused(flags, why):
    with pytest.raises(ConfigError, match=why):
        settings.load(**flags)


def test_patterns_are_listed_with_commas(monkeypatch):
    monkeypatch.setenv("FEDMQ_TRAINING__PERSONAL", "fc*, bn")
    assert settings.load().training.personal == ("fc*", "bn")
