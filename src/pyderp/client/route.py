"""The interface of a route to a relay, and helpers for the errors of its steps."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from pyderp.client.login import Established, Login
from pyderp.errors import DerpError, DialError

__all__ = ["Progress", "Route", "call_user_code", "explain_timeout"]

T = TypeVar("T")


@dataclass(eq=False)
class Progress:
    """The step that an attempt is at, and its errors so far; for the error of a timeout."""

    step: str = "getting ready"
    attempts: list[Exception] = field(default_factory=list)


def explain_timeout(error: Exception, progress: Progress, timeout: float) -> Exception:
    """Returns the error; in place of a `TimeoutError` without text, one that names the step."""
    if not isinstance(error, TimeoutError) or str(error):
        return error
    return TimeoutError(f"no answer within {timeout:g} s, {progress.step}")


async def call_user_code(function: Callable[..., T | Awaitable[T]], *args: object) -> T:
    """Call a function that the program has passed, and await its result if it is awaitable.

    Raises:
        DialError: it raised an error that is neither a `DerpError` nor an `OSError`. These are
            raised as they are.
    """
    try:
        result = function(*args)
        return await result if inspect.isawaitable(result) else result
    except (DerpError, OSError):
        raise
    except Exception as e:
        # Its text alone would not show that the program's own function failed.
        name = getattr(function, "__name__", type(function).__name__)
        raise DialError(f"{name} raised {type(e).__name__}: {e}") from e


class Route(ABC):
    """A way to a relay. Each connect goes all of it again."""

    label: str
    """The destination, for errors."""

    host = ""
    """The name or address in `label`; empty if there is none."""

    @abstractmethod
    async def connect(self, login: Login, progress: Progress) -> Established:
        """Connect and log in; if that fails, everything that was opened is closed."""

    async def aclose(self) -> None:  # noqa: B027 (most routes hold nothing open)
        """Close what the route holds open."""
