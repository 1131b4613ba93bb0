"""Certificates by ACME, obtained and renewed from an authority while the relay runs."""

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
"""Managed certificates at most. A machine may have the addresses of a whole network."""
_LONGEST_SLEEP: Final = 3600.0
"""Seconds. A longer sleep could miss a due step if the wall clock is set meanwhile."""
_PATIENCE: Final = 2.0
"""Seconds that `aclose` waits for a request that is under way."""

POLICY: Final = RetryPolicy()
# Certificates of addresses last for days only, so failed requests are repeated sooner.
ADDRESS_POLICY: Final = RetryPolicy(longest_retry=1800.0)


class ACMECertificates(CertificateSource):
    """Obtains certificates from an authority by ACME.

    A client whose SNI is the host name, in upper or lower case, gets the certificate of the host
    name. With `ip_certs`, a client without SNI, or whose SNI is the address that it connected
    to, gets a certificate of that address. The relay requests that one when the first such
    client connects; handshakes fail until it is issued. A client cannot make the relay request
    a certificate for any other address: only for one of the relay's own, or one that a trusted
    proxy names.

    Args:
        authority: the authority; by default a `Session` from the settings.
        policy: how often the authority is asked for the certificate of the host name.
        address_policy: how often it is asked for one of an address.

    Raises:
        ConfigError: a setting or a file cannot be used.
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
            authority_context(tls.ca_file)  # raises for a bad file now, not at the first request
        self._tls = tls
        self._policy = policy
        self._address_policy = address_policy
        self._store = Store(tls.certdir)
        self._store.load_account()  # raises for an unreadable file now, for the same reason
        self._challenges = Challenges()
        self._stop = threading.Event()
        self._authority = authority or Session(tls, self._store, self._challenges, self._stop)
        self._managed: dict[str, ManagedCertificate] = {}
        self._wake = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        address = parse_ip(tls.hostname)
        self._hostname = normal_name(tls.hostname) if address is None else str(address)
        self._host_address = None if address is None else self._hostname
        # Now, so that an unreadable certificate file is an error at the start. Certificates of
        # addresses are managed from the first connection to the address on.
        self._manage(self._hostname)

    # What connections ask

    @property
    def challenge_pending(self) -> bool:
        """Whether `challenge_credential` may return one."""
        return self._challenges.tls_pending

    def credential(self, local_address: str, server_name: str | None) -> Credential | None:
        """Return the certificate of a name, or of the address that a client connected to."""
        address = self._managed_address(local_address) if self._tls.ip_certs else None
        subject = self._subject(server_name, address)
        return None if subject is None else self._managed[subject].credential

    def challenge_credential(self, hello: memoryview) -> Credential | None:
        """Return the certificate that answers TLS-ALPN-01, if the client asks for it."""
        return self._challenges.credential(hello)

    def http_challenge(self, path: str) -> bytes | None:
        """Return the answer to HTTP-01."""
        return self._challenges.body(path)

    def certificates(self) -> list[CertificateInfo]:
        """Return the certificates that have been issued."""
        return [each.credential.info for each in self._managed.values() if each.credential]

    def states(self) -> list[CertificateState]:
        """Return the state for the host name, and for each address that a client connected to."""
        now = time.time()
        return [each.state(now) for each in self._managed.values()]

    # Life

    async def start(self) -> None:
        """Start the task that requests certificates which are missing or due for renewal."""
        self._keeper = asyncio.create_task(self._keep(), name="pyderp certificates")

    async def aclose(self) -> None:
        """Stop the task. A request that hangs is abandoned; its thread ends when the request does.

        This waits at most two seconds.
        """
        self._stop.set()
        self._wake.set()
        # A cancelled task keeps frames that refer to this object: drop it, to leave no cycle.
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        # A request that notices `_stop` in time restores its record. One that is abandoned counts
        # as a failure at the next start, as if the process had died in it.
        try:
            await asyncio.wait((keeper,), timeout=_PATIENCE)
            if not keeper.done():
                log.info("the certificate authority does not answer; not waiting for it")
        finally:
            await cancel_and_wait((keeper,))

    def reload(self, *, force: bool = False) -> bool:
        """Load certificates that another program wrote into the directory.

        Args:
            force: an operator asks for it. Failed requests are repeated at once too, unless the
                authority has named a time.
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
                # Go on: if this task ended, certificates would expire without a line in the log.
                wait = self._policy.first_retry
                log.exception("keeping certificates failed unexpectedly; on in %g s", wait)
                await self._pause(wait)

    async def _next_step(self) -> None:
        """Do the first step that is due, or wait until one is or `_wake` is set."""
        self._wake.clear()  # before looking, so that a change during the look is not lost
        now = time.time()
        # All times are computed anew, because each step and each reload changes them. One step runs
        # at a time, so that one thread at a time uses the store and the session.
        steps = [step for each in self._managed.values() for step in each.steps(now)]
        at, step = min(steps, key=operator.itemgetter(0))
        if at <= now:
            await step()
        else:
            await self._pause(min(at - now, _LONGEST_SLEEP))

    async def _pause(self, seconds: float) -> None:
        """Wait for the time, or until `_wake` is set."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    # Names and addresses

    def _managed_address(self, local_address: str) -> str | None:
        """Return the address whose certificate a connection needs, and manage it from now on.

        Returns:
            `None` if no certificate can be had for the address.
        """
        address = parse_ip(local_address)
        if address is None:
            return None
        # Behind address translation the socket has a private address, for which no public
        # authority issues certificates. Clients use the address that the settings may name.
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
        self._wake.set()  # `_keep` may sleep for an hour, and this certificate is due now
        return subject

    def _manage(self, subject: str) -> None:
        policy = self._policy if parse_ip(subject) is None else self._address_policy
        schedule = Schedule(policy, random.uniform)
        self._managed[subject] = ManagedCertificate(
            subject, schedule, self._store, self._authority, self._tls.directory
        )

    def _subject(self, name: str | None, address: str | None) -> str | None:
        """Return whose certificate a client gets for a server name (SNI) and a local address."""
        if name is None:
            return address
        # Some clients send an address as SNI, although RFC 6066 section 3 forbids it.
        asked = name.lower().removesuffix(".")
        literal = parse_ip(asked)
        if literal is not None:
            return address if str(literal) == address else None
        return asked if asked == self._hostname else None
