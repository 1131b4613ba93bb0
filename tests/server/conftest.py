"""A relay's TLS context, made once a file."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from pyderp.certs import ServerContexts, meta_certificate
from pyderp.certs.manual import ManualCertificates
from pyderp.keys import NodePrivate

from .certificates import write_pair
from .ways import NAME


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    directory: Path = tmp_path_factory.mktemp("certificates")
    write_pair(directory, NAME)
    meta = meta_certificate(NodePrivate.generate().public)
    return ServerContexts(ManualCertificates(directory, NAME), meta).context("")
