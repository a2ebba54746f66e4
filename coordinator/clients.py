"""Who takes part: births, and whether a client can train this federation's model."""

from dataclasses import dataclass, field

from common.ids import ClientId
from common.messages import Info, Reason


@dataclass(slots=True)
class Clients:
    """What clients said of themselves. A client may be asked once it is here and its birth was read."""

    schema: str  # digest, of the federation's model
    infos: dict[ClientId, Info] = field(default_factory=dict)
    here: set[ClientId] = field(default_factory=set)

    def born(self, client: ClientId, info: Info) -> bool:
        """Take in a birth line; True if it is news."""
        if self.infos.get(client) == info:
            return False
        self.infos[client] = info
        return True

    def may_take_part(self, client: ClientId) -> bool:
        """Tell whether the client is here, and trains the federation's model."""
        info = self.infos.get(client)
        return client in self.here and info is not None and info.schema == self.schema

    def problem(self, client: ClientId) -> tuple[Reason, str] | None:
        """Say why a client that was born cannot take part."""
        info = self.infos.get(client)
        if info is None or info.schema == self.schema:
            return None
        return Reason.WRONG_SCHEMA, (
            f"{client} trains {info.model or 'a model'} on {info.dataset or 'its data'} with the schema "
            f"{info.schema[:12]}, the federation's model has {self.schema[:12]}"
        )
