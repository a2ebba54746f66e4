"""Logging: the standard library's, configured once; an event's name and its facts, one line each.

    log.info("round.committed", extra=facts(round=7, taken=31, seconds=41.8))

    2026-03-01T12:00:00.123Z INFO coordinator.service round.committed run=r1 round=7 taken=31 seconds=41.8
    {"ts": "2026-03-01T12:00:00.123Z", "level": "info", "logger": "coordinator.service", "event": …, …}

Laws: 1. One event is one line; a traceback follows it indented, or inside the JSON. 2. Nothing that a peer
chose can end a line or steer a terminal: what is not printable is escaped.
"""

import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

from common.errors import ConfigError

_KEY = "facts"
_OURS = frozenset({"ts", "level", "logger", "event", "traceback"})
_CHATTY = ("amqtt", "asyncio", "transitions")  # these say at INFO what only a developer wants to know
_BARE = re.compile(r"[^\s\"=\\]+")  # what needs no quotes in key=value
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_context: ContextVar[Mapping[str, object]] = ContextVar("facts", default={})  # noqa: B039 - replaced, not changed


def logger(name: str) -> logging.Logger:
    """Name the logger of a module, so that what uses one need not import logging as well."""
    return logging.getLogger(name)


def facts(**named: object) -> dict[str, dict[str, object]]:
    """Make the `extra` of a log call: these facts, after those that are bound."""
    assert not _OURS & named.keys(), named.keys()
    return {_KEY: {**_context.get(), **named}}


@contextmanager
def bound(**named: object) -> Iterator[None]:
    """Add facts such as run, round and client to every log call in this context, in its tasks too."""
    token = _context.set({**_context.get(), **named})
    try:
        yield
    finally:
        _context.reset(token)


def setup(level: str = "info", format: str = "auto", file: Path | None = None) -> None:  # noqa: A002 - the setting's name
    """Send all log lines to stderr, or to a file. Again replaces what was set up before.

    Raises: ConfigError where the file cannot be written.
    """
    handler = _handler(file)
    console = format == "console" or (format == "auto" and file is None and sys.stderr.isatty())
    handler.setFormatter(ConsoleFormatter() if console else JsonFormatter())
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old.formatter, (ConsoleFormatter, JsonFormatter))]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.NOTSET if level == "debug" else logging.WARNING)


def _handler(file: Path | None) -> logging.Handler:
    if file is None:
        return logging.StreamHandler(sys.stderr)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write the log file {file}: {error.strerror}") from error


class ConsoleFormatter(logging.Formatter):
    """Write key=value lines for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one event."""
        words = [_time(record), record.levelname, record.name, _word(record.getMessage())]
        words += [f"{key}={_word(value)}" for key, value in _facts(record).items()]
        lines = [" ".join(words)]
        lines += [f"    {escape(line)}" for line in re.split(r"\r\n|\r|\n", self._traceback(record)) if line]
        return "\n".join(lines)

    def _traceback(self, record: logging.LogRecord) -> str:
        return self.formatException(record.exc_info) if record.exc_info else ""


class JsonFormatter(logging.Formatter):
    """Write JSON Lines for machines."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one event."""
        line = {
            "ts": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_facts(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return f"{{{', '.join(f'{_json(key)}: {_json(value)}' for key, value in line.items())}}}"


def _facts(record: logging.LogRecord) -> dict[str, object]:
    found: dict[str, object] = getattr(record, _KEY, {})
    return found


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _word(value: object) -> str:
    """Write a value bare where that is clear, and otherwise as JSON."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else _json(value)
    bare = _BARE.fullmatch(text) and not _UNSAFE.search(text)
    return text if bare or not isinstance(value, str) else _json(value)


def _json(value: object) -> str:
    """Write JSON whatever the value is: NaN and odd objects as text, nothing unprintable."""
    if isinstance(value, bytes):
        value = value.hex()
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except (TypeError, ValueError):
        text = json.dumps(str(value), ensure_ascii=False)
    return escape(text)


def escape(text: str) -> str:
    """Write what is not printable so that it can neither end a line nor steer a terminal."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
