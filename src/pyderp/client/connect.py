"""One attempt to connect: TCP, TLS, upgrade and login, to a URL or along a region's nodes."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from pyderp.client.arguments import as_config, check_region
from pyderp.client.config import (
    ClientConfig,
    GetRegion,
    UrlTarget,
    check_node,
    node_port,
    node_url,
    region_label,
)
from pyderp.client.fallback import Fallback
from pyderp.client.login import Established, Login, over_http, over_websocket, with_hint
from pyderp.errors import (
    BadUpgrade,
    ConfigError,
    ConnectError,
    DerpError,
    DialError,
    FailureReason,
    UpgradeRejected,
    without_frames,
)
from pyderp.maps.region import DERPNode, DERPRegion
from pyderp.net.dial import dial_host, dial_node
from pyderp.net.link import Link
from pyderp.net.settings import NetworkSettings
from pyderp.net.streams import as_link
from pyderp.net.tcp import failure_reason
from pyderp.net.tls import TlsLink, start_tls
from pyderp.wire.metacert import scan_chain_untrusted

__all__ = [
    "Progress",
    "RegionRoute",
    "Route",
    "UrlRoute",
    "call_user_code",
    "dial_region_tls",
    "explain_timeout",
]

log = logging.getLogger("pyderp.client")

T = TypeVar("T")

_TLS13: Final = "TLSv1.3"


@dataclass(eq=False)
class Progress:
    """How far an attempt got, for the error when its time is up."""

    step: str = "getting ready"
    attempts: list[Exception] = field(default_factory=list)


def explain_timeout(error: Exception, progress: Progress, timeout: float) -> Exception:
    """The same error; for a `TimeoutError` without a text, one that says what was waited for."""
    if not isinstance(error, TimeoutError) or str(error):
        return error
    return TimeoutError(f"no answer within {timeout:g} s, {progress.step}")


async def call_user_code(function: Callable[..., T | Awaitable[T]], *args: object) -> T:
    """Call a function of the program that uses the client, and await its result if need be.

    Raises:
        DialError: it raised something that is neither our error nor the system's.
    """
    try:
        result = function(*args)
        return await result if inspect.isawaitable(result) else result
    except (DerpError, OSError):
        raise
    except Exception as e:
        name = getattr(function, "__name__", type(function).__name__)
        raise DialError(f"{name} raised {type(e).__name__}: {e}") from e


class Route(ABC):
    """A way to a relay, tried anew at each connect."""

    label: str
    """Where it leads, for errors."""

    host = ""
    """The name or address that `label` has, if it has one."""

    @abstractmethod
    async def connect(self, login: Login, progress: Progress) -> Established:
        """Connect and log in; all that was opened on the way is closed if it fails."""

    async def aclose(self) -> None:  # noqa: B027 (most routes hold nothing)
        """Close what it holds open."""


class HttpRoute(Route):
    """What URLs and regions share."""

    cert_name = ""
    """What the certificate must be, as a node's `cert_name`; nodes of a region have their own."""

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self.settings = config.network or NetworkSettings.from_environment()
        wanted = config.websocket
        self.websocket = self.settings.websocket if wanted is None else wanted
        self.fallback = Fallback(allowed=wanted is None)
        self._patient: set[tuple[str, int]] = set()
        """Host and port of relays that answered a fast start in HTTP, and no upgrade since."""

    async def _upgraded(
        self,
        dial: Callable[[bool], Awaitable[Link]],
        target: UrlTarget,
        login: Login,
        progress: Progress,
        *,
        node: DERPNode | None = None,
        ideal_node: str = "",
    ) -> Established:
        """Connect and log in: by upgrade, or in a websocket if that does not get through.

        Of both, the upgrade's refusal is raised.
        """

        async def attempt(websocket: bool) -> Established:
            link = await dial(websocket)
            return await self._log_in(
                link, target, login, progress, websocket, node=node, ideal_node=ideal_node
            )

        remembered = self.fallback.remembered(target)
        if self.websocket or remembered:
            return replace(await attempt(True), fell_back=remembered)
        try:
            return await attempt(False)
        except UpgradeRejected as e:
            if not self.fallback.wanted(e):
                raise
            rejected = without_frames(e)
        log.warning("%s: %s; trying a websocket", target.text, rejected)
        try:
            done = await attempt(True)
        except (DerpError, OSError) as e:
            raise self.fallback.failed(rejected, e) from None
        except asyncio.CancelledError:
            progress.step = f"trying a websocket after: {rejected}"
            raise
        self.fallback.worked(target)
        return replace(done, fell_back=True)

    async def _log_in(
        self,
        link: Link,
        target: UrlTarget,
        login: Login,
        progress: Progress,
        websocket: bool,
        *,
        node: DERPNode | None = None,
        ideal_node: str = "",
    ) -> Established:
        """TLS if the target wants it, then upgrade and login, on a connected link."""
        state = None
        try:
            if target.tls:
                progress.step = "in the TLS handshake"
                link = tls = await self._start_tls(link, target.host, node)
                state = tls.state
            progress.step = "waiting for the relay's answer"
            if websocket:
                done = await over_websocket(link, target, login, ideal_node=ideal_node)
            else:
                known = None
                if state is not None and state.version == _TLS13:
                    known = scan_chain_untrusted(state.peer_chain)
                patient = (target.host, target.port) in self._patient
                done = await over_http(
                    link,
                    target,
                    login,
                    known=known,
                    refused=None if patient else functools.partial(self._refused, target),
                    ideal_node=ideal_node,
                )
                if patient:
                    self._patient.discard((target.host, target.port))
        except BaseException:
            link.abort()
            raise
        done.tls = state
        return done

    def _refused(self, target: UrlTarget, error: BadUpgrade) -> BadUpgrade | None:
        """Await the answer next time, which then may lead to a websocket; as for `FastStart`."""
        self._patient.add((target.host, target.port))
        if not isinstance(error, UpgradeRejected):
            return error
        return None if self.fallback.wanted(error) else with_hint(error, target)

    async def _start_tls(self, link: Link, host: str, node: DERPNode | None) -> TlsLink:
        return await start_tls(
            link,
            server_name=host,
            cert_name=self.cert_name if node is None else node.cert_name,
            insecure=node is not None and node.insecure_for_tests,
            config=self.config.tls,
            settings=self.settings,
            health=self.config.health,
        )


