"""Certificates from an authority, got and renewed while the relay runs (ACME)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import operator
import random
import ssl
import time
from collections.abc import Callable
from typing import Final
from weakref import WeakMethod

from pyderp.addresses import normal_name, parse_ip
from pyderp.certs.challenges import Challenges
from pyderp.certs.context import REFUSE_NAME, authority_context, meta_certificate, plain_context
from pyderp.certs.issuance import Authority, Issuance
from pyderp.certs.schedule import Pace, Schedule, Uniform
from pyderp.certs.slot import Slot
from pyderp.certs.source import CertificateInfo
from pyderp.certs.store import Store
from pyderp.certs.worker import Worker
from pyderp.config import ACMETLS
from pyderp.config.tls import PUBLIC
from pyderp.errors import ConfigError
from pyderp.keys import NodePublic
from pyderp.tasks import cancel_and_wait

__all__ = ["ACMECertificates"]

log = logging.getLogger("pyderp.tls")

_MAX_ADDRESSES: Final = 64
"""Local addresses that certificates are got for; a machine may have a whole network."""
_LONGEST_SLEEP: Final = 3600.0
"""The wall clock may be set while we sleep."""

PACE: Final = Pace()
ADDRESS_PACE: Final = Pace(longest_retry=1800.0)


class ACMECertificates:
    """A `CertificateSource` that asks a certificate authority.

    The host name's certificate is served to clients that ask for it by SNI, in any case. With
    `ip_certs`, clients that ask for no name, or for the address that they connected to, get
    one for that address; it is asked for when the first of them comes, who is refused, as all
    are until it is there. Nobody can have one asked for that is not the relay's own, or that a
    trusted proxy names.

    Args:
        server: the relay's key, for the meta certificate.
        authority: made from the settings, if not given.
        pace: how often it is asked for the host name's certificate.
        address_pace: and for those of addresses.

    Raises:
        ConfigError: settings or files that cannot be used.
    """

    def __init__(
        self,
        tls: ACMETLS,
        server: NodePublic,
        *,
        authority: Authority | None = None,
        pace: Pace = PACE,
        address_pace: Pace = ADDRESS_PACE,
        clock: Callable[[], float] = time.time,
        uniform: Uniform = random.uniform,
    ) -> None:
        if tls.ca_file is not None:
            authority_context(tls.ca_file)  # an unusable file is told at once
        self._tls = tls
        self._clock = clock
        self._uniform = uniform
        self._pace = pace
        self._address_pace = address_pace
        self._store = Store(tls.certdir, meta_certificate(server))
        self._store.load_account()  # to tell at once that it cannot be read
        self._challenges = Challenges()
        self._worker = Worker()
        if authority is None:
            # Not at the top: it brings an HTTP library with it.
            from pyderp.certs.session import Session

            authority = Session(tls, self._store, self._challenges, self._worker)
        self._issuance = Issuance(tls, self._store, self._worker, authority, clock)
        self._slots: dict[str, Slot] = {}
        self._doors: dict[str | None, ssl.SSLContext] = {None: self._door(None)}
        self._wake = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        address = parse_ip(tls.hostname)
        self._hostname = normal_name(tls.hostname) if address is None else str(address)
        self._host_address = None if address is None else self._hostname
        self._add(self._hostname)

    # What connections ask

    @property
    def challenge_pending(self) -> bool:
        """Whether `challenge_context` may give something."""
        return self._challenges.tls_pending

    def context(self, local_address: str) -> ssl.SSLContext:
        """A context without a certificate, which takes one when the client's name is known."""
        if not self._tls.ip_certs:
            return self._doors[None]
        door = self._doors.get(local_address)
        return self._open_door(local_address) if door is None else door

    def challenge_context(self, hello: memoryview) -> ssl.SSLContext | None:
        """The context that answers TLS-ALPN-01, for who asks it."""
        return self._challenges.context(hello)

    def http_challenge(self, path: str) -> bytes | None:
        """The answer to HTTP-01."""
        return self._challenges.body(path)

    def certificates(self) -> list[CertificateInfo]:
        """Those that there are."""
        return [slot.certificate.info for slot in self._slots.values() if slot.certificate]

    @property
    def cert_name(self) -> str:
        """Empty: the certificate is one that clients trust."""
        return ""

    # Life

    async def start(self) -> None:
        """Begin to ask, for what is missing or due."""
        self._keeper = asyncio.create_task(self._keep(), name="pyderp certificates")

    async def aclose(self) -> None:
        """Stop. A request that hangs is left alone; its thread ends with it."""
        self._worker.stop()
        keeper, self._keeper = self._keeper, None  # cancelled, it holds frames that hold us
        if keeper is not None:
            await cancel_and_wait([keeper])
        if not await self._worker.stopped():
            log.info("the certificate authority does not answer; not waiting for it")

    def reload(self, *, force: bool = False) -> bool:
        """Use what somebody else wrote into the directory.

        Args:
            force: an operator asks. What failed is tried again at once, unless the authority
                itself named a time.
        """
        found = [self._issuance.read_again(slot, force=force) for slot in self._slots.values()]
        if force:
            for slot in self._slots.values():
                slot.schedule.hurry(self._clock())
            self._wake.set()
        return any(found)

    async def _keep(self) -> None:
        while True:
            try:
                await self._next_step()
            except Exception:
                # Without this task certificates would expire, and nobody would know why.
                wait = self._pace.first_retry
                log.exception("keeping certificates failed unexpectedly; on in %g s", wait)
                await asyncio.sleep(wait)

    async def _next_step(self) -> None:
        """Do what is due, or wait until something may be."""
        self._wake.clear()
        now = self._clock()
        steps = [step for slot in self._slots.values() for step in self._issuance.steps(slot, now)]
        at, step = min(steps, key=operator.itemgetter(0))
        if at <= now:
            await step()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(at - now, _LONGEST_SLEEP)):
                await self._wake.wait()

    # Names and addresses

    def _open_door(self, local_address: str) -> ssl.SSLContext:
        subject = self._subject_of(local_address)
        if subject is None or not self._known(subject):
            return self._doors[None]
        door = self._doors[local_address] = self._door(subject)
        return door

    def _subject_of(self, local_address: str) -> str | None:
        """The address that a certificate for this connection is for."""
        address = parse_ip(local_address)
        if address is None:
            return None
        if self._tls.directory in PUBLIC and not address.is_global:
            # Behind address translation we do not see the address that clients use, but may
            # have been told it.
            return self._host_address
        return str(address)

    def _known(self, subject: str) -> bool:
        """Whether a certificate for this address is there or will be asked for."""
        if subject in self._slots:
            return True
        if len(self._slots) >= _MAX_ADDRESSES:
            return False
        try:
            self._add(subject)
        except ConfigError as e:
            log.error("no certificate for %s: %s", subject, e)
            return False
        self._wake.set()
        return True

    def _add(self, subject: str) -> None:
        pace = self._pace if parse_ip(subject) is None else self._address_pace
        slot = Slot(subject, Schedule(pace, self._uniform))
        self._issuance.load(slot)
        self._slots[subject] = slot

    def _door(self, address: str | None) -> ssl.SSLContext:
        """The context that a handshake begins with, at one local address."""

        # Weak: we hold the context, which holds what it calls.
        find = WeakMethod(self._find)

        def choose(tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
            find_now = find()
            found = None if find_now is None else find_now(name, address)
            if found is None:
                return REFUSE_NAME
            tls.context = found
            return None

        context = plain_context()
        context.sni_callback = choose
        return context

    def _find(self, name: str | None, address: str | None) -> ssl.SSLContext | None:
        subject = self._subject(name, address)
        slot = None if subject is None else self._slots.get(subject)
        if slot is None or slot.certificate is None:
            return None
        return slot.certificate.context

    def _subject(self, name: str | None, address: str | None) -> str | None:
        """What a client gets that asks for this name at this address."""
        if name is None:
            return address
        asked = name.lower().removesuffix(".")
        literal = parse_ip(asked)
        if literal is not None:
            return address if str(literal) == address else None
        return asked if asked == self._hostname else None
