"""A client's side of a transfer as a process of its own, to be killed.

python -m support.post_process fetch|offer NAME PORT DIRECTORY <manifest.json
"""

import asyncio
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import msgspec

from common.ids import COORDINATOR
from common.messages import Manifest
from support.post import LAB, post
from support.running import environment


@contextmanager
def running(verb, name, port, directory, manifest):
    """Run one; what still runs at the end is killed."""
    command = [sys.executable, "-m", "support.post_process", verb, name, str(port), str(directory)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment())
    try:
        process.stdin.write(msgspec.json.encode(manifest))
        process.stdin.close()
        yield process
    finally:
        process.kill()
        process.wait()


async def main(verb, name, port, directory):
    manifest = msgspec.json.decode(sys.stdin.buffer.read(), type=Manifest)
    async with post(name, int(port), Path(directory)) as (client, _store):
        if verb == "fetch":
            await client.fetch(COORDINATOR, manifest, LAB.model(manifest.digest))
        else:
            await client.offer(manifest)
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