class UrlRoute(HttpRoute):
    """To one relay, by URL."""

    def __init__(self, target: UrlTarget, config: ClientConfig, cert_name: str = "") -> None:
        super().__init__(config)
        self.cert_name = cert_name
        if cert_name and not target.tls:
            raise ConfigError("pin: only with https://, as http:// has no certificate")
        if cert_name and self.settings.use_derp_http:
            raise ConfigError(
                "pin: use_derp_http is set, by TS_DEBUG_USE_DERP_HTTP or NetworkSettings, and "
                "turns TLS off, so that there would be no certificate; unset it"
            )
        if self.settings.use_derp_http and target.tls:
            log.warning("no TLS for %s: use_derp_http is set", target.text)
            target = replace(target, tls=False)
        self.target = target
        self.label = target.text
        self.host = target.host

    async def connect(self, login: Login, progress: Progress) -> Established:
        log.info("connecting %sto %s", "websocket " if self.websocket else "", self.target.text)
        progress.step = "connecting"
        return await self._upgraded(self._dial, self.target, login, progress)

    async def _dial(self, websocket: bool) -> Link:
        target = self.target
        if self.config.dialer is not None:
            return await as_link(await call_user_code(self.config.dialer, target.host, target.port))
        scheme = None
        if websocket:
            scheme = "wss" if target.tls else "ws"
        return await dial_host(
            target.host,
            target.port,
            settings=self.settings,
            dns_cache=self.config.dns_cache,
            scheme=scheme,
        )


