"""The public names, and the tree of errors as it is documented."""

from __future__ import annotations

import importlib
import pkgutil
import re

import pytest

import pyderp
import pyderp.wire
from pyderp import config, errors, keys
from pyderp.aio import relay

WIRE_MODULES = [f"pyderp.wire.{m.name}" for m in pkgutil.iter_modules(pyderp.wire.__path__)]


def test_top_level_names_are_those_of_the_modules_below() -> None:
    """All errors, all of the configuration, and the classes of keys and relay."""
    classes_of_keys = [name for name in keys.__all__ if isinstance(getattr(keys, name), type)]
    union = [*errors.__all__, *config.__all__, *classes_of_keys, *relay.__all__]
    assert sorted(pyderp.__all__) == sorted(union)


def test_top_level_names_are_the_same_objects_as_below() -> None:
    for module in (errors, config, relay):
        for name in module.__all__:
            assert getattr(pyderp, name) is getattr(module, name)
    for name in ("MeshKey", "NodePrivate", "NodePublic"):
        assert getattr(pyderp, name) is getattr(keys, name)


def test_names_of_wire_are_those_of_its_modules() -> None:
    """Each is exported by one module, and is the same object."""
    modules = [importlib.import_module(name) for name in WIRE_MODULES]
    for name in pyderp.wire.__all__:
        [home] = [module for module in modules if name in module.__all__]
        assert getattr(pyderp.wire, name) is getattr(home, name)


def test_version_is_told() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", pyderp.__version__)


@pytest.mark.parametrize(
    "name", ["pyderp", "pyderp.errors", "pyderp.keys", "pyderp.wire", *WIRE_MODULES]
)
def test_no_module_names_a_thing_twice_or_one_it_lacks(name: str) -> None:
    module = importlib.import_module(name)
    names = module.__all__
    assert len(names) == len(set(names))
    assert [n for n in names if not hasattr(module, n)] == []


def test_every_exception_of_the_module_is_exported() -> None:
    defined = {n for n, o in vars(errors).items() if isinstance(o, type) and not n.startswith("_")}
    assert defined == set(errors.__all__)


def test_docstring_draws_the_tree_of_errors() -> None:
    """Each class stands below its base, none is missing."""
    doc = errors.__doc__ or ""
    parents: dict[str, str] = {}
    path = ["DerpError"]
    assert re.search(r"^DerpError$", doc, re.MULTILINE)
    for bars, name in re.findall(r"^([│ ]*)[├└]── (\w+)", doc, re.MULTILINE):
        depth = len(bars) // 4 + 1
        del path[depth:]
        parents[name] = path[-1]
        path.append(name)
    real = {
        name: getattr(errors, name).__bases__[0].__name__
        for name in errors.__all__
        if name != "DerpError"
    }
    assert parents == real


def test_every_error_has_a_sentence_of_its_own() -> None:
    docs = [getattr(errors, name).__doc__ for name in errors.__all__]
    assert all(docs)
    assert len(set(docs)) == len(docs)


def test_remote_error_tells_the_frame_type() -> None:
    error = errors.FrameTooLarge("too large", frame_type=4)
    assert (str(error), error.frame_type) == ("too large", 4)
    assert errors.BadUpgrade("no HTTP").frame_type is None
