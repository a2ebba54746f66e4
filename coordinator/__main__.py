"""A coordinator for a container: settings from FEDMQ_* and the TOML file, events as JSON Lines on standard output."""

import asyncio
import json

from common import log
from common.crew import leave
from common.settings import load
from coordinator.assembly import serve

settings = load()
log.setup(settings.log.level, settings.log.format, settings.log.file)
ended = asyncio.run(serve(settings, hold=False, report=lambda facts: print(json.dumps(facts), flush=True)))
leave(0 if ended and ended.completed else 1)