class RegionRoute(HttpRoute):
    """To the first node of a region that lets us in."""

    def __init__(self, get_region: GetRegion, config: ClientConfig) -> None:
        super().__init__(config)
        self.get_region = get_region
        self.label = "region"
        self.tls = not self.settings.use_derp_http

    async def connect(self, login: Login, progress: Progress) -> Established:
        region = await call_user_code(self.get_region)
        if region is not None:
            check_region(region, "what the function returned")
        self.label = "region" if region is None else region_label(region)
        if region is None:
            raise ConnectError("DERP region not available")
        log.info("connecting to derp-%d (%s)", region.region_id, region.region_code)

        async def to_node(node: DERPNode) -> Established:
            target = node_url(node, tls=self.tls)
            progress.step = f"connecting to node {node.name}"
            ideal = region.nodes[0].name if node is not region.nodes[0] else ""
            return await self._upgraded(
                lambda _: self._dial(node), target, login, progress, node=node, ideal_node=ideal
            )

        return await self._first(region, to_node, progress)

    async def dial_tls(self, region: DERPRegion, progress: Progress) -> tuple[TlsLink, DERPNode]:
        """TCP and TLS only, to the first node of a region that can be reached."""

        async def to_node(node: DERPNode) -> tuple[TlsLink, DERPNode]:
            progress.step = f"connecting to node {node.name}"
            try:
                link = await self._dial(node)
            except OSError as e:
                text = f"dialRegion({region.region_id}): {e}"
                raise DialError(text, reason=failure_reason(e)) from e
            progress.step = "in the TLS handshake"
            return await self._start_tls(link, node.host_name, node), node

        return await self._first(region, to_node, progress)

    async def _dial(self, node: DERPNode) -> Link:
        prefer = self.config.prefer_ipv6
        return await dial_node(
            node,
            node_port(node, tls=self.tls),
            settings=self.settings,
            prefer_ipv6=prefer is not None and prefer(),
        )

    async def _first(
        self,
        region: DERPRegion,
        to_node: Callable[[DERPNode], Awaitable[T]],
        progress: Progress,
    ) -> T:
        """Try the nodes in order; Go's client goes on to the next only when TCP fails.

        A node before others gets its share of the time that is left, so that one which
        takes the connection and then says nothing does not use up all of it.
        """
        if not region.nodes:
            text = f"no nodes for {region_label(region)}"
            raise DialError(text, reason=FailureReason.BAD_MAP)
        nodes = [node for node in region.nodes if not node.stun_only]
        if not nodes:
            text = f"no non-STUNOnly nodes for {region_label(region)}"
            raise DialError(text, reason=FailureReason.BAD_MAP)
        loop = asyncio.get_running_loop()
        end = loop.time() + self.config.connect_timeout
        for position, node in enumerate(nodes):
            share = (end - loop.time()) / (len(nodes) - position)
            try:
                check_node(node, tls=self.tls)
                async with asyncio.timeout(share):
                    return await to_node(node)
            except TimeoutError as e:
                why = str(e) or f"no answer within {share:.1f} s, {progress.step}"
                progress.attempts.append(_late(f"node {node.name}: {why}", e))
            except (DerpError, OSError) as e:
                progress.attempts.append(e)
            log.debug("node %s: %s", node.name, progress.attempts[-1])
        raise progress.attempts[0]


def _late(text: str, cause: TimeoutError) -> DialError:
    error = DialError(text, reason=FailureReason.TIMEOUT)
    error.__cause__ = without_frames(cause)
    return error


async def dial_region_tls(
    region: DERPRegion, *, config: ClientConfig | None = None
) -> tuple[TlsLink, DERPNode]:
    """Connect to a region by TCP and TLS only; to measure (`derphttp.Client.DialRegionTLS`).

    Returns:
        the stream, which belongs to the caller (`abort` it), and the node it leads to.

    Raises:
        DialError: no node could be reached.
        TLSError: no node that was reached passed the handshake.
        TimeoutError: it took more than `connect_timeout`.
    """
    config = as_config(config)
    check_region(region)
    progress = Progress()
    try:
        async with asyncio.timeout(config.connect_timeout):
            return await RegionRoute(lambda: region, config).dial_tls(region, progress)
    except TimeoutError as e:
        raise explain_timeout(without_frames(e), progress, config.connect_timeout) from e
    finally:
        progress.attempts = []  # the errors hold frames that hold `progress`
