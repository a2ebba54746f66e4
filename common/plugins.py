"""Names on the command line: built in, installed as an entry point, or `package.module:attribute`.

A name may bring options: `fedavg(lr=0.5)`, `my_lab.nets:unet(depth=4)`. Values are Python literals, and never
evaluated. Names come from the operator only: nothing that a peer sends is looked up here.
"""

import ast
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from common.errors import ConfigError, UsageError

T = TypeVar("T")
_ADVICE = "Start it in the directory where the module is, or install it; the name is MODULE:ATTRIBUTE."
Options = Mapping[str, Any]  # what a plug-in takes is its own affair


def find(group: str, builtin: Mapping[str, object], name: str) -> object:
    """Look a name up: in the table, in the entry points of `group`, in a module. Raises: UsageError."""
    if name in builtin:
        return builtin[name]
    installed = entry_points(group=group)
    if name in installed.names:
        return _load(name, installed[name].load)
    if ":" in name:
        return _load(name, lambda: _attribute(name))
    known = ", ".join(sorted({*builtin, *installed.names}))
    kind = group.rpartition(".")[2]
    raise UsageError(f"no {name!r} among the {kind}; there are: {known}; or package.module:attribute")


def parse(text: str) -> tuple[str, Options]:
    """Take `name(option=literal, …)` apart. Raises: UsageError."""
    name, bracket, rest = text.strip().partition("(")
    try:
        return name.strip(), _options(f"_({rest}") if bracket else {}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise UsageError(f"{text!r} is not a name, or a name(option=value, …) with literals") from None


def _options(text: str) -> Options:
    """Read the options of a call. Raises: what `ast` raises, most often ValueError."""
    called = ast.parse(text, mode="eval").body
    if not isinstance(called, ast.Call) or not isinstance(called.func, ast.Name) or called.args:
        raise ValueError(text)
    options = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in called.keywords}
    if len(options) < len(called.keywords):
        raise ValueError(text)
    return options


def call(name: str, function: Callable[..., T], /, *args: object, **options: object) -> T:
    """Call what a name led to, with options that people typed. Raises: ConfigError for one that it lacks."""
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **options)
    except TypeError as error:
        takes = ", ".join(str(parameter) for parameter in list(signature.parameters.values())[len(args) :])
        raise ConfigError(f"{name}: {error}; its options are: {takes or 'none'}") from None
    return function(*args, **options)


def require_above_zero(**options: float) -> None:
    """Make sure of numbers that people typed. Raises: ConfigError."""
    for name, value in options.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ConfigError(f"{name} must be a number above 0, not {value!r}")


def require_share(**options: float) -> None:
    """Make sure of shares that people typed, below 1. Raises: ConfigError."""
    for name, value in options.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
            raise ConfigError(f"{name} must be at least 0 and below 1, not {value!r}")


def require_whole(at_least: int = 0, **options: int) -> None:
    """Make sure of whole numbers that people typed. Raises: ConfigError."""
    for name, value in options.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
            raise ConfigError(f"{name} must be a whole number of at least {at_least}, not {value!r}")


def _attribute(name: str) -> object:
    module, _, path = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last: a file in the current directory hides nothing that is installed
    found: object = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _load(name: str, load: Callable[[], object]) -> object:
    try:
        return load()
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{name!r} cannot be loaded: {error}", advice=_ADVICE) from error
