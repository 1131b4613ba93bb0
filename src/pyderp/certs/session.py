"""Talking to a certificate authority by ACME (RFC 8555), on certbot's `acme`. All of it blocks.

Imported only when ACME is on: it brings an HTTP library with it.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import requests
from acme import challenges, client, crypto_util, messages
from acme import errors as acme_errors
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from josepy.jwa import ES256, RS256, JWASignature
from josepy.jwk import JWK, JWKEC, JWKRSA

from pyderp.addresses import parse_ip
from pyderp.certs.challenges import Challenges
from pyderp.certs.context import authority_context
from pyderp.certs.leaf import pem_of_key
from pyderp.certs.network import FAILURES, Budget, Network, Refused, describe, retry_after
from pyderp.certs.store import Store
from pyderp.config import ACMETLS
from pyderp.config.rules import parse_eab_key
from pyderp.errors import without_frames

__all__ = ["Session", "load_key"]

log = logging.getLogger("pyderp.tls")

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
        stop: ends each of these methods soon with `Stopped`.
    """

    def __init__(
        self, tls: ACMETLS, store: Store, challenges: Challenges, stop: threading.Event
    ) -> None:
        self._tls = tls
        self._store = store
        self._challenges = challenges
        self._stop = stop
        self._retry_after: float | None = None

    def obtain(self, subject: str, attempt: int) -> tuple[bytes, bytes]:
        """Get a certificate for a DNS name or IP address. Returns chain and key, PEM.

        Args:
            attempt: counts failures; each tries the next kind of challenge.

        Raises:
            Refused: there is none.
            Stopped: it was told to stop.
        """
        budget = Budget(_BUDGET, self._stop)
        with self._exchange(budget) as net:
            account = load_key(self._store)
            net.key, net.alg = account.jwk, account.algorithm
            directory = client.ClientV2.get_directory(self._tls.directory, net)
            authority = client.ClientV2(directory, net)
            net.account = _account_of(authority, account, self._tls)
            key = pem_of_key(ec.generate_private_key(ec.SECP256R1()))
            order = _new_order(authority, directory, subject, key)
            for each in order.authorizations:
                self._prove(authority, account, each, attempt, budget)
            return _finish(authority, order, budget), key

    def renewal(self, chain: bytes) -> tuple[float | None, float]:
        """When the authority wants a certificate renewed (RFC 9773).

        Returns:
            that time, drawn at random from what it suggests, or `None`; and when to ask
            again; in seconds since 1970.

        Raises:
            Refused: it does not answer.
            Stopped: it was told to stop.
        """
        with self._exchange(Budget(_ADVICE_BUDGET, self._stop)) as net:
            directory = client.ClientV2.get_directory(self._tls.directory, net)
            try:
                when, again = client.ClientV2(directory, net).renewal_time(chain)
            except acme_errors.ARIError as e:
                raise (e.__cause__ or e) from None
        return None if when is None else when.timestamp(), again.timestamp()

    @contextlib.contextmanager
    def _exchange(self, budget: Budget) -> Iterator[Network]:
        """What fails within the block is `Refused`."""
        self._retry_after = None
        ca_file = self._tls.ca_file
        try:
            net = Network(budget, None if ca_file is None else authority_context(ca_file))
            net.session.hooks["response"].append(self._look_at)
            with contextlib.closing(net.session):
                yield net
        # Frames of the HTTP library name errors that led here, and so keep each other and us.
        except acme_errors.TimeoutError as e:
            without_frames(e)
            raise Refused("the authority takes too long") from None
        except FAILURES as e:
            without_frames(e)
            limited = isinstance(e, messages.Error) and e.code == "rateLimited"
            raise Refused(describe(e), retry_after=self._retry_after, limited=limited) from e

    def _look_at(self, response: requests.Response, **_: object) -> None:
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
            for turn in itertools.count():
                authorization, response = authority.poll(authorization)
                if authorization.body.status != messages.STATUS_PENDING:
                    break
                _pause(budget, response, turn)
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


def _finish(authority: client.ClientV2, order: messages.OrderResource, budget: Budget) -> bytes:
    """Hand in the request and wait for the certificate."""
    asked = False
    turn = 0
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
            _pause(budget, response, turn)
            turn += 1


