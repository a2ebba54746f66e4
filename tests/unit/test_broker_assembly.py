"""Which broker comes of which settings, and which are refused."""

import pytest

from broker import assembly
from common import certificates, keyfiles, settings
from common.errors import ConfigError
from common.identity import Role
from support.federation import member, root

ANYWHERE = "0.0.0.0"  # noqa: S104 - nothing is bound


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory without a file of settings."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def home(tmp_path):
    root(tmp_path / "keys")
    return tmp_path


def policy(home, **flags):
    flags = {f"broker__{name}": value for name, value in flags.items()}
    return assembly.policy_of(
        settings.load(
            federation="lab",
            keys_dir=home / "keys",
            state_dir=home / "state",
            key_type="ed25519",
            **flags,
        )
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_on_the_loopback_interface_there_is_no_tls_unless_it_is_asked_for(home, host):
    assert policy(home, host=host).private is None
    assert policy(home, host=host, tls=False).private is None
    assert policy(home, host=host, tls=True).private is not None
    assert policy(home, host=host, insecure=True).private is None


@pytest.mark.parametrize("host", [ANYWHERE, "10.0.0.7", "::"])
def test_beyond_it_there_is_tls_unless_the_operator_insists(home, host):
    assert policy(home, host=host).private is not None
    assert policy(home, host=host, tls=True).private is not None
    assert policy(home, host=host, insecure=True).private is None
    assert policy(home, host=host, insecure=True, tls=False).private is None
    with pytest.raises(ConfigError, match=f"anybody who can reach {host}") as open_:
        policy(home, host=host, tls=False)
    assert "--insecure" in open_.value.advice


def test_nobody_can_have_it_both_ways(home):
    for host in ("127.0.0.1", ANYWHERE):
        with pytest.raises(ConfigError, match="--tls and --insecure exclude each other"):
            policy(home, host=host, tls=True, insecure=True)


def test_where_there_is_no_key_of_a_broker_tls_is_not_to_be_had(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no root\.pem"):
        policy(tmp_path, host=ANYWHERE)
    assert policy(tmp_path, host=ANYWHERE, insecure=True).private is None


def test_newcomers_come_in_one_port_after_the_others_or_where_they_are_told(home):
    assert policy(home, tls=True, port=8883).private.pairing_port == 8884
    assert policy(home, tls=True, port=0).private.pairing_port == 0  # any free one
    assert policy(home, tls=True, port=8883, pairing_port=9000).private.pairing_port == 9000
    assert policy(home, tls=True, port=8883, pairing=False).private.pairing_port is None


def test_the_brokers_certificate_names_how_it_is_reached(home):
    private = policy(home, host="10.0.0.7").private
    assert (private.us.role, private.us.name) == (Role.BROKER, "broker")
    hosts = certificates.hosts_of(keyfiles.read_certificate(private.files.certificate))
    assert sorted(hosts) == sorted(["10.0.0.7", "localhost", "127.0.0.1", "::1"])
    assert policy(home, host="10.0.0.8").private.us.kid == private.us.kid  # made once


def test_the_hosts_that_are_told_win_and_every_interface_is_no_host(home):
    told = policy(home, host=ANYWHERE, hosts=["broker.example"]).private
    assert certificates.hosts_of(keyfiles.read_certificate(told.files.certificate)) == ("broker.example",)
    assert ANYWHERE not in assembly._hosts(ANYWHERE)
    assert "localhost" in assembly._hosts(ANYWHERE)
    assert assembly._hosts("localhost") == ("localhost", "127.0.0.1", "::1")


def test_what_was_revoked_before_the_start_counts_at_the_start(home):
    from common import identity

    member(home / "keys", Role.CLIENT, "c1")
    identity.revoke(home / "keys", Role.CLIENT, "c1")
    trust = policy(home, tls=True).private.trust
    assert trust.revokes(member_der(home))


def member_der(home):
    return certificates.der(keyfiles.read_certificate(home / "keys" / "client-c1.pem"))
