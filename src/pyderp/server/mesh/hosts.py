"""The hosts of a mesh as an operator writes them (`derper -mesh-with`), and each link's log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from pyderp.addresses import parse_ip
from pyderp.client.config import UrlDialer, parse_url
from pyderp.errors import ConfigError
from pyderp.net.dial import dial_host
from pyderp.net.link import Link
from pyderp.net.settings import NetworkSettings
from pyderp.text import counted

__all__ = ["MeshHost", "MeshLog", "parse_mesh_host"]

log = logging.getLogger("pyderp.mesh")

_NOT_IN_HOSTS: Final = frozenset("@?#\\%")
"""Characters that would change the URL of a host. An IPv6 zone is of no use in a certificate."""
_FIRST_PAUSE: Final = 60.0
_LONGEST_PAUSE: Final = 3600.0
"""Seconds between two log lines about a failing link: at first, and at most."""
_MOST_REASONS: Final = 8
"""Different reasons that are logged at once between two such lines."""
_STABLE: Final = 60.0
"""Seconds after which a connection counts as working: an earlier failure is the same trouble."""


@dataclass(frozen=True, slots=True)
class MeshHost:
    """Another relay of the mesh."""

    label: str
    """Its name in logs: as the operator wrote it, without a password."""

    url: str = field(repr=False)
    dial: str = ""
    """Host that TCP connects to instead of the URL's; port, SNI and certificate are the URL's."""

    def dialer(self, network: NetworkSettings | None) -> UrlDialer | None:
        """Return the function that connects to the dial host; `None` without one.

        The dial host is in the operator's own network, so proxies are not used.
        """
        if not self.dial:
            return None
        settings = replace(network or NetworkSettings.from_environment(), all_proxy="")

        async def connect(_: str, port: int) -> Link:
            return await dial_host(self.dial, port, settings=settings)

        return connect


def parse_mesh_host(text: str) -> MeshHost:
    """Parse `host` or `host:port`, either with `/dial-host`, or a URL `http(s)://…/derp`.

    Raises:
        ConfigError: any other form.
    """
    text = text.strip()
    if not text:
        raise ConfigError("empty entry in the list of mesh hosts; take out the spare comma")
    if "://" in text:
        return _from_url(text)
    parts = text.split("/")
    if len(parts) > 2:
        raise ConfigError(
            f'more than one / in mesh host "{text}"; want host, host:port, '
            f"host:port/dial-host or a whole URL such as https://{parts[0]}/derp"
        )
    host, dial = parts[0].strip(), _dial_host(parts[1].strip(), text) if len(parts) == 2 else ""
    if not host or any(c.isspace() or c in _NOT_IN_HOSTS for c in host):
        raise ConfigError(f"mesh host {text!r}: {host!r} is not a host name")
    url = f"https://{host}/derp"
    try:
        parse_url(url)
    except ConfigError as e:
        raise ConfigError(
            f"mesh host {text!r}: {host!r} is neither host nor host:port; IPv6 addresses stand "
            f"in brackets"
        ) from e
    return MeshHost(text, url, dial)


def _dial_host(dial: str, text: str) -> str:
    bare = dial[1:-1] if dial.startswith("[") and dial.endswith("]") else dial
    if parse_ip(bare) is not None:
        return bare
    if not dial or ":" in dial or any(c.isspace() or c in _NOT_IN_HOSTS for c in dial):
        raise ConfigError(
            f"mesh host {text!r}: {dial!r} is not a dial host; want a name or an IP address, "
            f"the port is that before the slash"
        )
    return bare


def _from_url(text: str) -> MeshHost:
    # The text may contain a password, so the error does not quote it.
    if not text.lower().startswith(("http://", "https://")):
        raise ConfigError("mesh host with a URL that begins with neither http:// nor https://")
    target = parse_url(text)
    if target.request_target == "/":
        raise ConfigError(f"mesh host {target.text!r}: the path is missing, usually /derp")
    return MeshHost(target.text, text)


class MeshLog:
    """Logs the failures of one link, in ever longer intervals, and when it works again.

    Args:
        host: the link's name in the log.
        clock: monotonic seconds.
    """

    def __init__(self, host: str, clock: Callable[[], float]) -> None:
        self._host = host
        self._clock = clock
        self._pause = _FIRST_PAUSE
        self._logged_at: float | None = None
        """When a failure was last logged; `None`: not since the link last worked."""
        self._failure_logged = False
        """The last line is a failure."""
        self._reasons: set[str] = set()
        """Reasons logged since the last line that was due."""
        self._failures = 0
        self._connected_at: float | None = None

    def connected(self) -> None:
        """Note that the link works."""
        self._connected_at = self._clock()
        if self._failure_logged:
            log.info("mesh with %s: connected again", self._host)
        elif self._logged_at is None:
            log.info("mesh with %s: connected", self._host)
        self._failure_logged = False

    def failed(self, error: str, bug: Exception | None) -> None:
        """Note that the link cannot connect, or broke."""
        now = self._clock()
        if self._connected_at is not None and now - self._connected_at >= _STABLE:
            self._logged_at = None
        self._connected_at = None
        self._failures += 1
        more = ""
        due = self._logged_at is None or now - self._logged_at >= self._pause
        if self._logged_at is None:
            self._pause = _FIRST_PAUSE
        elif due:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            times = counted(self._failures, "time")
            more = f" (failed {times} in {now - self._logged_at:.0f} s)"
        elif error in self._reasons or len(self._reasons) >= _MOST_REASONS:
            return
        log.warning("mesh with %s: %s%s", self._host, error, more, exc_info=bug)
        if due:
            self._logged_at = now
            self._failures = 0
            self._reasons.clear()
        self._failure_logged = True
        self._reasons.add(error)