def _pause(budget: Budget, response: requests.Response, turn: int) -> None:
    """Wait before the next look: as long as the answer asks for, else longer in each turn."""
    demanded = retry_after(response.headers.get("Retry-After"), time.time())
    if demanded is None:
        budget.sleep(min(_FIRST_PAUSE * 2 ** min(turn, 10), _LONGEST_PAUSE))
    else:
        budget.sleep(min(max(demanded, _FIRST_PAUSE), _LONGEST_DEMANDED))


def _post_as_get(authority: client.ClientV2, url: str) -> requests.Response:
    return authority.net.post(url, None, new_nonce_url=authority.directory["newNonce"])


def _new_order(
    authority: client.ClientV2, directory: messages.Directory, subject: str, key: bytes
) -> messages.OrderResource:
    address = parse_ip(subject)
    if address is None:
        return authority.new_order(crypto_util.make_csr(key, domains=[subject]))
    # Addresses change hands, so public authorities certify them for days only.
    short = _SHORT_LIVED in (directory["meta"].profiles or ())
    csr = crypto_util.make_csr(key, ipaddrs=[address])
    return authority.new_order(csr, _SHORT_LIVED if short else None)


@dataclass(frozen=True, slots=True)
class Account:
    """A key that may have an account at the authority."""

    jwk: JWK
    algorithm: JWASignature
    new: bool
    """Made just now, so no authority knows it."""


def load_key(store: Store) -> Account:
    """The key in the store; made if there is none.

    Raises:
        Refused: a new one cannot be saved. It is not used then: a relay that restarts would
            make an account, and get a certificate, each time, until the authority's limits
            for a whole week are used up; and an external binding may be good for one key only.
    """
    pem = store.load_account()
    if pem is not None:
        try:
            return _account(pem, new=False)
        except (ValueError, TypeError) as e:
            store.put_account_aside()
            log.error(
                "the ACME account key in %s cannot be used and is kept aside with the ending "
                ".bad; a new account will be made: %s",
                store.directory,
                e,
            )
    pem = pem_of_key(ec.generate_private_key(ec.SECP256R1()))
    try:
        store.save_account(pem)
    except OSError as e:
        raise Refused(
            f"cannot save the ACME account key in {store.account_path}: {e.strerror}; the "
            "authority is not asked without it, as each restart would make a new account and "
            "use up the authority's limits",
            asked=False,
        ) from e
    return _account(pem, new=True)


def _account(pem: bytes, *, new: bool) -> Account:
    key = serialization.load_pem_private_key(pem, None)
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return Account(JWKEC(key=key), ES256, new)
    if isinstance(key, rsa.RSAPrivateKey):
        return Account(JWKRSA(key=key), RS256, new)
    raise ValueError("neither RSA nor on the curve P-256")


def _account_of(
    authority: client.ClientV2, account: Account, tls: ACMETLS
) -> messages.RegistrationResource:
    """The account of a key at this authority; made if there is none, the terms agreed to.

    Raises:
        Refused: the authority wants an external account, and none is given.
    """
    email = tls.email or None
    if not account.new:
        # An external binding may be good for one account only, so it is not shown again.
        body = messages.NewRegistration.from_data(email=email, terms_of_service_agreed=True)
        try:
            return authority.query_registration(messages.RegistrationResource(body=body))
        except messages.Error as e:
            if e.code != "accountDoesNotExist":
                raise
    binding: dict[str, object] | None = None
    if tls.eab_kid:
        key = base64.urlsafe_b64encode(parse_eab_key(tls.eab_key)).rstrip(b"=").decode("ascii")
        binding = messages.ExternalAccountBinding.from_data(
            account.jwk.public_key(), tls.eab_kid, key, authority.directory
        )
    elif authority.external_account_required():
        raise Refused(
            "the authority wants an external account binding: get one from it, and set "
            "eab_kid and eab_key"
        )
    body = messages.NewRegistration.from_data(
        email=email, terms_of_service_agreed=True, external_account_binding=binding
    )
    try:
        made = authority.new_account(body)
    except acme_errors.ConflictError as e:
        return messages.RegistrationResource(body=body, uri=e.location)
    log.info("made an ACME account at %s", tls.directory)
    return made
