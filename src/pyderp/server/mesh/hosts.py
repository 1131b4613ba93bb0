"""The other relays of a mesh, as an operator writes them (`derper -mesh-with`)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from pyderp.addresses import parse_ip
from pyderp.client.config import UrlDialer
from pyderp.client.target import parse_url
from pyderp.errors import ConfigError
from pyderp.net.dial import dial_host
from pyderp.net.link import Link
from pyderp.net.settings import NetworkSettings

__all__ = ["MeshHost", "parse_mesh_host"]

_NOT_IN_HOSTS: Final = frozenset("@?#\\%")
"""What would make another URL of a host; an IPv6 zone means nothing to a certificate."""


@dataclass(frozen=True, slots=True)
class MeshHost:
    """One other relay."""

    label: str
    """What it is called in logs: as it was written, but without a password."""

    url: str = field(repr=False)
    dial: str = ""
    """Host that TCP connects to instead of the URL's; port, SNI and certificate are the URL's."""

    def dialer(self, network: NetworkSettings | None) -> UrlDialer | None:
        """How to connect to the dial host; `None` without one.

        It is a host of the operator's own network: no proxy of the environment is asked.
        """
        if not self.dial:
            return None
        settings = replace(network or NetworkSettings.from_environment(), all_proxy="")

        async def connect(_: str, port: int) -> Link:
            return await dial_host(self.dial, port, settings=settings)

        return connect


def parse_mesh_host(text: str) -> MeshHost:
    """Read `host`, `host:port`, either with `/dial-host`, or a whole `http(s)://…/derp`.

    Raises:
        ConfigError: none of these.
    """
    text = text.strip()
    if not text:
        raise ConfigError("empty entry in the list of mesh hosts; take out the spare comma")
    if "://" in text:
        return _from_url(text)
    parts = text.split("/")
    if len(parts) > 2:
        raise ConfigError(
            f'too many components in host tuple "{text}"; want host, host:port, '
            f"host:port/dial-host or a whole URL such as https://{parts[0]}/derp"
        )
    host, dial = parts[0].strip(), _dial_host(parts[1].strip(), text) if len(parts) == 2 else ""
    if not host or any(c.isspace() or c in _NOT_IN_HOSTS for c in host):
        raise ConfigError(f"mesh host {text!r}: {host!r} is no host name")
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
            f"mesh host {text!r}: {dial!r} is no dial host; want a name or an IP address, "
            f"the port is that before the slash"
        )
    return bare


def _from_url(text: str) -> MeshHost:
    # Not repeated where it may hold a password.
    if not text.lower().startswith(("http://", "https://")):
        raise ConfigError("mesh host with a URL that begins with neither http:// nor https://")
    target = parse_url(text)
    if target.request_target == "/":
        raise ConfigError(f"mesh host {target.text!r}: the path is missing, mostly /derp")
    return MeshHost(target.text, text)
