"""Fixtures. They import the extension when they run, because it may not be installed."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import pyderp_fast

    from .pairs import Credential, Pair


@pytest.fixture(scope="session")
def credential() -> Credential:
    from cryptography.hazmat.primitives.asymmetric import ec

    from .pairs import make_credential

    return make_credential(ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture(scope="session")
def config(credential: Credential) -> pyderp_fast.TlsConfig:
    import pyderp_fast

    return pyderp_fast.TlsConfig(credential.chain, credential.key)


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def pair(request: pytest.FixtureRequest, config: pyderp_fast.TlsConfig) -> Pair:
    from .pairs import Client, Pair

    return Pair(config, Client(request.param))
