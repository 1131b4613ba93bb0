"""The public names, and the documented tree of errors."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
import re
from pathlib import Path

import pytest

import pyderp
import pyderp.testing
import pyderp.wire
from pyderp import config, errors
from pyderp.wire import messages

WIRE_MODULES = [f"pyderp.wire.{m.name}" for m in pkgutil.iter_modules(pyderp.wire.__path__)]


PUBLIC = {
    "pyderp.errors": errors.__all__,
    "pyderp.config": config.__all__,
    "pyderp.keys": ["MeshKey", "NodePrivate", "NodePublic"],
    "pyderp.maps.derpmap": ["DERPMap", "HomeParams", "MapProblems"],
    "pyderp.maps.region": ["DERPNode", "DERPRegion"],
    "pyderp.server.app.relay": ["Relay"],
    "pyderp.client.client": ["Client"],
    "pyderp.client.config": ["ClientConfig", "ClientStats"],
    "pyderp.client.connect": ["dial_region_tls"],
    "pyderp.client.mesh": ["watch_mesh"],
    "pyderp.client.reconnect": ["is_transient"],
    "pyderp.client.sealed": ["SealedPeer"],
    "pyderp.net.dns": ["DNSCache"],
    "pyderp.net.settings": ["NetworkSettings"],
    "pyderp.net.tls": ["HealthTracker", "TLSConfig", "TLSState"],
    "pyderp.wire.frames": ["PeerGoneReason", "PeerPresentFlags"],
    "pyderp.wire.messages": [name for name in messages.__all__ if name != "Skipped"],
}
"""Public names of the top level, by module."""

EXCEPTIONS = [name for name in errors.__all__ if name != "FailureReason"]


def test_top_level_names_are_those_of_the_modules_below() -> None:
    """All errors, settings, messages and maps, and the main classes."""
    union = [name for names in PUBLIC.values() for name in names]
    assert vars(pyderp)["__all__"] == sorted(union)


def test_type_checkers_know_the_same_names() -> None:
    """The imports for type checkers are the other list of names."""
    for package in (pyderp, pyderp.testing):
        assert package.__file__ is not None
        text = Path(package.__file__).read_text()
        assert sorted(re.findall(r"\b(\w+) as \1\b", text)) == vars(package)["__all__"]


def test_top_level_names_are_the_same_objects_as_below() -> None:
    for module, names in PUBLIC.items():
        for name in names:
            assert getattr(pyderp, name) is getattr(importlib.import_module(module), name)


def test_unknown_names_are_refused_as_usual() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(pyderp, "nothing")  # noqa: B009 (the type checker knows it as well)


def test_names_of_wire_are_those_of_its_modules() -> None:
    """Each is exported by one module, and is the same object."""
    modules = [importlib.import_module(name) for name in WIRE_MODULES]
    for name in pyderp.wire.__all__:
        [home] = [module for module in modules if name in module.__all__]
        assert getattr(pyderp.wire, name) is getattr(home, name)


def test_the_version_is_named() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", pyderp.__version__)


@pytest.mark.parametrize(
    "name", ["pyderp", "pyderp.errors", "pyderp.keys", "pyderp.wire", *WIRE_MODULES]
)
def test_no_module_lists_a_name_twice_or_a_missing_one(name: str) -> None:
    module = importlib.import_module(name)
    names = module.__all__
    assert len(names) == len(set(names))
    assert [n for n in names if not hasattr(module, n)] == []


def test_every_exception_of_the_module_is_exported() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    assert defined == set(EXCEPTIONS)


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
        for name in EXCEPTIONS
        if name != "DerpError"
    }
    assert parents == real


def test_every_error_has_its_own_docstring() -> None:
    docs = [getattr(errors, name).__doc__ for name in EXCEPTIONS]
    assert all(docs)
    assert len(set(docs)) == len(docs)


def test_a_remote_error_names_the_frame_type() -> None:
    error = errors.FrameTooLarge("too large", frame_type=4)
    assert (str(error), error.frame_type) == ("too large", 4)
    assert errors.BadUpgrade("no HTTP").frame_type is None


# To pickle and copy, as to another process


def every_error() -> list[type[errors.DerpError]]:
    """Those of all modules, also private ones."""
    for module in pkgutil.walk_packages(pyderp.__path__, "pyderp."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found = [errors.DerpError]
    for kind in found:
        found += [each for each in kind.__subclasses__() if each not in found]
    return [kind for kind in found if kind.__module__.startswith("pyderp.")]


SAMPLES: dict[type[errors.DerpError], errors.DerpError] = {
    errors.UpgradeRejected: errors.UpgradeRejected("no", status=403, body="go\naway"),
    errors.ConnectError: errors.ConnectError(
        "no", attempts=[errors.UpgradeRejected("x", status=503, body=""), OSError(111, "refused")]
    ),
    errors.ConnectionClosed: errors.ConnectionClosed(
        "no", generation=3, restarting=messages.Restarting(1.0, 2.0)
    ),
    errors.ClientClosed: errors.ClientClosed("no", generation=3),
    errors.FrameTooLarge: errors.FrameTooLarge("no", frame_type=4),
    errors.DialError: errors.DialError("no", reason=errors.FailureReason.REFUSED),
    errors.PinMismatch: errors.PinMismatch("no", reason=errors.FailureReason.PIN_OF_SEVERAL),
    errors.MissingExtra: errors.MissingExtra("no", extra="relay"),
    errors.BadUpgrade: errors.BadUpgrade("no", reason=errors.FailureReason.NO_HTTP),
}


def plain(error: BaseException) -> object:
    """All attributes of an error, to compare."""
    values = {
        name: [plain(each) for each in value] if name == "attempts" else value
        for name, value in vars(error).items()
    }
    return type(error), error.args, str(error), values


def test_every_error_can_be_pickled_and_copied() -> None:
    kinds = every_error()
    assert {*SAMPLES, errors.DialError, errors.InvalidMap} < set(kinds)
    for kind in kinds:
        error = SAMPLES.get(kind) or kind("no")
        error.args = ("words before: no",)
        error.add_note("a note")
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            assert plain(pickle.loads(pickle.dumps(error, protocol))) == plain(error)
        assert plain(copy.copy(error)) == plain(error)
        assert plain(copy.deepcopy(error)) == plain(error)
