"""Talking to a certificate authority by ACME (RFC 8555), on certbot's `acme`. All of it blocks.

Imported only when ACME is on: it brings an HTTP library with it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, Final

import requests
from acme import challenges, client, crypto_util, messages
from acme import errors as acme_errors
from cryptography.hazmat.primitives.asymmetric import ec
from josepy.jwk import JWK

from pyderp.addresses import parse_ip
from pyderp.certs.account import Account, account_of, load_key
from pyderp.certs.challenges import Challenges
from pyderp.certs.context import authority_context
from pyderp.certs.credential import pem_of_key
from pyderp.certs.network import FAILURES, Budget, Network, Refused, describe, retry_after
from pyderp.certs.store import Store
from pyderp.certs.worker import Stopped, Worker
from pyderp.config import ACMETLS
from pyderp.errors import without_frames

__all__ = ["Session"]

_BUDGET: Final = 180.0
"""Seconds for all of one certificate."""
_ADVICE_BUDGET: Final = 60.0
"""Seconds for when to renew it."""
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
_LONGEST_DEMANDED: Final = 30.0
_SHORT_LIVED: Final = "shortlived"
"""The profile of certificates for addresses: six days at Let's Encrypt."""


@challenges.ChallengeResponse.register
class _TLSALPN01Response(challenges.KeyAuthorizationChallengeResponse):
    typ = "tls-alpn-01"


@challenges.Challenge.register
class _TLSALPN01(challenges.KeyAuthorizationChallenge):
    """RFC 8737; the library has dropped its own."""

    response_cls = _TLSALPN01Response
    typ = _TLSALPN01Response.typ

    def validation(self, account_key: JWK, **kwargs: Any) -> str:
        return self.key_authorization(account_key)


