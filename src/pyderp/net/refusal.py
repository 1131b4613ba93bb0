"""A relay that refuses an upgrade, and is slow to say why."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NoReturn

from pyderp.errors import TLSError, UpgradeRejected, without_frames
from pyderp.net.link import Link

__all__ = ["read_refusal"]

_BODY_WAIT: Final = 1.0


async def read_refusal(
    link: Link, take: Callable[[bytes], object], refusal: Callable[[], UpgradeRejected]
) -> NoReturn:
    """Read the body of a refusal, for one second at most, and raise the refusal.

    Args:
        take: takes what was read, `b""` at the end; raises the refusal when it is whole.
        refusal: gives it as far as it is known.

    Raises:
        UpgradeRejected: always; without the rest of the body if that came too slowly, or
            the connection broke.
    """
    try:
        async with asyncio.timeout(_BODY_WAIT):
            while True:
                take(await link.read())
    except (OSError, TLSError) as e:  # a TimeoutError is an OSError, too
        raise refusal() from without_frames(e)
