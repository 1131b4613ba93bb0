"""One attempt to connect: TCP, TLS, upgrade and login, to a URL or to the nodes of a region."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from http import HTTPStatus
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
from pyderp.client.route import Progress, Route, call_user_code, explain_timeout
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

__all__ = ["HttpRoute", "RegionRoute", "UrlRoute", "dial_region_tls"]

log = logging.getLogger("pyderp.client")

T = TypeVar("T")

_TLS13: Final = "TLSv1.3"


class HttpRoute(Route):
    """The steps that routes to URLs and regions share: TLS, upgrade or websocket, login."""

    cert_name = ""
    """The name or pin that the certificate must have; nodes of a region have their own."""

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self.settings = config.network or NetworkSettings.from_environment()
        wanted = config.websocket
        self.websocket = self.settings.websocket if wanted is None else wanted
        self.fallback = Fallback(allowed=wanted is None)
        self._no_fast_start: set[tuple[str, int]] = set()
        """Host and port of relays that refused a fast start, until an upgrade has worked there."""

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
        """Connect and log in: by upgrade, or in a websocket if the upgrade is refused.

        If both fail, the refusal of the upgrade is raised, with a note about the websocket.
        """

        async def attempt(websocket: bool) -> Established:
            link = await dial(websocket)
            return await self._log_in(
                link, target, login, progress, websocket, node=node, ideal_node=ideal_node
            )

        # A relay that refused the upgrade a short while ago would refuse it again, after TCP and
        # TLS: begin with the websocket, also so that the time limit is not used up before.
        remembered = self.fallback.remembered(target)
        if self.websocket or remembered:
            return replace(await attempt(True), fell_back=remembered)
        # Each attempt makes a connection: a refused upgrade has closed its own.
        try:
            return await attempt(False)
        except UpgradeRejected as e:
            if not self.fallback.wanted(e):
                raise
            rejected = without_frames(e)
        # Without the answer's body: if the websocket fails as well, the error contains it.
        log.warning(
            "%s: upgrade refused: %d %s; trying a websocket",
            target.text,
            rejected.status,
            HTTPStatus(rejected.status).phrase,
        )
        try:
            done = await attempt(True)
        except (DerpError, OSError) as e:
            # Without a cause: the note has the text of `e`, and `e` has frames.
            raise self.fallback.failed(rejected, e) from None
        except asyncio.CancelledError:
            # The time limit also cancels; its error should not hide why a websocket was tried.
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
        """Make TLS if the target needs it, then upgrade and log in, on a connected link."""
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
                # The relay's key is in its meta certificate, which counts under TLS 1.3 only:
                # in older versions the certificates are not encrypted.
                known = None
                if state is not None and state.version == _TLS13:
                    known = scan_chain_untrusted(state.peer_chain)
                awaits = (target.host, target.port) in self._no_fast_start
                done = await over_http(
                    link,
                    target,
                    login,
                    known=known,
                    refused=None if awaits else functools.partial(self._refused, target),
                    ideal_node=ideal_node,
                )
                # The upgrade was accepted, so the relay is one that a fast start can reach.
                if awaits:
                    self._no_fast_start.discard((target.host, target.port))
        except BaseException:
            # Also if cancelled: no caller has this link, so only this call can close it.
            link.abort()
            raise
        done.tls = state
        return done

    def _refused(self, target: UrlTarget, error: BadUpgrade) -> BadUpgrade | None:
        """Note a refused fast start: the next attempt awaits the answer; as for `FastStart`.

        An attempt that awaits the answer can go on with a websocket; after a fast start the answer
        comes when the attempt is over.
        """
        self._no_fast_start.add((target.host, target.port))
        if not isinstance(error, UpgradeRejected):
            return error
        return None if self.fallback.wanted(error) else with_hint(error, target)

    async def _start_tls(self, link: Link, host: str, node: DERPNode | None) -> TlsLink:
        # A URL has neither CertName nor InsecureForTests: these are of a node in a map. Instead of
        # the first it may have a pin.
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
    """A route to one relay, by URL."""

    def __init__(self, target: UrlTarget, config: ClientConfig, cert_name: str = "") -> None:
        super().__init__(config)
        self.cert_name = cert_name
        # Without TLS a pin would be ignored, and a program that sets one relies on it.
        if cert_name and not target.tls:
            raise ConfigError("pin: only with https://, as http:// has no certificate")
        if cert_name and self.settings.use_derp_http:
            raise ConfigError(
                "pin: use_derp_http is set, by TS_DEBUG_USE_DERP_HTTP or NetworkSettings, and "
                "turns TLS off, so that there would be no certificate; unset it"
            )
        # As in Go, this switch for debugging is stronger than the URL.
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
        # As in Go, HTTP_PROXY and HTTPS_PROXY are for websockets only (`dial_host`).
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
    """A route to the first node of a region on which the client can log in."""

    def __init__(self, get_region: GetRegion, config: ClientConfig) -> None:
        super().__init__(config)
        self.get_region = get_region
        self.label = "region"
        self.tls = not self.settings.use_derp_http

    async def connect(self, login: Login, progress: Progress) -> Established:
        # At each attempt, as the program may have a new map, with other nodes or addresses.
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
            # Tells the relay which node the client would prefer (derp.IdealNodeHeader).
            ideal = region.nodes[0].name if node is not region.nodes[0] else ""
            return await self._upgraded(
                lambda _: self._dial(node), target, login, progress, node=node, ideal_node=ideal
            )

        return await self._first(region, to_node, progress)

    async def dial_tls(self, region: DERPRegion, progress: Progress) -> tuple[TlsLink, DERPNode]:
        """Connect by TCP and TLS only, to the first node of a region that can be reached."""

        async def to_node(node: DERPNode) -> tuple[TlsLink, DERPNode]:
            progress.step = f"connecting to node {node.name}"
            try:
                link = await self._dial(node)
            except OSError as e:
                # As the error of Go's client begins.
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
        """Try the nodes in order, until one works; raise the error of the first if none does.

        Go's client tries the next node only if TCP fails. Each node has an equal share of the time
        that is left, so that a node that accepts the connection and sends nothing leaves time for
        the others.
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
            # Time that a node does not use is left for the nodes after it.
            share = (end - loop.time()) / (len(nodes) - position)
            try:
                check_node(node, tls=self.tls)
                async with asyncio.timeout(share):
                    return await to_node(node)
            except TimeoutError as e:
                # With a text it is the timeout of one step, such as TCP; without, of this share.
                why = str(e) or f"no answer within {share:.1f} s, {progress.step}"
                progress.attempts.append(_timed_out(f"node {node.name}: {why}", e))
            except (DerpError, OSError) as e:
                progress.attempts.append(e)
            log.debug("node %s: %s", node.name, progress.attempts[-1])
        # The first error, as in Go; `attempts` has them all.
        raise progress.attempts[0]


def _timed_out(text: str, cause: TimeoutError) -> DialError:
    error = DialError(text, reason=FailureReason.TIMEOUT)
    error.__cause__ = without_frames(cause)
    return error


async def dial_region_tls(
    region: DERPRegion, *, config: ClientConfig | None = None
) -> tuple[TlsLink, DERPNode]:
    """Connect to a region by TCP and TLS only, to measure (`derphttp.Client.DialRegionTLS`).

    Returns:
        the stream, which the caller must `abort`, and its node.

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
