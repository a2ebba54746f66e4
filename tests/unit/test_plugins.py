import sys

import pytest

from common import plugins
from common.errors import ConfigError, UsageError


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Two packages with entry points: one that works, one whose module is missing."""
    (tmp_path / "fedmq_lab.py").write_text("class nets:\n    deep = 'a net'\n")
    info = tmp_path / "fedmq_lab-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fedmq-lab\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[fedmq.models]\ndeep = fedmq_lab:nets.deep\ngone = fedmq_gone:net\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_a_builtin_name_is_found_first():
    assert plugins.find("fedmq.models", {"cnn": 1}, "cnn") == 1


@pytest.mark.usefixtures("installed")
def test_entry_points_and_attributes_of_modules_are_found():
    assert plugins.find("fedmq.models", {}, "deep") == "a net"
    assert plugins.find("fedmq.models", {}, "fedmq_lab:nets.deep") == "a net"


@pytest.mark.usefixtures("installed")
def test_an_unknown_name_is_told_all_names():
    with pytest.raises(
        UsageError,
        match=r"no 'resnet' among the models; there are: cnn, deep, gone; or package\.module:attribute",
    ):
        plugins.find("fedmq.models", {"cnn": 1}, "resnet")


def test_a_module_in_the_current_directory_is_found(tmp_path, monkeypatch):
    (tmp_path / "fedmq_here.py").write_text("net = 'mine'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert plugins.find("fedmq.models", {}, "fedmq_here:net") == "mine"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["gone", "fedmq_gone:net", "fedmq_lab:nets.wide", ":net", "fedmq_lab:"])
def test_what_cannot_be_loaded_is_a_usage_error(name):
    with pytest.raises(UsageError, match="cannot be loaded") as raised:
        plugins.find("fedmq.models", {}, name)
    assert "in the directory where the module is" in raised.value.advice


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("fedavg", "fedavg", {}),
        (" fedavg ( ) ", "fedavg", {}),
        ("fedavg(lr=0.5)", "fedavg", {"lr": 0.5}),
        (
            "lab.nets:unet(depth=-4, wide=True, sizes=(1, 2))",
            "lab.nets:unet",
            {"depth": -4, "wide": True, "sizes": (1, 2)},
        ),
        ("a(b=')')", "a", {"b": ")"}),
    ],
)
def test_options_are_literals(text, name, options):
    assert plugins.parse(text) == (name, options)


@pytest.mark.parametrize(
    "text",
    [
        "a(", "a)(", "a(b)", "a(1)", "a(b=c)", "a(b=1)(c=2)", "a(b=1)+_(c=2)", "a(**{'b': 1, **c})", "a(b=1, b=2)",
        "a(b=print())", "a(b=[i for i in 'x'])", "a(b=" + "(" * 500, "a(b=\0)",
    ],
)  # fmt: skip
def test_anything_else_is_a_usage_error(text):
    with pytest.raises(UsageError, match="with literals"):
        plugins.parse(text)


def test_options_are_handed_over_even_if_they_are_called_name():
    assert plugins.call("net", lambda **options: options, name=1, function=2) == {"name": 1, "function": 2}


@pytest.mark.parametrize(
    ("function", "takes"), [(lambda x, depth=3: (x, depth), "depth=3"), (lambda x: x, "none")]
)
def test_an_option_that_is_not_taken_is_told_those_that_are(function, takes):
    with pytest.raises(ConfigError, match=f"net: .*'wide'; its options are: {takes}"):
        plugins.call("net", function, 1, wide=2)
