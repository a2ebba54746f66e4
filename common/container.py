"""Runs a part as its container does: settings from FEDMQ_* and the TOML file, events as JSON Lines."""

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from common import log
from common.crew import leave
from common.errors import FedmqError, cause_of
from common.settings import Settings, load

Report = Callable[[dict[str, object]], None]


def run(part: Callable[[Settings, Report], Coroutine[Any, Any, int]]) -> NoReturn:
    """Run a part to its end, and end the process with its exit code or with that of what went wrong."""
    try:
        settings = load()
        log.setup(settings.log.level, settings.log.format, settings.log.file)
        code = asyncio.run(part(settings, lambda facts: print(json.dumps(facts), flush=True)))
    except (FedmqError, BaseExceptionGroup) as error:
        cause = cause_of(error)
        if not isinstance(cause, FedmqError):
            raise
        sys.stderr.write(f"{cause}\n{cause.advice}\n")
        code = cause.exit_code
    leave(code)
