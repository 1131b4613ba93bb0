"""The ACME session with a certificate authority (RFC 8555), on certbot's `acme`. All of it blocks.

Imported only if ACME is on, because it needs an HTTP library.
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
"""Seconds to obtain one certificate, from the first request to the last."""
_ADVICE_BUDGET: Final = 60.0
"""Seconds to ask when to renew a certificate."""
_FIRST_PAUSE: Final = 0.1
"""Seconds before the second look at a challenge or an order; doubled before each further look."""
_LONGEST_PAUSE: Final = 5.0
_LONGEST_DEMANDED: Final = 30.0
"""Seconds of the authority's `Retry-After` that are waited at most between two looks."""
_SHORT_LIVED: Final = "shortlived"
"""The profile of certificates for IP addresses; they last six days at Let's Encrypt."""


@challenges.ChallengeResponse.register
class _TLSALPN01Response(challenges.KeyAuthorizationChallengeResponse):
    typ = "tls-alpn-01"


@challenges.Challenge.register
class _TLSALPN01(challenges.KeyAuthorizationChallenge):
    """The challenge of RFC 8737; new versions of the library do not have it any more."""

    response_cls = _TLSALPN01Response
    typ = _TLSALPN01Response.typ

    def validation(self, account_key: JWK, **kwargs: Any) -> str:
        return self.key_authorization(account_key)


