"""What Mosquitto is told, to the letter. A difference is a decision about access: change the files by hand."""

from pathlib import Path

from broker.mosquitto import Setup, acl_text, conf_text

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


def test_the_configuration_on_the_loopback_interface():
    assert conf_text(HOME) == (HERE / "mosquitto-home.conf").read_text()


def test_the_configuration_on_every_interface_with_websockets_and_a_memory():
    assert conf_text(AWAY) == (HERE / "mosquitto-away.conf").read_text()


def test_the_rules():
    assert acl_text() == (HERE / "mosquitto.acl").read_text()


def test_without_observers_the_nameless_read_nothing():
    own, others = acl_text(observers=False).split("user coordinator", 1)
    assert "read" not in own
    assert "topic deny fedmq/+/model/+" in own
    assert "topic deny fedmq/+/coordinator/+" in own
    assert acl_text().endswith(others)
