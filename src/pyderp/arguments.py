"""What a program hands over: values of a wrong type are refused by name, before they are used."""

from __future__ import annotations

from pyderp.errors import ConfigError

__all__ = ["check_callable", "check_seconds", "check_type"]


def check_type(name: str, value: object, *kinds: type, hint: str = "") -> None:
    """Refuse a setting that is of none of these types; a bool is no int.

    Args:
        name: of the setting or argument, for the error.
        hint: what to do, behind the types.

    Raises:
        ConfigError: it is of another type; the text never has the value, which may be secret.
    """
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ConfigError(f"{name} is a {type(value).__name__}; want {wanted}{hint}")


def check_callable(name: str, value: object) -> None:
    """Refuse what is neither a function nor `None`.

    Raises:
        ConfigError: it cannot be called.
    """
    if value is not None and not callable(value):
        raise ConfigError(f"{name} is a {type(value).__name__}; want a function or None")


def check_seconds(name: str, value: object) -> None:
    """Refuse an argument that is no number of seconds.

    Raises:
        TypeError: it is neither an int nor a float.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} is a {type(value).__name__}; want seconds, as int or float")
