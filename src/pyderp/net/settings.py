"""How to leave this machine: what the environment says, and what a program may set itself."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from pyderp.errors import ConfigError

__all__ = ["NetworkSettings", "default_route_device", "without_userinfo"]

_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"", "0", "f", "F", "FALSE", "false", "False"})
_ROUTES: Final = Path("/proc/net/route")
_RTF_UP: Final = 0x1
_RTF_REJECT: Final = 0x200


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Proxies, socket options and switches. Empty or `None` means: not used."""

    proxy: str = ""
    """A proxy for every connection, in URL and region mode: `http://`, `https://` (CONNECT) or
    `socks5://`, `socks5h://`; `[user:password@]host[:port]`. Overrides those below."""

    https_proxy: str = ""
    """CONNECT proxy for regions, and for websockets over TLS [HTTPS_PROXY]."""

    http_proxy: str = ""
    """CONNECT proxy for websockets without TLS [HTTP_PROXY]."""

    all_proxy: str = ""
    """SOCKS5 proxy for what no other proxy is for [ALL_PROXY]; other schemes: direct."""

    no_proxy: str = ""
    """Hosts that are reached directly [NO_PROXY]. Does not hold for `proxy`."""

    proxy_authorization: str = ""
    """`Proxy-Authorization` verbatim, instead of Basic [TS_DEBUG_FAKE_PROXY_AUTH]."""

    socket_mark: int | None = None
    """SO_MARK on every socket but loopback's. Linux; needs CAP_NET_ADMIN."""

    bind_device: str | None = None
    """Interface that every socket but loopback's is bound to (SO_BINDTODEVICE). Linux.
    `TS_FORCE_LINUX_BIND_TO_DEVICE` sets it to that of the default route, see
    `default_route_device`."""

    before_connect: Callable[[socket.socket], None] | None = None
    """Called with each socket before it connects, loopback's included."""

    use_derp_http: bool = False
    """No TLS, whatever the URL says; regions on port 3340 [TS_DEBUG_USE_DERP_HTTP]."""

    websocket: bool = False
    """DERP inside a websocket [TS_DEBUG_DERP_WS_CLIENT]."""

    verbose_tls: bool = False
    """Log what certificate verification saw [TS_DEBUG_TLS_DIAL]."""

    debug_dns: bool = False
    """Log each look-up [TS_DEBUG_DNS_CACHE]."""

    keylog_file: str = ""
    """TLS secrets are appended to this file [SSLKEYLOGFILE]."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> NetworkSettings:
        """Read the environment as Go's client does; lower-case names of proxies hold, too.

        Args:
            environ: by default the process's.

        Raises:
            ConfigError: a switch that is neither true nor false, or a default route is
                asked for and there is none.
        """
        environ = os.environ if environ is None else environ

        def proxy(name: str) -> str:
            return environ.get(name) or environ.get(name.lower(), "")

        bind = _switch(environ, "TS_FORCE_LINUX_BIND_TO_DEVICE")
        return cls(
            https_proxy=proxy("HTTPS_PROXY"),
            http_proxy=proxy("HTTP_PROXY"),
            all_proxy=proxy("ALL_PROXY"),
            no_proxy=proxy("NO_PROXY"),
            proxy_authorization=environ.get("TS_DEBUG_FAKE_PROXY_AUTH", ""),
            bind_device=default_route_device() if bind else None,
            use_derp_http=_switch(environ, "TS_DEBUG_USE_DERP_HTTP"),
            websocket=_switch(environ, "TS_DEBUG_DERP_WS_CLIENT"),
            verbose_tls=_switch(environ, "TS_DEBUG_TLS_DIAL"),
            debug_dns=_switch(environ, "TS_DEBUG_DNS_CACHE"),
            keylog_file=environ.get("SSLKEYLOGFILE", ""),
        )

    def __repr__(self) -> str:
        """What differs from the defaults, without users and passwords."""
        shown = []
        for item in fields(self):
            value = getattr(self, item.name)
            if value == item.default:
                continue
            if item.name == "proxy_authorization":
                value = "***"
            elif item.name in ("proxy", "https_proxy", "http_proxy", "all_proxy"):
                value = without_userinfo(value)
            shown.append(f"{item.name}={value!r}")
        return f"NetworkSettings({', '.join(shown)})"


def without_userinfo(url: str) -> str:
    """A proxy's URL with `***` for user and password, however odd the URL is."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)?.*@", r"\1***@", url, flags=re.DOTALL)


def default_route_device(routes: Path = _ROUTES) -> str:
    """The interface of the IPv4 default route with the lowest metric, as of now.

    Read from `/proc/net/route`, the kernel's main table: the routes of a VPN in tables of
    its own do not count. Later changes of the route are not noticed.

    Raises:
        ConfigError: no such route, or not Linux.
    """
    try:
        lines = routes.read_text("ascii").splitlines()[1:]
    except OSError as e:
        raise ConfigError(f"no default route: cannot read {routes}: {e.strerror}") from e
    found = []
    for line in lines:
        device, destination, _, flags, _, _, metric, mask, *_ = line.split()
        usable = int(flags, 16) & (_RTF_UP | _RTF_REJECT) == _RTF_UP
        if usable and int(destination, 16) == int(mask, 16) == 0:
            found.append((int(metric), device))
    if not found:
        raise ConfigError(f"no default route in {routes}, so no device to bind to")
    return min(found)[1]


def _switch(environ: Mapping[str, str], name: str) -> bool:
    value = environ.get(name, "")
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise ConfigError(f"{name}={value!r} is neither true nor false: use 1 or 0")
