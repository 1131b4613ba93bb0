"""The account at a certificate authority: a key in a file, and its name at the authority."""

from __future__ import annotations

import base64
import logging
from dataclasses import dataclass

from acme import client, messages
from acme import errors as acme_errors
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from josepy.jwa import ES256, RS256, JWASignature
from josepy.jwk import JWK, JWKEC, JWKRSA

from pyderp.certs.credential import pem_of_key
from pyderp.certs.network import Refused
from pyderp.certs.store import Store
from pyderp.config import ACMETLS
from pyderp.config.rules import parse_eab_key

__all__ = ["Account", "account_of", "load_key"]

log = logging.getLogger("pyderp.tls")


@dataclass(frozen=True, slots=True)
class Account:
    """A key that may have an account."""

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


def account_of(
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
    if authority.external_account_required() and not tls.eab_kid:
        raise Refused(
            "the authority wants an external account binding: get one from it, and set "
            "eab_kid and eab_key"
        )
    body = messages.NewRegistration.from_data(
        email=email,
        terms_of_service_agreed=True,
        external_account_binding=_binding(authority, account, tls),
    )
    try:
        made = authority.new_account(body)
    except acme_errors.ConflictError as e:
        return messages.RegistrationResource(body=body, uri=e.location)
    log.info("made an ACME account at %s", tls.directory)
    return made


def _binding(
    authority: client.ClientV2, account: Account, tls: ACMETLS
) -> dict[str, object] | None:
    if not tls.eab_kid:
        return None
    key = base64.urlsafe_b64encode(parse_eab_key(tls.eab_key)).rstrip(b"=").decode("ascii")
    return messages.ExternalAccountBinding.from_data(
        account.jwk.public_key(), tls.eab_kid, key, authority.directory
    )