class Session:
    """Gets certificates. Methods block, and are called by one thread at a time.

    Args:
        challenges: where answers are put while the authority checks.
        worker: runs these methods, and can stop them.
    """

    def __init__(self, tls: ACMETLS, store: Store, challenges: Challenges, worker: Worker) -> None:
        self._tls = tls
        self._store = store
        self._challenges = challenges
        self._worker = worker
        self._retry_after: float | None = None

    def obtain(self, subject: str, attempt: int) -> tuple[bytes, bytes]:
        """Get a certificate for a DNS name or IP address. Returns chain and key, PEM.

        Args:
            attempt: counts failures; each tries the next kind of challenge.

        Raises:
            Refused: there is none.
            Stopped: the worker was told to stop.
        """
        budget = Budget(_BUDGET, self._worker)
        with self._described_failures(), self._network(budget) as net:
            account = load_key(self._store)
            net.key, net.alg = account.jwk, account.algorithm
            directory = client.ClientV2.get_directory(self._tls.directory, net)
            authority = client.ClientV2(directory, net)
            net.account = account_of(authority, account, self._tls)
            key = pem_of_key(ec.generate_private_key(ec.SECP256R1()))
            order = authority.new_order(_csr(subject, key), _profile(directory, subject))
            for each in order.authorizations:
                self._prove(authority, account, each, attempt, budget)
            return self._finish(authority, order, budget), key

    def renewal(self, chain: bytes) -> tuple[float | None, float]:
        """When the authority wants a certificate renewed (RFC 9773).

        Returns:
            that time, drawn at random from what it suggests, or `None`; and when to ask
            again; in seconds since 1970.

        Raises:
            Refused: it does not answer.
            Stopped: the worker was told to stop.
        """
        budget = Budget(_ADVICE_BUDGET, self._worker)
        with self._described_failures(), self._network(budget) as net:
            directory = client.ClientV2.get_directory(self._tls.directory, net)
            try:
                when, again = client.ClientV2(directory, net).renewal_time(chain)
            except acme_errors.ARIError as e:
                self._worker.check()
                raise (e.__cause__ or e) from None
        return None if when is None else when.timestamp(), again.timestamp()

    @contextlib.contextmanager
    def _described_failures(self) -> Iterator[None]:
        self._retry_after = None
        try:
            yield
        except Stopped:
            raise
        # Frames of the HTTP library name errors that led here, and so keep each other and us.
        except acme_errors.TimeoutError as e:
            without_frames(e)
            raise Refused("the authority takes too long") from None
        except FAILURES as e:
            without_frames(e)
            limited = isinstance(e, messages.Error) and e.code == "rateLimited"
            raise Refused(describe(e), retry_after=self._retry_after, limited=limited) from e

    @contextlib.contextmanager
    def _network(self, budget: Budget) -> Iterator[Network]:
        ca_file = self._tls.ca_file
        net = Network(budget, None if ca_file is None else authority_context(ca_file))
        with contextlib.closing(net.session):
            net.session.hooks["response"].append(self._look_at)
            yield net

    def _look_at(self, response: requests.Response, **_: object) -> None:
        self._worker.check()
        if not response.ok:
            self._retry_after = retry_after(response.headers.get("Retry-After"), time.time())

    def _prove(
        self,
        authority: client.ClientV2,
        account: Account,
        authorization: messages.AuthorizationResource,
        attempt: int,
        budget: Budget,
    ) -> None:
        """Show that the name or address is ours."""
        if authorization.body.status == messages.STATUS_VALID:
            return  # shown some time ago
        challenge = self._choose(authorization, attempt)
        text = challenge.chall.key_authorization(account.jwk)
        if challenge.chall.typ == _TLSALPN01.typ:
            answering = self._challenges.by_tls(authorization.body.identifier.value, text)
        else:
            answering = self._challenges.by_http(challenge.chall.path, text)
        with answering:
            authority.answer_challenge(challenge, challenge.chall.response(account.jwk))
            pauses = _Pauses(budget)
            while True:
                authorization, response = authority.poll(authorization)
                if authorization.body.status != messages.STATUS_PENDING:
                    break
                pauses.wait(response)
        if authorization.body.status != messages.STATUS_VALID:
            raise acme_errors.ValidationError([authorization])

    def _choose(
        self, authorization: messages.AuthorizationResource, attempt: int
    ) -> messages.ChallengeBody:
        host = authorization.body.identifier.value
        offered = {each.chall.typ: each for each in authorization.body.challenges}
        ways = []
        if self._tls.http_port is not None:
            ways.append(challenges.HTTP01.typ)
        if parse_ip(host) is None:
            ways.append(_TLSALPN01.typ)
        usable = [offered[way] for way in ways if way in offered]
        if not usable:
            raise Refused(
                f"for {host} the authority offers the challenges {', '.join(offered) or 'none'}, "
                f"and this relay can do {', '.join(ways)} (http-01 needs http_port)"
            )
        return usable[attempt % len(usable)]

    def _finish(
        self, authority: client.ClientV2, order: messages.OrderResource, budget: Budget
    ) -> bytes:
        """Hand in the request and wait for the certificate."""
        asked = False
        pauses = _Pauses(budget)
        while True:
            response = _post_as_get(authority, order.uri)
            body = messages.Order.from_json(response.json())
            if body.status == messages.STATUS_VALID and body.certificate is not None:
                chain: str = _post_as_get(authority, body.certificate).text
                return chain.encode("ascii")
            if body.status == messages.STATUS_INVALID:
                if body.error is None:
                    raise Refused("the order failed, and the authority gives no reason")
                raise acme_errors.IssuanceError(body.error)
            if body.status == messages.STATUS_READY and not asked:
                authority.begin_finalization(order.update(body=body))
                asked = True
            else:
                pauses.wait(response)


class _Pauses:
    """Waits between two looks, longer each time."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._next = _FIRST_PAUSE

    def wait(self, response: requests.Response) -> None:
        """Wait as long as the answer asks for, within limits.

        Raises:
            acme.errors.TimeoutError: it took too long altogether.
        """
        demanded = retry_after(response.headers.get("Retry-After"), time.time())
        pause = self._next
        if demanded is not None:
            pause = min(max(demanded, _FIRST_PAUSE), _LONGEST_DEMANDED)
        self._next = min(self._next * 2, _LONGEST_PAUSE)
        self._budget.sleep(pause)


def _post_as_get(authority: client.ClientV2, url: str) -> requests.Response:
    return authority.net.post(url, None, new_nonce_url=authority.directory["newNonce"])


def _csr(subject: str, key: bytes) -> bytes:
    address = parse_ip(subject)
    if address is None:
        return crypto_util.make_csr(key, domains=[subject])
    return crypto_util.make_csr(key, ipaddrs=[address])


def _profile(directory: messages.Directory, subject: str) -> str | None:
    """Addresses change hands, so public authorities certify them for days only."""
    if parse_ip(subject) is None:
        return None
    return _SHORT_LIVED if _SHORT_LIVED in (directory["meta"].profiles or ()) else None
