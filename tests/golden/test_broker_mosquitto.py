"""What Mosquitto is told, to the letter. A difference is a decision about access: change the files by hand."""

from dataclasses import replace
from pathlib import Path

from broker.mosquitto import Private, Setup, acl_text, conf_text, pairing_acl_text

HERE = Path(__file__).parent
HOME = Setup(host="127.0.0.1", port=1883, directory="/run/fedmq")
AWAY = Setup(
    host="0.0.0.0",  # noqa: S104 - it is text
    port=1884,
    directory="/var/lib/fedmq",
    user="root",
    ws_port=9001,
    persistent=True,
    observers=False,
)
PRIVATE = Setup(
    host="0.0.0.0",  # noqa: S104 - it is text
    port=8883,
    directory="/run/fedmq",
    ws_port=9001,
    private=Private(
        root="/keys/root.pem",
        certificate="/keys/broker-broker.pem",
        key="/keys/broker-broker.key",
        revoked="/run/fedmq/crl.pem",
        pairing_port=8884,
    ),
)


def test_the_configuration_on_the_loopback_interface():
    assert conf_text(HOME) == (HERE / "mosquitto-home.conf").read_text()


def test_the_configuration_on_every_interface_with_websockets_and_a_memory():
    assert conf_text(AWAY) == (HERE / "mosquitto-away.conf").read_text()


def test_the_configuration_with_mutual_tls_and_a_listener_for_newcomers():
    assert conf_text(PRIVATE) == (HERE / "mosquitto-private.conf").read_text()


def test_before_anything_was_revoked_and_without_pairing_there_is_no_word_of_either():
    assert PRIVATE.private is not None
    text = conf_text(replace(PRIVATE, private=replace(PRIVATE.private, revoked=None, pairing_port=None)))
    whole = (HERE / "mosquitto-private.conf").read_text()
    assert text == whole[: whole.index("listener 8884")].replace("crlfile /run/fedmq/crl.pem\n", "")


def test_the_rules():
    assert acl_text() == (HERE / "mosquitto.acl").read_text()


def test_without_observers_the_nameless_read_nothing():
    own, others = acl_text(observers=False).split("user coordinator", 1)
    assert "read" not in own
    assert "topic deny fedmq/+/model/+" in own
    assert "topic deny fedmq/+/coordinator/+" in own
    assert acl_text().endswith(others)


def test_newcomers_have_rules_of_their_own_and_come_in_by_the_common_door_where_there_is_no_other():
    newcomers = (HERE / "pairing.acl").read_text()
    assert pairing_acl_text() == newcomers
    assert acl_text() == f"{acl_text(newcomers=False)}\n{newcomers}"
