"""A broker for a container: `python -m broker`."""

from broker.assembly import policy_of
from broker.engine import serve
from common import container
from common.settings import Settings


async def main(settings: Settings, report: container.Report) -> int:
    """Run one broker until it is told to stop."""
    await serve(policy_of(settings), lambda at: report({"event": "broker.listening", **at.facts()}))
    return 0


if __name__ == "__main__":
    container.run(main)
