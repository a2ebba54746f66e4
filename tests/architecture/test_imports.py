"""Who may import whom, read from the sources: imports inside functions count too."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.voice import VERSION

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = set(PROJECT["tool"]["setuptools"]["packages"])

APPS = PACKAGES - {"common", "compose"}
MAY_IMPORT = {"common": set(), "compose": APPS | {"common"}} | {app: {"common"} for app in APPS}

# Law 1: cores decide, shells wait
CORES = {
    "broker/matching.py",
    "broker/rules.py",
    "common/envelope.py",
    "common/ingress.py",
    "common/lines.py",
    "common/presence.py",
    "common/transfer.py",
    "coordinator/aggregators.py",
    "coordinator/clients.py",
    "coordinator/cohort.py",
    "coordinator/history.py",
    "coordinator/results.py",
    "coordinator/buffer.py",
    "coordinator/round.py",
    "coordinator/shelf.py",
    "coordinator/run.py",
    "coordinator/saved.py",
    "coordinator/screening.py",
    "coordinator/transcript.py",
    "edge_client/session.py",
}
WAITS = {"asyncio", "logging", "os", "random", "socket", "sqlite3", "threading", "time"}

ONLY_IN = {
    "amqtt": ("broker/",),
    "msgpack": ("common/codec.py",),
    "paho": ("common/mqtt.py",),
    "pydantic": ("common/groups.py", "common/settings.py"),
    "pydantic_settings": ("common/settings.py",),
    "rich": ("compose/",),
    "torch": (
        "common/datasets.py",
        "common/evaluation.py",
        "common/models.py",
        "compose/nursery.py",
        "coordinator/assembly.py",
        "edge_client/assembly.py",
        "edge_client/optimizers.py",
        "edge_client/trainer.py",
    ),
    "typer": ("compose/",),
}
NOWHERE = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
NEVER_CALLED = {"eval", "exec", "numpy.load", "torch.load", "yaml.load"}
NOT_FOR_HELP = {"amqtt", "numpy", "paho", "pydantic", "sklearn", "torch"}

SOURCES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for package in sorted(PACKAGES)
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted name of all that is imported: modules, and names out of them."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module, names, level):
                yield from (f"{'.' * level}{module or ''}.{alias.name}" for alias in names)


def called(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted name of each function that is called, through the aliases it was imported under."""
    aliases = {}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                aliases |= {alias.asname: alias.name for alias in names if alias.asname}
            case ast.ImportFrom(module, names):
                aliases |= {alias.asname or alias.name: f"{module}.{alias.name}" for alias in names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, *rest = ast.unparse(node.func).split(".")
            yield ".".join([aliases.get(first, first), *rest])


def offences(path: str, source: str) -> list[str]:
    """List what this file does that it may not."""
    tree = ast.parse(source)
    package = path.split("/", maxsplit=1)[0]
    found = []
    for name in imported(tree):
        top = name.split(".")[0]
        if not top:
            found.append(f"imports {name}: relative imports hide who depends on whom")
        if top in (PACKAGES | {"tests", "support"}) - MAY_IMPORT[package] - {package}:
            found.append(f"imports {name}: {package} may not")
        if path in CORES and top in WAITS:
            found.append(f"imports {name}: a core neither waits, rolls dice nor reads a clock")
        if not path.startswith(ONLY_IN.get(top, ("",))):
            found.append(f"imports {name}: only {', '.join(ONLY_IN[top])} may")
        if top in NOWHERE:
            found.append(f"imports {name}: nobody may")
    found += [f"calls {name}: nobody may" for name in called(tree) if name in NEVER_CALLED]
    return found


@pytest.mark.parametrize("path", SOURCES)
def test_every_file_imports_and_calls_only_what_it_may(path):
    assert offences(path, SOURCES[path]) == []


@pytest.mark.parametrize("path", SOURCES)
def test_every_module_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(SOURCES[path]))


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_every_package_that_is_shipped_exists(package):
    assert (ROOT / package / "__init__.py").is_file()


def test_every_package_that_exists_is_shipped():
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == PACKAGES


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("broker/x.py", "import coordinator"),
        ("broker/x.py", "def f():\n    from coordinator.round import Phase"),
        ("coordinator/x.py", "from compose import demo"),
        ("common/x.py", "import broker.rules as rules"),
        ("common/x.py", "from . import ids"),
        ("compose/x.py", "from tests.support import require"),
        ("coordinator/round.py", "from time import monotonic"),
        ("common/x.py", "import msgpack"),
        ("common/codec.py", "from pickle import loads"),
        ("compose/x.py", "import numpy as np\nnp.load('x')"),
        ("compose/nursery.py", "from torch import load as read\nread('x')"),
        ("compose/x.py", "eval('1')"),
    ],
)
def test_an_offence_is_seen(path, source):
    assert len(offences(path, source)) == 1


def test_what_is_allowed_is_no_offence():
    assert (
        offences("compose/nursery.py", "import coordinator\nfrom common.ids import NAME\nimport torch") == []
    )
    assert offences("edge_client/trainer.py", "import torch\nmodel.eval()\njson.load(file)") == []


def test_the_version_that_is_said_on_the_wire_is_the_installed_one():
    assert PROJECT["project"]["version"] == VERSION


def test_the_command_line_starts_without_what_is_slow_to_import():
    code = "import sys, compose.cli; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not NOT_FOR_HELP & set(loaded.stdout.split())
