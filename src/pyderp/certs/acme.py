"""Certificates from an authority, got and renewed while the relay runs (ACME)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import operator
import random
import threading
import time
from typing import Final

from pyderp.addresses import normal_name, parse_ip
from pyderp.certs.challenges import Challenges
from pyderp.certs.context import authority_context
from pyderp.certs.credential import (
    CertificateInfo,
    CertificateSource,
    CertificateState,
    Credential,
)
from pyderp.certs.issuance import Authority, ManagedCertificate
from pyderp.certs.schedule import RetryPolicy, Schedule
from pyderp.certs.session import Session
from pyderp.certs.store import Store
from pyderp.config import ACMETLS
from pyderp.config.tls import PUBLIC
from pyderp.errors import ConfigError
from pyderp.tasks import cancel_and_wait

__all__ = ["ACMECertificates"]

log = logging.getLogger("pyderp.tls")

_MAX_ADDRESSES: Final = 64
"""Local addresses that certificates are got for; a machine may have a whole network."""
_LONGEST_SLEEP: Final = 3600.0
"""The wall clock may be set while we sleep."""
_PATIENCE: Final = 2.0
"""Seconds that a request under way has to stop."""

POLICY: Final = RetryPolicy()
ADDRESS_POLICY: Final = RetryPolicy(longest_retry=1800.0)


class ACMECertificates(CertificateSource):
    """Asks a certificate authority.

    The host name's certificate is for clients that ask for it by SNI, in any case. With
    `ip_certs`, clients that ask for no name, or for the address that they connected to, get
    one for that address; it is asked for when the first such client comes, which is refused, as
    all are until it is there. A client cannot have one asked for that is not for the relay's own
    address, or one that a trusted proxy names.

    Args:
        authority: made from the settings, if not given.
        policy: how often it is asked for the host name's certificate.
        address_policy: and for those of addresses.

    Raises:
        ConfigError: settings or files that cannot be used.
    """

    def __init__(
        self,
        tls: ACMETLS,
        *,
        authority: Authority | None = None,
        policy: RetryPolicy = POLICY,
        address_policy: RetryPolicy = ADDRESS_POLICY,
    ) -> None:
        if tls.ca_file is not None:
            authority_context(tls.ca_file)  # an unusable file is told at once
        self._tls = tls
        self._policy = policy
        self._address_policy = address_policy
        self._store = Store(tls.certdir)
        self._store.load_account()  # so that one that cannot be read is an error at once
        self._challenges = Challenges()
        self._stop = threading.Event()
        self._authority = authority or Session(tls, self._store, self._challenges, self._stop)
        self._managed: dict[str, ManagedCertificate] = {}
        self._wake = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        address = parse_ip(tls.hostname)
        self._hostname = normal_name(tls.hostname) if address is None else str(address)
        self._host_address = None if address is None else self._hostname
        self._manage(self._hostname)

    # What connections ask

    @property
    def challenge_pending(self) -> bool:
        """Whether `challenge_credential` may return one."""
        return self._challenges.tls_pending

    def credential(self, local_address: str, server_name: str | None) -> Credential | None:
        """The certificate for a name, or for the address that a client connected to."""
        address = self._managed_address(local_address) if self._tls.ip_certs else None
        subject = self._subject(server_name, address)
        return None if subject is None else self._managed[subject].credential

    def challenge_credential(self, hello: memoryview) -> Credential | None:
        """What answers TLS-ALPN-01, if the client asks for it."""
        return self._challenges.credential(hello)

    def http_challenge(self, path: str) -> bytes | None:
        """The answer to HTTP-01."""
        return self._challenges.body(path)

    def certificates(self) -> list[CertificateInfo]:
        """Those that there are."""
        return [each.credential.info for each in self._managed.values() if each.credential]

    def states(self) -> list[CertificateState]:
        """That of the host name, and of each address that a client came for."""
        now = time.time()
        return [each.state(now) for each in self._managed.values()]

    # Life

    async def start(self) -> None:
        """Begin to ask, for what is missing or due."""
        self._keeper = asyncio.create_task(self._keep(), name="pyderp certificates")

    async def aclose(self) -> None:
        """Stop. A request that hangs is left alone; its thread ends with it."""
        self._stop.set()
        self._wake.set()
        keeper, self._keeper = self._keeper, None  # cancelled, it holds frames that hold us
        if keeper is None:
            return
        try:
            await asyncio.wait((keeper,), timeout=_PATIENCE)
            if not keeper.done():
                log.info("the certificate authority does not answer; not waiting for it")
        finally:
            await cancel_and_wait((keeper,))

    def reload(self, *, force: bool = False) -> bool:
        """Use what another program wrote into the directory.

        Args:
            force: an operator asks. What failed is tried again at once, unless the authority
                itself named a time.
        """
        found = [each.read_again(force=force) for each in self._managed.values()]
        if force:
            for each in self._managed.values():
                each.schedule.hurry(time.time())
            self._wake.set()
        return any(found)

    async def _keep(self) -> None:
        while not self._stop.is_set():
            try:
                await self._next_step()
            except Exception:
                # Without this task certificates would expire, and no line would say why.
                wait = self._policy.first_retry
                log.exception("keeping certificates failed unexpectedly; on in %g s", wait)
                await self._pause(wait)

    async def _next_step(self) -> None:
        """Do what is due, or wait until something may be."""
        self._wake.clear()
        now = time.time()
        steps = [step for each in self._managed.values() for step in each.steps(now)]
        at, step = min(steps, key=operator.itemgetter(0))
        if at <= now:
            await step()
        else:
            await self._pause(min(at - now, _LONGEST_SLEEP))

    async def _pause(self, seconds: float) -> None:
        """Wait so long, or until there is something new to look at."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    # Names and addresses

    def _managed_address(self, local_address: str) -> str | None:
        """The address that a connection's certificate is for, which is asked for from now on.

        Returns:
            `None`: there is and will be none.
        """
        address = parse_ip(local_address)
        if address is None:
            return None
        # Behind address translation we do not see the address that clients use, but the settings
        # may name it.
        hidden = self._tls.directory in PUBLIC and not address.is_global
        subject = self._host_address if hidden else str(address)
        if subject is None or subject in self._managed:
            return subject
        if len(self._managed) >= _MAX_ADDRESSES:
            return None
        try:
            self._manage(subject)
        except ConfigError as e:
            log.error("no certificate for %s: %s", subject, e)
            return None
        self._wake.set()
        return subject

    def _manage(self, subject: str) -> None:
        policy = self._policy if parse_ip(subject) is None else self._address_policy
        schedule = Schedule(policy, random.uniform)
        self._managed[subject] = ManagedCertificate(
            subject, schedule, self._store, self._authority, self._tls.directory
        )

    def _subject(self, name: str | None, address: str | None) -> str | None:
        """What a client gets that asks for this name at this address."""
        if name is None:
            return address
        asked = name.lower().removesuffix(".")
        literal = parse_ip(asked)
        if literal is not None:
            return address if str(literal) == address else None
        return asked if asked == self._hostname else None
