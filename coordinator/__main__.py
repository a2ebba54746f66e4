"""A coordinator for a container: `python -m coordinator`."""

from common import container
from common.settings import Settings
from coordinator.assembly import serve


async def main(settings: Settings, report: container.Report) -> int:
    """Run one coordinator until its run is over."""
    return await serve(settings, hold=False, report=report)


if __name__ == "__main__":
    container.run(main)
