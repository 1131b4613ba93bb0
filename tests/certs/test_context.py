"""TLS contexts: what an authority's own certificate is checked with."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyderp.certs.context import authority_context
from pyderp.errors import ConfigError
from tests.server.certificates import write_pair


def test_a_ca_file_must_hold_certificates(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("none")
    with pytest.raises(ConfigError, match=r"bad\.pem: it holds no certificate"):
        authority_context(bad)
    with pytest.raises(ConfigError, match=r"gone\.pem: No such file"):
        authority_context(tmp_path / "gone.pem")
    write_pair(tmp_path, "ca")
    authority_context(tmp_path / "ca.crt")