class Session:
    """Obtains certificates. Methods block, and only one thread at a time may call them.

    Args:
        challenges: has the answers while the authority checks a challenge.
        stop: set when the relay stops; the methods then soon raise `Stopped`.
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
        """Obtain a certificate for a DNS name or IP address. Returns chain and key, PEM.

        Args:
            attempt: failures so far. Each attempt uses the next kind of challenge: one of the
                ports may be closed to the authority.

        Raises:
            Refused: the authority issued no certificate.
            Stopped: the relay is stopping.
        """
        budget = Budget(_BUDGET, self._stop)
        with self._exchange(budget) as net:
            account = load_key(self._store)
            net.key, net.alg = account.jwk, account.algorithm
            # Read for each certificate: a relay runs for months, and the URLs may change.
            directory = client.ClientV2.get_directory(self._tls.directory, net)
            authority = client.ClientV2(directory, net)
            net.account = _account_of(authority, account, self._tls)
            # A new key for each certificate: one that leaked is of no use after the renewal.
            key = pem_of_key(ec.generate_private_key(ec.SECP256R1()))
            order = _new_order(authority, directory, subject, key)
            for each in order.authorizations:
                self._prove(authority, account, each, attempt, budget)
            return _finish(authority, order, budget), key

    def renewal(self, chain: bytes) -> tuple[float | None, float]:
        """Ask when the authority wants a certificate renewed (RFC 9773).

        Returns:
            the time to renew, drawn at random from the window that the authority suggests, or
            `None` if it suggests none; and the time to ask again. Both in seconds since 1970.

        Raises:
            Refused: there was no usable answer.
            Stopped: the relay is stopping.
        """
        with self._exchange(Budget(_ADVICE_BUDGET, self._stop)) as net:
            directory = client.ClientV2.get_directory(self._tls.directory, net)
            try:
                when, again = client.ClientV2(directory, net).renewal_time(chain)
            except acme_errors.ARIError as e:
                # The library wraps the error that says what went wrong.
                raise (e.__cause__ or e) from None
        return None if when is None else when.timestamp(), again.timestamp()

    @contextlib.contextmanager
    def _exchange(self, budget: Budget) -> Iterator[Network]:
        """Yield a client for the requests of the block; their failures are raised as `Refused`."""
        self._retry_after = None
        ca_file = self._tls.ca_file
        try:
            net = Network(budget, None if ca_file is None else authority_context(ca_file))
            net.session.hooks["response"].append(self._note_retry_after)
            with contextlib.closing(net.session):
                yield net
        # Frames of the HTTP library refer to their errors, which refer to the frames: a cycle,
        # from which this object would be reachable too.
        except acme_errors.TimeoutError as e:
            without_frames(e)
            raise Refused("the authority takes too long") from None
        except FAILURES as e:
            without_frames(e)
            limited = isinstance(e, messages.Error) and e.code == "rateLimited"
            raise Refused(describe(e), retry_after=self._retry_after, limited=limited) from e

    def _note_retry_after(self, response: requests.Response, **_: object) -> None:
        # By a hook, because the library's errors do not have the headers of the response.
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
        """Prove control of a name or address by one challenge.

        Raises:
            acme.errors.ValidationError: the authority's check failed.
        """
        if authorization.body.status == messages.STATUS_VALID:
            return  # proven by an earlier order; authorities remember that for some days
        challenge = self._choose(authorization, attempt)
        text = challenge.chall.key_authorization(account.jwk)
        if challenge.chall.typ == _TLSALPN01.typ:
            answering = self._challenges.by_tls(authorization.body.identifier.value, text)
        else:
            answering = self._challenges.by_http(challenge.chall.path, text)
        # The answer must stay until the authority has decided: it may check several times, from
        # different places.
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
        """Return the challenge for this attempt, among those that relay and authority both know.

        Raises:
            Refused: there is none.
        """
        host = authorization.body.identifier.value
        offered = {each.chall.typ: each for each in authorization.body.challenges}
        known = []
        if self._tls.http_port is not None:
            known.append(challenges.HTTP01.typ)
        # For an IP address, TLS-ALPN-01 uses a name of reverse DNS as SNI (RFC 8738 §6), which the
        # relay does not answer.
        if parse_ip(host) is None:
            known.append(_TLSALPN01.typ)
        usable = [offered[typ] for typ in known if typ in offered]
        if not usable:
            raise Refused(
                f"for {host} the authority offers the challenges {', '.join(offered) or 'none'}, "
                f"and this relay can do {', '.join(known)} (http-01 needs http_port)"
            )
        return usable[attempt % len(usable)]


def _finish(authority: client.ClientV2, order: messages.OrderResource, budget: Budget) -> bytes:
    """Finalize the order as soon as it is ready, and return its certificate chain, PEM.

    The library has a function for that, which sleeps without regard to `budget`.

    Raises:
        Refused, acme.errors.IssuanceError: the order failed.
    """
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
    """Wait before the next look, as long as `Retry-After` says, else longer in each turn."""
    demanded = retry_after(response.headers.get("Retry-After"), time.time())
    if demanded is None:
        budget.sleep(min(_FIRST_PAUSE * 2 ** min(turn, 10), _LONGEST_PAUSE))
    else:
        # `Retry-After: 0` must not become a busy loop, nor a day use up the whole budget.
        budget.sleep(min(max(demanded, _FIRST_PAUSE), _LONGEST_DEMANDED))


def _post_as_get(authority: client.ClientV2, url: str) -> requests.Response:
    return authority.net.post(url, None, new_nonce_url=authority.directory["newNonce"])


def _new_order(
    authority: client.ClientV2, directory: messages.Directory, subject: str, key: bytes
) -> messages.OrderResource:
    address = parse_ip(subject)
    if address is None:
        return authority.new_order(crypto_util.make_csr(key, domains=[subject]))
    # IP addresses change their owners, so public authorities certify them for a few days only, and
    # refuse the default profile for them.
    short = _SHORT_LIVED in (directory["meta"].profiles or ())
    csr = crypto_util.make_csr(key, ipaddrs=[address])
    return authority.new_order(csr, _SHORT_LIVED if short else None)


@dataclass(frozen=True, slots=True)
class Account:
    """A key for an account at the authority, which may not have the account yet."""

    jwk: JWK
    algorithm: JWASignature
    new: bool
    """Whether the key was made just now, so that no authority knows it."""


def load_key(store: Store) -> Account:
    """Return the account key in the store; make and save one if there is none.

    Raises:
        Refused: a new key cannot be saved. It is not used then: each restart of the relay would
            make another account and another certificate, until the authority's limits for a
            week are used up. An external account binding may also be valid for one key only.
    """
    pem = store.load_account()
    if pem is not None:
        try:
            return _account(pem, new=False)
        except (ValueError, TypeError) as e:
            # Renamed and not overwritten: only this key can use the account at the authority.
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
    """Return the account of a key at this authority; make one if there is none.

    The terms of service are agreed to, as `derper` does.

    Raises:
        Refused: the authority wants an external account binding, and the settings have none.
    """
    email = tls.email or None
    if not account.new:
        # Look for the account first, without the external binding: an authority may accept a
        # binding once only.
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
        # The authority has an account for the key after all.
        return messages.RegistrationResource(body=body, uri=e.location)
    log.info("made an ACME account at %s", tls.directory)
    return made
