"""Who comes in, and as whom: by certificate, by user name, or with the id of an invitation."""

import pytest

from broker.gate import Entrance, Gate, User
from broker.rules import Role
from common import certificates, identity
from common.trust import TrustStore
from support.federation import member, root

TOKEN = "0a" * 8


class Shown:
    """What TLS knows of the other side."""

    def __init__(self, certificate: bytes | None) -> None:
        self.certificate = certificate

    def getpeercert(self, *, binary_form: bool) -> bytes | None:
        assert binary_form
        return self.certificate


@pytest.fixture
def trust(tmp_path):
    return TrustStore(root(tmp_path))


def entered(entrance, *, client_id="x-1", username=None, tls=None, trust=None, observers=True):
    return Gate(observers=observers, trust=trust).enter(entrance, client_id, username, tls)


# --- without TLS ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client_id", "username", "name", "role"),
    [
        ("c1-9f", "c1", "c1", Role.CLIENT),
        ("c1", None, "c1", Role.CLIENT),
        ("c1", "", "c1", Role.CLIENT),
        ("c1", "c2", "c2", Role.CLIENT),
        ("operator-1f", "operator", "operator", Role.OPERATOR),
        ("coordinator-1f", "coordinator", "coordinator", Role.COORDINATOR),
        ("coordinator-1f", None, "coordinator-1f", Role.OBSERVER),
        ("phone", TOKEN, TOKEN, Role.NEWCOMER),
        (TOKEN, None, TOKEN, Role.NEWCOMER),
        ("mosq/9f3", None, "mosq/9f3", Role.OBSERVER),
    ],
)
def test_without_tls_the_user_name_says_who_it_is_or_else_the_client_id(client_id, username, name, role):
    assert entered(Entrance.PLAIN, client_id=client_id, username=username) == User(name, role)


def test_names_that_the_rules_do_not_know_stay_outside_where_there_are_no_observers():
    assert entered(Entrance.PLAIN, client_id="mosq/9f3", observers=False) is None
    for name in ("c1", "operator", TOKEN):
        assert entered(Entrance.PLAIN, username=name, observers=False).name == name


# --- with a certificate ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of", "name", "role"),
    [
        (certificates.Role.CLIENT, "c1", Role.CLIENT),
        (certificates.Role.COORDINATOR, "coordinator", Role.COORDINATOR),
        (certificates.Role.OPERATOR, "operator", Role.OPERATOR),
        (certificates.Role.DASHBOARD, "dashboard", Role.DASHBOARD),
        (certificates.Role.BROKER, "broker", Role.BROKER),
    ],
)
def test_a_certificate_says_who_it_is_whatever_the_client_id_says(tmp_path, trust, of, name, role):
    shown = member(tmp_path, of, name).certificate_der
    serial = certificates.read(shown).serial_number
    for username in (None, "", name):
        user = entered(
            Entrance.MUTUAL, client_id="operator", username=username, tls=Shown(shown), trust=trust
        )
        assert user == User(name, role, serial)


def test_nobody_comes_in_under_another_name_than_that_of_its_certificate(tmp_path, trust):
    shown = Shown(member(tmp_path, certificates.Role.CLIENT, "c1").certificate_der)
    for username in ("c2", "operator", "C1", TOKEN):
        assert entered(Entrance.MUTUAL, username=username, tls=shown, trust=trust) is None


def test_whoever_shows_nothing_stays_outside(trust):
    for tls in (None, Shown(None), Shown(b"junk")):
        assert entered(Entrance.MUTUAL, username="c1", tls=tls, trust=trust) is None


def test_where_nobody_is_believed_nobody_comes_in(tmp_path):
    shown = Shown(member(tmp_path, certificates.Role.CLIENT, "c1").certificate_der)
    assert entered(Entrance.MUTUAL, tls=shown) is None


def test_a_certificate_of_another_root_or_a_revoked_one_lets_nobody_in(tmp_path, trust, tmp_path_factory):
    theirs = member(tmp_path_factory.mktemp("elsewhere"), certificates.Role.CLIENT, "c1")
    assert entered(Entrance.MUTUAL, tls=Shown(theirs.certificate_der), trust=trust) is None
    shown = Shown(member(tmp_path, certificates.Role.CLIENT, "c1").certificate_der)
    assert entered(Entrance.MUTUAL, tls=shown, trust=trust)
    trust.revoke(identity.revoke(tmp_path, certificates.Role.CLIENT, "c1").pem)
    assert entered(Entrance.MUTUAL, tls=shown, trust=trust) is None


def test_a_role_that_has_no_business_at_a_broker_stays_outside(tmp_path, trust):
    shown = Shown(member(tmp_path, certificates.Role.BRIDGE, "bridge-1").certificate_der)
    assert entered(Entrance.MUTUAL, tls=shown, trust=trust) is None


# --- newcomers ------------------------------------------------------------------------------------


def test_the_door_for_newcomers_is_for_the_ids_of_invitations_alone(tmp_path, trust):
    shown = Shown(member(tmp_path, certificates.Role.CLIENT, "c1").certificate_der)
    for tls in (None, shown):
        assert entered(Entrance.PAIRING, username=TOKEN, tls=tls, trust=trust) == User(TOKEN, Role.NEWCOMER)
        for username in (None, "", "c1", "operator", TOKEN[:-1], TOKEN + "0", TOKEN.upper(), TOKEN + "\n"):
            assert entered(Entrance.PAIRING, client_id=TOKEN, username=username, tls=tls, trust=trust) is None
