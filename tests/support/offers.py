"""Updates as the coordinator hears them: each with the signed envelope that it came in."""

from pathlib import Path

from common import codec, envelope
from common.identity import Identity, Role
from common.ids import Boot
from common.messages import Update
from common.topics import Kind, Topics
from coordinator.round import Offered
from support import federation


def client(keys_dir: Path, name: str) -> Identity:
    """Make a client's keys."""
    return federation.member(keys_dir, Role.CLIENT, name)


def sealed(client: Identity, update: Update) -> Offered:
    """Say an update as its client does."""
    header = envelope.Header(
        federation=federation.NAME, sender=client.name, boot=Boot("0b" * 8), sequence=update.round
    )
    topic = Topics(federation.NAME).client(client.name, Kind.REPLY)
    return Offered(update, envelope.seal(client, topic, "update", header, codec.encode(update)))
