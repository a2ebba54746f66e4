"""A coordinator for a container: settings from FEDMQ_* and the TOML file, events as JSON Lines on standard output."""

import asyncio
import json
import sys

from common import log
from common.crew import leave
from common.errors import FedmqError, cause_of
from common.settings import load
from coordinator.assembly import serve


def main() -> int:
    """Run a coordinator until its run is over; return the exit code."""
    try:
        settings = load()
        log.setup(settings.log.level, settings.log.format, settings.log.file)
        ended = asyncio.run(
            serve(settings, hold=False, report=lambda facts: print(json.dumps(facts), flush=True))
        )
    except (FedmqError, BaseExceptionGroup) as error:
        cause = cause_of(error)
        if not isinstance(cause, FedmqError):
            raise
        sys.stderr.write(f"{cause}\n{cause.advice}\n")
        return cause.exit_code
    return 0 if ended and ended.completed else 1


if __name__ == "__main__":
    leave(main())
