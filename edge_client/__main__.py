"""A client for a container: `python -m edge_client CLIENT-ID`; settings from FEDMQ_* and the TOML file."""

import asyncio
import json
import sys

from common import log
from common.crew import leave
from common.settings import load
from edge_client.assembly import serve

settings = load()
log.setup(settings.log.level, settings.log.format, settings.log.file)
asyncio.run(serve(settings, sys.argv[1], report=lambda facts: print(json.dumps(facts), flush=True)))
leave(0)
