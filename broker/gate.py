"""Who may come in, and as whom: by certificate over TLS, by word of mouth without.

    plain     the user name, or else the client id; names that the rules do not know are observers
    mutual    the name in the certificate, which the root has signed and not taken back
    pairing   a newcomer without a certificate, by the id of its token; in plain it comes in by the same door

Law: without TLS nobody is known, and a user name proves nothing: what counts then are the signatures.
"""

import re
import ssl
from dataclasses import dataclass
from enum import StrEnum

from broker.rules import Role, role_of
from common import certificates
from common.errors import SignatureError
from common.ids import INVITATION
from common.trust import TrustStore

_ROLES = {
    certificates.Role.COORDINATOR: Role.COORDINATOR,
    certificates.Role.OPERATOR: Role.OPERATOR,
    certificates.Role.DASHBOARD: Role.DASHBOARD,
    certificates.Role.BROKER: Role.BROKER,
    certificates.Role.CLIENT: Role.CLIENT,
}


class Entrance(StrEnum):
    """What a listener asks for."""

    PLAIN = "plain"
    MUTUAL = "mutual"
    PAIRING = "pairing"


@dataclass(frozen=True, slots=True)
class User:
    """Who somebody is, as far as this broker is concerned."""

    name: str
    role: Role
    serial: int | None = None  # of the certificate


class Gate:
    """Lets in, or not."""

    def __init__(self, *, observers: bool, trust: TrustStore | None = None) -> None:
        """`observers`: whether names that the rules do not know may come in without TLS."""
        self.trust = trust
        self._observers = observers

    def enter(
        self, entrance: Entrance, client_id: str, username: str | None, tls: ssl.SSLObject | None
    ) -> User | None:
        """Say who this is; None for one who may not come in."""
        match entrance:
            case Entrance.PLAIN:
                name = username or client_id
                role = Role.NEWCOMER if re.fullmatch(INVITATION, name) else role_of(name)
                return User(name, role) if role is not Role.OBSERVER or self._observers else None
            case Entrance.MUTUAL:
                user = self._certified(tls)
                return user if user is not None and username in {None, "", user.name} else None
            case Entrance.PAIRING:
                known = username is not None and re.fullmatch(INVITATION, username)
                return User(str(username), Role.NEWCOMER) if known else None

    def _certified(self, tls: ssl.SSLObject | None) -> User | None:
        certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        if certificate is None or self.trust is None:
            return None
        try:
            peer = self.trust.admit(certificate)
        except SignatureError:
            return None
        role = _ROLES.get(peer.role)
        return User(peer.name, role, peer.serial) if role is not None else None
