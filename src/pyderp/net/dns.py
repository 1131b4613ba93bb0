"""Looks up IP addresses: the system's resolver, and a cache whose answers outlive its failures."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from typing import Final, TypeAlias

from pyderp.addresses import IPAddress, parse_ip, unmapped
from pyderp.errors import DialError, FailureReason, NameNotFound
from pyderp.tasks import SingleFlight, in_own_thread
from pyderp.text import name_words

__all__ = ["Addresses", "DNSCache", "Resolver", "lookup", "system_resolver"]

Resolver: TypeAlias = Callable[[str, socket.AddressFamily], Awaitable[Sequence[IPAddress]]]
"""Returns the addresses of a host name, best first: of one family, or of both for AF_UNSPEC.
It may raise `OSError`, of which `socket.gaierror` and `TimeoutError` are subclasses."""

_log = logging.getLogger("pyderp.net")

# Errors that mean: the name has no address. BSD has no EAI_NODATA; EAI_NONAME means both there.
_NONE: Final = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})

TTL: Final = 600.0
"""Seconds for which an answer is used [Resolver.ttl]."""
_TIMEOUT: Final = 10.0
_TIMEOUT_WITH_LAST_GOOD: Final = 3.0
_FALLBACK_TIMEOUT: Final = 30.0
_PRIVATE: Final = (
    IPv4Network("10.0.0.0/8"),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"),
    IPv6Network("fc00::/7"),
)
_asking: Final[SingleFlight[tuple[int, str, int], list[IPAddress]]] = SingleFlight(keep=True)
"""Look-ups of all event loops. The `id` of a loop is a good key: as long as a look-up runs, its
loop exists, so that no other loop can have the same `id`."""


async def system_resolver(host: str, family: socket.AddressFamily) -> list[IPAddress]:
    """Look up a host with `getaddrinfo`, in a thread of its own.

    Event loops have few threads for that (uvloop two): two names whose servers do not answer would
    delay all other look-ups. Cancelling returns at once; the thread ends when the system gives up.
    Until then, a call for the same host waits for the same answer, so that each host takes one
    thread at most.
    """
    loop = asyncio.get_running_loop()
    found = await _asking.get(
        (id(loop), host, family), lambda: _ask(host, family), name=f"pyderp look-up of {host}"
    )
    if found is None:  # this client never cancels it: the event loop is ending
        raise DialError(f"look-up of {host!r}: cancelled")
    return list(found)


async def _ask(host: str, family: socket.AddressFamily) -> list[IPAddress]:
    infos = await in_own_thread(
        lambda: socket.getaddrinfo(host, None, family, socket.SOCK_STREAM),
        name=f"pyderp look-up of {host}",
    )
    found: dict[IPAddress, None] = {}
    for _, _, _, _, address in infos:
        ip = ipaddress.ip_address(address[0])
        # Without its zone, a link-local address cannot be connected to.
        zone = address[3] if len(address) == 4 else 0
        if zone and isinstance(ip, IPv6Address) and ip.scope_id is None:
            ip = IPv6Address(f"{ip}%{zone}")
        found[ip] = None
    return list(found)


async def lookup(
    host: str, *, family: socket.AddressFamily = socket.AF_UNSPEC, resolver: Resolver | None = None
) -> list[IPAddress]:
    """Returns the addresses of `host`, at least one; of an IP address itself.

    Args:
        resolver: by default `system_resolver`.

    Raises:
        NameNotFound: it has no address, or is not a valid name.
        DialError: the look-up failed.
    """
    literal = parse_ip(host)
    if literal is not None:
        return [literal]
    try:
        found = await (resolver or system_resolver)(host, family)
    except OSError as e:
        text = e.strerror or str(e) or type(e).__name__
        none = isinstance(e, socket.gaierror) and e.errno in _NONE
        error = NameNotFound if none or isinstance(e, NameNotFound) else DialError
        late = isinstance(e, TimeoutError)
        reason = FailureReason.TIMEOUT if late else FailureReason.UNKNOWN_NAME
        raise error(
            f"look-up of {host!r}: {text}", reason=reason, host=host, short=f"look-up: {text}"
        ) from e
    except ValueError as e:  # labels too long or empty, zero bytes
        raise NameNotFound(
            f"{host!r} is not a host name: {name_words(e)}",
            host=host,
            short=f"not a host name: {name_words(e)}",
        ) from e
    if not found:
        raise NameNotFound(f'no IPs for "{host}" found', host=host, short="no IPs found")
    return [unmapped(ip) for ip in found]


@dataclass(frozen=True)
class Addresses:
    """The addresses of a name."""

    all: tuple[IPAddress, ...]
    """At least one; an IPv4 address inside an IPv6 one is taken out."""

    @property
    def primary(self) -> IPAddress:
        """The first IPv4 address, or else the last IPv6 address."""
        return next((ip for ip in self.all if ip.version == 4), self.all[-1])


class DNSCache:
    """Looks names up, each at most once at a time and, if that works, once in `ttl` seconds.

    It serves one event loop. It never forgets a name, so look up names of relays only. Failures
    are not remembered, nor are private addresses (RFC 1918, fc00::/7): captive portals answer with
    these.

    Args:
        resolver: used first; by default the system's. It has 10 s, or 3 s if there is an older
            answer.
        fallbacks: used in turn if that fails or finds no addresses, 30 s each; such as a cloud
            provider's resolver.
        ttl: seconds for which an answer is used.
        use_last_good: return an older answer if all look-ups fail.
        single_host: the only name to answer, with `single_host_addresses`, without a look-up.
        clock: returns seconds, monotonic.
    """

    def __init__(
        self,
        *,
        resolver: Resolver | None = None,
        fallbacks: Sequence[Resolver] = (),
        ttl: float = TTL,
        use_last_good: bool = True,
        single_host: str = "",
        single_host_addresses: Sequence[IPAddress] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if bool(single_host) != bool(single_host_addresses):
            raise ValueError("single_host and single_host_addresses need each other")
        self._resolver = resolver
        self._fallbacks = tuple(fallbacks)
        self._ttl = ttl
        self._use_last_good = use_last_good
        self._single_host = single_host
        self._single = tuple(unmapped(ip) for ip in single_host_addresses)
        self._clock = clock
        self._known: dict[str, tuple[float, Addresses]] = {}
        self._running: SingleFlight[str, Addresses] = SingleFlight(wait=True)

    async def lookup(self, host: str, *, debug: bool = False) -> Addresses:
        """Returns the addresses of `host`; of an IP address itself.

        Args:
            debug: log at DEBUG where the answer came from.

        Raises:
            DialError: the look-up failed, or found no addresses (`NameNotFound`).
        """
        if self._single:
            if host != self._single_host:
                raise DialError(
                    f'dnscache: unexpected hostname "{host}" '
                    f'doesn\'t match expected "{self._single_host}"'
                )
            return Addresses(self._single)
        literal = parse_ip(host)
        if literal is not None:
            return Addresses((literal,))
        expires, known = self._known.get(host, (0.0, None))
        if known is not None and self._clock() < expires:
            _debug(debug, host, "%s, cached", known)
            return known
        try:
            found = await self._running.get(
                host, lambda: self._refresh(host), name=f"pyderp look-up of {host}"
            )
            if found is None:  # the cache never cancels it: the event loop is ending
                raise DialError(f"look-up of {host!r}: cancelled")
        except DialError as e:
            if known is None or not self._use_last_good:
                _debug(debug, host, "%s", e)
                raise
            _debug(debug, host, "%s, the last good answer, after %s", known, e)
            return known
        _debug(debug, host, "%s", found)
        return found

    async def _refresh(self, host: str) -> Addresses:
        found = Addresses(tuple(await self._ask(host)))
        if not any(found.primary in network for network in _PRIVATE):
            self._known[host] = (self._clock() + self._ttl, found)
        return found

    async def _ask(self, host: str) -> list[IPAddress]:
        quick = self._use_last_good and host in self._known
        timeout = _TIMEOUT_WITH_LAST_GOOD if quick else _TIMEOUT
        failures: list[DialError] = []
        try:
            for resolver in (self._resolver, *self._fallbacks):
                try:
                    async with asyncio.timeout(timeout):
                        return await lookup(host, resolver=resolver)
                except DialError as e:
                    failures.append(e)
                except TimeoutError:
                    failures.append(_unanswered(host, timeout))
                timeout = _FALLBACK_TIMEOUT
            raise DialError(
                str(failures[0]),
                reason=failures[0].reason,
                host=failures[0].host,
                short=failures[0].short,
            ) from ExceptionGroup("all look-ups failed", failures)
        finally:
            failures.clear()  # they hold this frame


def _unanswered(host: str, timeout: float) -> DialError:
    text = f"no answer within {timeout:g} s"
    return DialError(
        f"look-up of {host!r}: {text}",
        reason=FailureReason.TIMEOUT,
        host=host,
        short=f"look-up: {text}",
    )


def _debug(wanted: bool, host: str, text: str, *values: object) -> None:
    if wanted:
        shown = [
            ", ".join(map(str, value.all)) if isinstance(value, Addresses) else value
            for value in values
        ]
        _log.debug("dnscache: %s: " + text, host, *shown)
