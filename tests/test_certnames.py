from __future__ import annotations

import pytest

from pyderp.certnames import alternative_names, is_for
from pyderp.net.verify import reading
from tests.net.certificates import certificate


@pytest.mark.parametrize(
    ("name", "host", "fits", "below_top_level"),
    [
        ("derp.example.com", "DERP.example.com.", True, True),
        ("*.example.com", "derp.example.com", True, True),
        ("*.example.com", "a.b.example.com", False, False),
        ("*.lan", "derp.lan", False, True),
        ("*", "localhost", False, False),
        ("192.0.2.1", "192.0.2.1", True, True),
        ("192.0.2.1", "::ffff:192.0.2.1", True, True),
        ("::ffff:192.0.2.1", "192.0.2.1", True, True),
        ("192.0.2.1", "192.0.2.2", False, False),
    ],
)
def test_whether_a_certificate_names_a_host(
    name: str, host: str, fits: bool, below_top_level: bool
) -> None:
    with reading(certificate(name).der) as leaf:
        assert is_for(leaf, host) == fits
        assert is_for(leaf, host, star_below_top_level=True) == below_top_level


def test_dns_names_come_before_addresses() -> None:
    with reading(certificate("192.0.2.1", "b.example", "a.example").der) as leaf:
        assert alternative_names(leaf) == ("b.example", "a.example", "192.0.2.1")
    with reading(certificate().der) as leaf:
        assert alternative_names(leaf) == ()
