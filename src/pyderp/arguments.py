"""Checks of the values that a program passes: an error names the setting or argument."""

from __future__ import annotations

from pyderp.errors import ConfigError

__all__ = ["check_callable", "check_seconds", "check_type"]


def check_type(name: str, value: object, *kinds: type, hint: str = "") -> None:
    """Refuse a value that is of none of these types; a bool is not an int.

    Args:
        name: of the setting or argument, for the error.
        hint: what the caller should do; stands after the types in the error.

    Raises:
        ConfigError: it is of another type. The text never contains the value, which may be secret.
    """
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ConfigError(f"{name} is a {type(value).__name__}; want {wanted}{hint}")


def check_callable(name: str, value: object) -> None:
    """Refuse a value that is neither a function nor `None`.

    Raises:
        ConfigError: it cannot be called.
    """
    if value is not None and not callable(value):
        raise ConfigError(f"{name} is a {type(value).__name__}; want a function or None")


def check_seconds(name: str, value: object) -> None:
    """Refuse a value that is not a number of seconds.

    Raises:
        TypeError: it is neither an int nor a float.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} is a {type(value).__name__}; want seconds, as int or float")
