"""A federation for tests: Ed25519 keys, for they are made in microseconds."""

from pathlib import Path

from common import identity
from common.identity import Identity, KeyType, Role
from common.ids import Boot, FederationId
from common.ingress import Ingress
from common.trust import TrustStore

NAME = FederationId("lab")


def root(keys_dir: Path) -> identity.Root:
    return identity.create_root(keys_dir, NAME, KeyType.ED25519)


def member(keys_dir: Path, role: Role, name: str) -> Identity:
    root(keys_dir)
    return identity.issue(keys_dir, role, name, KeyType.ED25519)


def ingress(keys_dir: Path, *knows: Identity, boot: Boot | None = None) -> Ingress:
    trust = TrustStore(root(keys_dir))
    for one in knows:
        trust.admit(one.certificate_der)
    return Ingress(NAME, trust, boot=boot)
