"""TLS contexts and engines of a relay, made once per file."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

import pytest

from pyderp.certs import ServerContexts, meta_certificate
from pyderp.certs.manual import ManualCertificates
from pyderp.keys import NodePrivate
from pyderp.native import NativeUse, load
from pyderp.server.conn.engines import Engine, RustlsEngine, SSLEngine

from .certificates import write_pair
from .ways import NAME

_NATIVE: Final = load(NativeUse.AUTO)


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> ServerContexts:
    """The TLS contexts with a valid certificate for `NAME`."""
    directory: Path = tmp_path_factory.mktemp("certificates")
    write_pair(directory, NAME)
    meta = meta_certificate(NodePrivate.generate().public)
    return ServerContexts(ManualCertificates(directory, NAME), meta)


@pytest.fixture(scope="module")
def context(contexts: ServerContexts) -> ssl.SSLContext:
    """The context of the ssl module among them."""
    return contexts.context("")


@pytest.fixture(params=["ssl", "rustls"] if _NATIVE else ["ssl"])
def engine(request: pytest.FixtureRequest, contexts: ServerContexts) -> Engine:
    """Each TLS engine that is installed."""
    name = NAME.encode()
    if request.param == "ssl":
        return SSLEngine(contexts, name)
    assert _NATIVE is not None
    return RustlsEngine(_NATIVE, contexts, name)
