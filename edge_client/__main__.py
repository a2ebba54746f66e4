"""A client for a container: `python -m edge_client CLIENT-ID`; settings from FEDMQ_* and the TOML file."""

import argparse
import asyncio
import json
import sys

from common import log
from common.crew import leave
from common.errors import FedmqError, cause_of
from common.settings import load
from edge_client.assembly import serve


def main() -> int:
    """Run a client until it is told to stop; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m edge_client", description=__doc__)
    parser.add_argument("client_id", metavar="CLIENT-ID")
    name = parser.parse_args().client_id
    try:
        settings = load()
        log.setup(settings.log.level, settings.log.format, settings.log.file)
        asyncio.run(serve(settings, name, report=lambda facts: print(json.dumps(facts), flush=True)))
    except (FedmqError, BaseExceptionGroup) as error:
        cause = cause_of(error)
        if not isinstance(cause, FedmqError):
            raise
        sys.stderr.write(f"{cause}\n{cause.advice}\n")
        return cause.exit_code
    return 0


if __name__ == "__main__":
    leave(main())
