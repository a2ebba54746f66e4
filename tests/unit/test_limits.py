"""The limits are a flat list of names: one that is defined twice would silently be another's."""

import ast
import inspect

from common import limits


def test_no_limit_is_defined_twice():
    tree = ast.parse(inspect.getsource(limits))
    names = [target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]

    assert sorted(names) == sorted(set(names))
