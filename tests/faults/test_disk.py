"""A disk that takes nothing for a while: the run waits, says so, and goes on when there is room."""

import asyncio
import shutil
import subprocess
from contextlib import contextmanager, suppress

import pytest

from common import limits
from support.lab import Lab, served
from support.patience import within
from support.polling import eventually


@pytest.fixture
def lab(tmp_path):
    """A federation whose coordinator lives on a disk of 16 MB."""
    made, place = Lab(tmp_path), tmp_path / "coordinator"
    place.mkdir()
    mount = shutil.which("mount")
    small = [mount, "-t", "tmpfs", "-o", "size=16m", "tmpfs", place]
    if mount is None or subprocess.run(small, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield made
    made.close()
    subprocess.run(["umount", place], check=True)


@contextmanager
def full(place):
    """Leave no room on a disk."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    yield
    filler.unlink()


def test_a_full_disk_only_delays_the_run(lab):
    async def main():
        async with asyncio.timeout(within(60)), served(lab.client("client-1"), lab.client("client-2")):
            coordinator = lab.coordinator(rounds=30)
            serving = asyncio.create_task(coordinator.serve())
            await eventually(lambda: lab.named("round.finished"))
            with full(lab.tmp_path / "coordinator"):
                await eventually(lambda: lab.named("storage.refused") or lab.named("update.unfetched"))
                done = len(lab.named("round.finished"))
                await asyncio.sleep(2 * limits.STORAGE_RETRY_S)
                assert len(lab.named("round.finished")) == done
            return await serving

    ended = asyncio.run(main())
    assert (ended.rounds, ended.completed) == (30, True)
    assert lab.named("storage.refused")
    assert not lab.named("update.refused")
