"""Log lines: their two forms, their facts, and that nobody forges one."""

import asyncio
import json
import logging
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from common.log import ConsoleFormatter, JsonFormatter, bound, facts, setup

CONSOLE, JSON = ConsoleFormatter(), JsonFormatter()


@pytest.fixture
def restored():
    """Give the root logger back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


def record(event, exc_info=None, **named):
    made = logging.LogRecord("coordinator.service", logging.INFO, "f", 1, event, (), exc_info)
    made.created = 1_772_366_400.123
    made.__dict__.update(facts(**named))
    return made


def test_a_console_line():
    line = CONSOLE.format(
        record("round.committed", round=7, seconds=41.812345678, note="two words", empty="")
    )
    assert line == (
        "2026-03-01T12:00:00.123Z INFO coordinator.service round.committed "
        'round=7 seconds=41.8123 note="two words" empty=""'
    )


def test_a_json_line():
    line = json.loads(
        JSON.format(record("round.committed", round=7, who=None, where=Path("/x"), kid=b"\x01"))
    )
    assert line == {
        "ts": "2026-03-01T12:00:00.123Z",
        "level": "info",
        "logger": "coordinator.service",
        "event": "round.committed",
        "round": 7,
        "who": None,
        "where": "/x",
        "kid": "01",
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("nan")], {1: object()}, {(1, 2): 3}])
def test_every_value_becomes_valid_json(value):
    def refused(constant):
        raise AssertionError(constant)

    json.loads(JSON.format(record("event", value=value)), parse_constant=refused)


@given(st.text() | st.characters(), st.text())
def test_nobody_forges_a_line(event, value):
    for formatter in (CONSOLE, JSON):
        line = formatter.format(record(event, note=value))
        assert len(line.splitlines()) == 1
        assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", line)
        line.encode()
    told = json.loads(line)
    assert told["event"] == event
    assert told["note"] == value
    console = CONSOLE.format(record("event", note=value)).partition("note=")[2]
    assert console == value or json.loads(console) == value


@pytest.mark.parametrize("formatter", [CONSOLE, JSON])
def test_a_traceback_cannot_look_like_another_event(formatter):
    try:
        raise ValueError("x\n2026-03-01T12:00:00.123Z INFO forged\x1b[2J")  # noqa: TRY301 - to have a traceback
    except ValueError:
        lines = formatter.format(record("failed", exc_info=sys.exc_info())).splitlines()
    assert "\x1b" not in "".join(lines)
    assert all(line.startswith("    ") for line in lines[1:])
    assert "ValueError" in "".join(lines)


def test_bound_facts_come_first_nest_and_end():
    with bound(run="r1", round=1):
        with bound(round=2, client="client-1"):
            assert facts(taken=3) == {"facts": {"run": "r1", "round": 2, "client": "client-1", "taken": 3}}
        assert facts() == {"facts": {"run": "r1", "round": 1}}
    assert facts() == {"facts": {}}


def test_bound_facts_follow_into_tasks_but_not_across_them():
    async def worker(name):
        with bound(client=name):
            await asyncio.sleep(0)
            return facts()["facts"]

    async def main():
        with bound(run="r1"):
            return await asyncio.gather(worker("a"), worker("b"))

    assert asyncio.run(main()) == [{"run": "r1", "client": "a"}, {"run": "r1", "client": "b"}]


def test_facts_may_have_the_names_of_a_log_records_own_fields_but_not_of_ours():
    logging.getLogger("x").info("event", extra=facts(name="n", args=1, module="m"))
    with pytest.raises(AssertionError):
        facts(level=1)


def test_lines_go_to_stderr_as_json_where_it_is_no_terminal(restored, capsys):
    setup("info")
    logging.getLogger("fedmq.test").info("said", extra=facts(round=1))
    logging.getLogger("fedmq.test").debug("not said")
    logging.getLogger("amqtt.broker").info("not said")
    out, err = capsys.readouterr()
    assert out == ""
    assert [json.loads(line)["event"] for line in err.splitlines()] == ["said"]


def test_setting_up_again_replaces_the_handler_and_leaves_those_of_others(restored, capsys):
    others = logging.getLogger().handlers[:]
    setup("info", "json")
    setup("debug", "console")
    assert logging.getLogger().handlers[: len(others)] == others
    assert len(logging.getLogger().handlers) == len(others) + 1
    logging.getLogger("amqtt.broker").debug("said")
    assert capsys.readouterr().err.endswith("Z DEBUG amqtt.broker said\n")


def test_lines_go_to_a_file_and_are_added(restored, tmp_path, capsys):
    path = tmp_path / "logs" / "fedmq.log"
    for event in ("one", "two"):
        setup("info", file=path)
        logging.getLogger("fedmq.test").info(event)
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["one", "two"]
    assert capsys.readouterr().err == ""


def test_a_log_file_that_cannot_be_written_is_a_matter_of_configuration(restored, tmp_path):
    with pytest.raises(ConfigError, match="cannot write the log file"):
        setup("info", file=tmp_path)
