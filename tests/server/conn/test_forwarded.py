"""Which client a request comes from, according to trusted proxies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyderp.server.conn.http import client_address
from pyderp.wire.http import Request

PROXY = ("10.0.0.1", 1234)


def trusts(host: str) -> bool:
    return host.startswith("10.") or host == "2001:db8::1"


def found(*headers: tuple[str, str]) -> tuple[str, int] | None:
    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return client_address(Request("GET", "/derp", "1.1", pairs), PROXY, trusts)


@pytest.mark.parametrize(
    ("value", "client"),
    [
        ("192.0.2.1", ("192.0.2.1", 0)),
        ("192.0.2.1:4711", ("192.0.2.1", 4711)),
        ("2001:db8::7", ("2001:db8::7", 0)),
        ("[2001:db8::7]:4711", ("2001:db8::7", 4711)),
        ("::ffff:192.0.2.1", ("192.0.2.1", 0)),
        ("192.0.2.1, 10.0.0.2", ("192.0.2.1", 0)),
        ("192.0.2.1,10.0.0.2 , 10.0.0.3", ("192.0.2.1", 0)),
        # Left of an untrusted address nothing is trusted: that client may have sent it.
        ("127.0.0.1, 192.0.2.1", ("192.0.2.1", 0)),
        ("127.0.0.1, 192.0.2.1, 10.0.0.2", ("192.0.2.1", 0)),
        # All are trusted: the farthest is the client.
        ("10.0.0.9, 10.0.0.2", ("10.0.0.9", 0)),
        ("192.0.2.1:99999", ("192.0.2.1", 0)),
        ("192.0.2.1:x", ("192.0.2.1", 0)),
        # A proxy that does not know the address, or writes it in another form: no client.
        ("unknown", None),
        ("", None),
        ("unix:", None),
        ("127.0.0.1, junk, 10.0.0.2", None),
        ("10.0.0.9, junk", None),
        # More proxies than any network has.
        (", ".join(["10.0.0.9"] * 32), ("10.0.0.9", 0)),
        (", ".join(["10.0.0.9"] * 33), None),
    ],
)
def test_x_forwarded_for_is_read_from_the_right(value: str, client: tuple[str, int] | None) -> None:
    assert found(("X-Forwarded-For", value)) == client


def test_at_most_32_proxies_are_considered() -> None:
    """A list may have thousands of items, each of which costs time."""
    hops = ["192.0.2.1", *(f"10.0.1.{i}" for i in range(32))]
    assert found(("X-Forwarded-For", ", ".join(hops[:32]))) == ("192.0.2.1", 0)
    assert found(("X-Forwarded-For", ", ".join(hops))) is None
    assert found(("X-Forwarded-For", ", ".join(hops[1:]))) == ("10.0.1.0", 0)
    assert found(("X-Forwarded-For", ", ".join(["10.0.0.9", *hops[1:]]))) is None


def test_repeated_headers_are_one_list() -> None:
    headers = ("X-Forwarded-For", "127.0.0.1, 192.0.2.1"), ("X-Forwarded-For", "10.0.0.2")
    assert found(*headers) == ("192.0.2.1", 0)


def test_forwarded_is_not_read() -> None:
    assert found(("Forwarded", "for=192.0.2.1")) == PROXY
    both = ("Forwarded", 'for="'), ("X-Forwarded-For", "192.0.2.1")
    assert found(*both) == ("192.0.2.1", 0)


def test_without_a_header_the_address_is_the_peers() -> None:
    assert found() == PROXY


@given(st.text(alphabet=st.characters(codec="latin-1"), max_size=200))
def test_any_value_is_an_address_or_none(value: str) -> None:
    client = found(("X-Forwarded-For", value))
    if client is not None:
        host, port = client
        assert host
        assert 0 <= port <= 65535
