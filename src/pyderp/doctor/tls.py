"""Group `tls`: the handshake, and the certificates that the relay presents in it."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import time
from typing import Final

from pyderp import certnames
from pyderp.addresses import ip_literal
from pyderp.doctor.advice import explain, reason_of
from pyderp.doctor.finding import Check, Seen, failed, ok, skipped, warned
from pyderp.doctor.visit import Visit
from pyderp.errors import CertificateError, DerpError, FailureReason, PinMismatch, without_frames
from pyderp.maps.region import PIN_PREFIX
from pyderp.net.tls import TlsLink
from pyderp.net.verify import describe, interceptor, quotable, reading
from pyderp.wire.metacert import META_NAME_PREFIX, common_name_untrusted, scan_chain_untrusted

__all__ = ["CHECKS"]

_TLS13: Final = "TLSv1.3"
_SOON: Final = datetime.timedelta(days=7)
"""A certificate that ends sooner than this should have been renewed."""
_SHARE: Final = 4
"""For short-lived certificates the last quarter of their life is enough for a warning, as
automatic renewal starts in the last third."""
_NAME_WAIT: Final = 0.4
"""The share of the time limit for a handshake without a name, which some servers never answer."""


async def _handshake(visit: Visit) -> Seen:
    began = time.perf_counter()
    link: TlsLink
    try:
        link = await visit.tls(verify=True)
        visit.verified = True
    except CertificateError as e:
        # Continue without verification, so that the other checks can look at the certificates. No
        # secret is sent over such a connection: see `relay._as_known`.
        visit.distrust = without_frames(e)
        link = await visit.tls(verify=False)
    seconds = time.perf_counter() - began
    state = link.state
    link.abort()
    visit.chain, visit.version = state.peer_chain, state.version
    # As in clients, which look for the meta certificate under TLS 1.3 only.
    if state.version == _TLS13:
        visit.meta = scan_chain_untrusted(state.peer_chain)
    data = {"version": state.version, "cipher": state.cipher, "seconds": seconds}
    return ok(f"{state.version}, {state.cipher}, in {seconds * 1000:.1f} ms", **data)


async def _chain(visit: Visit) -> Seen:
    node, error = visit.subject.node, visit.distrust
    leaf = visit.chain[0]
    pin = PIN_PREFIX + hashlib.sha256(leaf).hexdigest()
    shown = describe(leaf)
    data = {"certificate": shown, "pin": pin, "certificates": len(visit.chain)}
    if node.cert_name.startswith(PIN_PREFIX):
        return skipped("pinned, so no authority is needed", **data)
    if node.insecure_for_tests and not node.cert_name:
        return warned(
            f"not verified: InsecureForTests is set ({{insecure}}); {shown}",
            "an attacker on the path can pose as the relay: remove it",
            **data,
        )
    if error is None:
        return ok(f"trusted: {shown}", **data)
    # Verification stops at the first problem, which `tls.name` or `tls.expiry` reports. Whether the
    # authority is trusted is then not known.
    if error.reason is not FailureReason.CERTIFICATE_UNTRUSTED:
        return skipped(f"not checked, as clients refuse it anyway: {error.reason.value}", **data)
    seen = explain(error)
    return failed(f"{seen.text}; its pin is {pin}", seen.advice, **data, **seen.data)


async def _name(visit: Visit) -> Seen:
    node = visit.subject.node
    wanted = node.cert_name or node.host_name
    # With a pin, clients still compare the host name, unless it is an IP address.
    if wanted.startswith(PIN_PREFIX):
        if ip_literal(node.host_name) is not None:
            return skipped("pinned, and connected to by address")
        wanted = node.host_name
    leaf = visit.chain[0]
    with reading(leaf) as certificate:
        names = certnames.alternative_names(certificate)
        good = certnames.is_for(certificate, wanted)
    listed = quotable(", ".join(names)) or "no name"
    if good:
        return ok(f"for {listed}", names=list(names))
    text = f"not for {wanted!r}, but for {listed}"
    if node.insecure_for_tests and not node.cert_name:
        return skipped(f"{text}; not verified, as InsecureForTests is set", names=list(names))
    seen = explain(CertificateError(text, reason=FailureReason.CERTIFICATE_OTHER_NAME))
    return failed(text, seen.advice, names=list(names), **seen.data)


async def _pin(visit: Visit) -> Seen:
    wanted = visit.subject.node.cert_name
    if not wanted.startswith(PIN_PREFIX):
        return skipped("no pin is given")
    error = visit.distrust
    pin = PIN_PREFIX + hashlib.sha256(visit.chain[0]).hexdigest()
    if isinstance(error, PinMismatch):
        seen = explain(error)
        return failed(seen.text, seen.advice, pin=pin, **seen.data)
    return ok("the pinned certificate", pin=pin)


async def _expiry(visit: Visit) -> Seen:
    now = visit.settings.utc_now()
    ends: list[tuple[datetime.datetime, datetime.datetime]] = []
    for der in visit.chain:
        if common_name_untrusted(der).startswith(META_NAME_PREFIX):
            continue  # It is valid for 30 days from the relay's start, which clients ignore.
        with reading(der) as certificate:
            ends.append((certificate.not_valid_after_utc, certificate.not_valid_before_utc))
    if not ends:
        return failed("the relay's meta certificate is the only certificate", "see tls.chain")
    # Clients refuse the chain as soon as any certificate in it has ended.
    end, start = min(ends)
    left = end - now
    days = left / datetime.timedelta(days=1)
    data = {"ends": end.isoformat(), "begins": start.isoformat(), "days_left": round(days, 2)}
    latest = max(begin for _, begin in ends)
    if latest > now:
        seen = explain(CertificateError("", reason=FailureReason.CERTIFICATE_NOT_YET_VALID))
        return failed(f"valid only from {latest:%Y-%m-%d %H:%M} UTC on", seen.advice, **data)
    if days < 0:
        seen = explain(CertificateError("", reason=FailureReason.CERTIFICATE_EXPIRED))
        text = f"expired {-days:.1f} days ago, {end:%Y-%m-%d %H:%M} UTC"
        return failed(text, seen.advice, **data)
    text = f"{days:.1f} days left, until {end:%Y-%m-%d %H:%M} UTC"
    if left < min(_SOON, (end - start) / _SHARE):
        return warned(text, "renew it now: the relay's log says why it was not renewed", **data)
    return ok(text, **data)


async def _sni(visit: Visit) -> Seen:
    """Compare handshakes with and without a server name (SNI).

    If only the one with the name fails, a middlebox blocks the name, or the relay does not know it.
    """
    host = visit.subject.server_name
    if not host or ip_literal(host) is not None:
        return skipped("connected to by address, so clients send no name")
    limit = visit.settings.timeout * _NAME_WAIT
    nameless = await _try_name(visit, "", limit)
    # Without a chain `tls.handshake`, which sends the name, has failed.
    if not visit.chain:
        if isinstance(nameless, TlsLink):
            return failed(
                f"the handshake works without a name, and fails with {host}",
                "a middlebox on the path closes connections with this name, or the relay has no "
                "certificate for it: try another network, and check {hostname} of the relay",
            )
        return skipped("fails without a name, too")
    if isinstance(nameless, TimeoutError):
        return warned(
            "the server does not answer a handshake without a name",
            "clients always send a name, but scanners can hold connections open",
        )
    if not isinstance(nameless, TlsLink):
        return ok("refused without a name, as Go's relay does", without_name=str(nameless))
    leaf = nameless.state.peer_chain[0]
    if leaf == visit.chain[0]:
        return ok("the same certificate without a name", without_name="same")
    return ok(f"without a name another certificate: {describe(leaf)}", without_name="other")


async def _try_name(visit: Visit, name: str, limit: float) -> TlsLink | Exception:
    link: TlsLink | None = None
    try:
        async with asyncio.timeout(limit):
            link = await visit.tls(name=name)
    except (DerpError, OSError) as e:
        return without_frames(e)
    link.abort()
    return link


async def _addresses(visit: Visit) -> Seen:
    """Check the certificates of all addresses: a name may belong to machines that differ."""
    others = visit.answering[1:]
    if not others:
        return skipped("only one address answers")
    keys: dict[str, object] = {}
    for address in others:
        try:
            link = await visit.tls(address, verify=visit.verified)
        except CertificateError as e:
            seen = explain(e)
            return failed(f"{address}: {seen.text}", seen.advice, **seen.data)
        link.abort()
        found = scan_chain_untrusted(link.state.peer_chain)
        keys[str(address)] = None if found is None else str(found[0])
        if visit.meta is not None and found is not None and found[0] != visit.meta[0]:
            return failed(
                f"{address} is another relay: its key is {found[0].short()}, and not "
                f"{visit.meta[0].short()}",
                "give each relay its own name and node: clients take two with one name for one",
                keys=keys,
            )
    return ok(f"the same result at {', '.join(map(str, others))}", keys=keys)


async def _meta(visit: Visit) -> Seen:
    if visit.version != _TLS13:
        return skipped(f"only with TLS 1.3; this is {visit.version}")
    if visit.meta is None:
        return skipped(
            "no meta certificate, so clients need one round trip more to connect",
            "normal with headscale's relay, and behind a proxy that terminates TLS",
        )
    key, version = visit.meta
    visit.note_key(key, "the meta certificate")
    return ok(f"relay {key.short()}, protocol version {version}", key=str(key), version=version)


async def _middlebox(visit: Visit) -> Seen:
    """Look for signs that a machine between this one and the relay presented the certificate."""
    leaf = visit.chain[0]
    maker = interceptor(leaf)
    if maker:
        return failed(
            f"a firewall of {maker} on the path terminates TLS; {describe(leaf)}",
            "exempt the relay's name from TLS inspection, which DERP does not pass",
            maker=maker,
        )
    error = visit.distrust
    # A middlebox presents a certificate of its own, and cannot have the relay's meta certificate.
    replaced = error is not None and reason_of(error) in (
        FailureReason.CERTIFICATE_UNTRUSTED,
        FailureReason.PIN_OTHER_CERTIFICATE,
    )
    if not replaced:
        return ok("no sign of one")
    if scan_chain_untrusted(visit.chain) is not None:
        return ok("no sign of one: the relay's meta certificate is there")
    return failed(
        f"a middlebox may have replaced the certificate: it is not the expected one, and the "
        f"relay's meta certificate is missing; {describe(leaf)}",
        "compare with a run from another network, or on the relay's machine",
    )


_TLS: Final = ("tls.handshake",)
CHECKS: Final[tuple[Check[Visit], ...]] = (
    Check(
        name="tls.handshake",
        run=_handshake,
        needs=("tcp.any",),
    ),
    Check(name="tls.chain", run=_chain, needs=_TLS),
    Check(name="tls.name", run=_name, needs=_TLS),
    Check(name="tls.pin", run=_pin, needs=_TLS),
    Check(name="tls.expiry", run=_expiry, needs=_TLS),
    Check(name="tls.sni", run=_sni, needs=("tcp.any",), after=_TLS),
    Check(name="tls.addresses", run=_addresses, needs=_TLS),
    Check(name="tls.meta", run=_meta, needs=_TLS),
    Check(name="tls.middlebox", run=_middlebox, needs=_TLS),
)
