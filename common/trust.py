"""Whom a participant believes: the peers that the root vouches for, admitted by certificate, then known by kid."""

from collections.abc import Callable
from datetime import UTC, datetime

from cryptography import x509

from common import certificates, limits, revocations
from common.certificates import Peer, Root
from common.errors import ForkedError, OutOfDateError, RevokedError, SignatureError
from common.revocations import Revocations


class TrustStore:
    """The peers of one federation."""

    def __init__(
        self,
        root: Root,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        revoked: Revocations | None = None,
    ) -> None:
        self.root = root
        self.revoked = revoked
        self._clock = clock
        self._peers: dict[bytes, Peer] = {}

    def admit(self, certificate_der: bytes) -> Peer:
        """Check a certificate against the root and remember whose it is; again is normal.

        Raises: SignatureError naming what is wrong with it, OutOfDateError and RevokedError among them.
        """
        peer = certificates.check(self.root, certificate_der, self._clock())
        self._require_not_revoked(peer)
        known = self._peers.get(peer.kid)
        if known is None and len(self._peers) >= limits.PEERS_MAX:
            raise SignatureError(f"no room for {peer.name}: {limits.PEERS_MAX} peers are known already")
        if known is not None and (known.role, known.name) != (peer.role, peer.name):
            raise SignatureError(f"the key of {peer.role} {peer.name} is that of {known.role} {known.name}")
        self._peers[peer.kid] = peer
        return peer

    def knows(self, kid: bytes) -> bool:
        """Tell whether a key was introduced."""
        return kid in self._peers

    def find(self, kid: bytes) -> Peer:
        """Find an admitted peer. Raises: SignatureError, OutOfDateError, RevokedError."""
        peer = self._peers.get(kid)
        if peer is None:
            raise SignatureError(f"no participant with the key {kid.hex()} was introduced")
        if self._clock() > peer.not_after:
            raise OutOfDateError(
                f"the certificate of {peer.role} {peer.name} ended on {peer.not_after:%Y-%m-%d}"
            )
        self._require_not_revoked(peer)
        return peer

    def revoke(self, pem: bytes) -> bool:
        """Heed a revocation list; tells whether it is news.

        Raises: SignatureError; OutOfDateError for an older one, ForkedError for another one with the same number.
        """
        found = revocations.read(self.root, pem)
        number = self.revoked.number if self.revoked else -1
        if found.number < number:
            raise OutOfDateError(f"the revocation list {found.number} is older than the known one, {number}")
        if self.revoked is not None and found.number == number:
            if found.at.keys() != self.revoked.at.keys():
                raise ForkedError(f"there are two revocation lists {number}: the root's key has two homes")
            return False
        self.revoked = found
        return True

    @property
    def number(self) -> int:
        """The revocation list in force; 0: there was none yet."""
        return self.revoked.number if self.revoked else 0

    def is_newer(self, found: Revocations) -> bool:
        """Tell whether a list is a later one than that in force."""
        return found.number > self.number

    def is_revoked(self, kid: bytes) -> bool:
        """Tell whether the certificate that introduced a key was taken back."""
        peer = self._peers.get(kid)
        return peer is not None and self.revoked is not None and peer.serial in self.revoked

    def has_revoked(self, name: str) -> bool:
        """Tell whether any certificate of a participant that was introduced was taken back."""
        return any(peer.name == name and self.is_revoked(kid) for kid, peer in tuple(self._peers.items()))

    def revokes(self, certificate_der: bytes) -> bool:
        """Tell whether a certificate was taken back. Raises: ValueError where it is none."""
        serial = x509.load_der_x509_certificate(certificate_der).serial_number
        return self.revoked is not None and serial in self.revoked

    def _require_not_revoked(self, peer: Peer) -> None:
        if self.revoked is not None and peer.serial in self.revoked:
            since = self.revoked.at[peer.serial]
            raise RevokedError(f"the certificate of {peer.role} {peer.name} was revoked on {since:%Y-%m-%d}")
