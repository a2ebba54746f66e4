"""A client for a container: `python -m edge_client CLIENT-ID`."""

import argparse

from common import container
from common.settings import Settings
from edge_client.assembly import serve


async def main(settings: Settings, report: container.Report) -> int:
    """Run one client until it is told to stop."""
    parser = argparse.ArgumentParser(prog="python -m edge_client", description=__doc__)
    parser.add_argument("client_id", metavar="CLIENT-ID")
    await serve(settings, parser.parse_args().client_id, report=report)
    return 0


if __name__ == "__main__":
    container.run(main)
