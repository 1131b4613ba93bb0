"""Sessions of the extension beside the ssl module's client."""

from __future__ import annotations

import ssl

import pyderp_fast
import pytest

from .conftest import Client, Credential, Pair


def test_both_sides_understand_each_other(pair: Pair) -> None:
    """What one side encrypts the other decrypts."""
    assert pair.session.version == (pair.client.tls.version() or "").removeprefix("TLSv")
    assert pair.feed(pair.client.seal(b"to the relay")) == b"to the relay"
    assert pair.client.open(pair.session.seal([b"to ", b"the client"])) == b"to the client"
