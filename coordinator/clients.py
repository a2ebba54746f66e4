"""Who takes part: births, and whether a client can train this federation's model."""

from dataclasses import dataclass, field

from common import limits
from common.ids import Boot, ClientId
from common.messages import Info, Reason


@dataclass(slots=True)
class Clients:
    """What clients said of themselves. A client may be asked once it is here and its birth was read."""

    schema: str  # digest, of the federation's model
    infos: dict[ClientId, Info] = field(default_factory=dict)
    kids: dict[ClientId, bytes] = field(default_factory=dict)  # whose key signed the birth line
    boots: dict[ClientId, Boot] = field(
        default_factory=dict
    )  # the newest start of each, as far as it was heard
    here: set[ClientId] = field(default_factory=set)
    barred: dict[ClientId, Reason] = field(default_factory=dict)  # who may not take part, and why

    def born(self, client: ClientId, info: Info, kid: bytes) -> bool:
        """Take in a birth line; True if it is news."""
        self.boots[client] = info.boot
        if self.infos.get(client) == info and self.kids[client] == kid:
            return False
        self.infos[client], self.kids[client] = info, kid
        return True

    def may_take_part(self, client: ClientId) -> bool:
        """Tell whether the client is here, and trains the federation's model."""
        info = self.infos.get(client)
        fits = info is not None and info.schema == self.schema
        return fits and client in self.here and client not in self.barred

    def excluded(self) -> list[str]:
        """List whom an operator excluded, as far as a message has room."""
        found = sorted(client for client, reason in self.barred.items() if reason is Reason.EXCLUDED)
        return [str(client) for client in found[: limits.ARRAY_ITEMS_MAX]]

    def problem(self, client: ClientId) -> tuple[Reason, str] | None:
        """Say why a client that was born cannot take part."""
        info = self.infos.get(client)
        if info is None or info.schema == self.schema:
            return None
        return Reason.WRONG_SCHEMA, (
            f"{client} trains {info.model or 'a model'} on {info.dataset or 'its data'} with the schema "
            f"{info.schema[:12]}, the federation's model has {self.schema[:12]}"
        )
