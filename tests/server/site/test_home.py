from __future__ import annotations

import pytest

from pyderp.server.site.routes import home_page
from pyderp.wire.http import BROWSER_HEADERS


def test_the_home_page_says_that_this_is_a_derp_relay() -> None:
    response = home_page("", derp=True, debug=False)
    assert response.status == 200
    assert response.headers == [("Content-Type", "text/html; charset=utf-8"), *BROWSER_HEADERS]
    assert b"This is a DERP relay" in response.body
    assert b"/debug/" not in response.body
    assert b"switched off" not in response.body


def test_the_home_page_shows_each_option() -> None:
    body = home_page("", derp=False, debug=True).body
    assert b"Relaying is switched off here" in body
    assert b'<a href="/debug/">' in body


def test_a_blank_page_is_empty() -> None:
    response = home_page("blank", derp=False, debug=True)
    assert response.status == 200
    assert response.body == b""
    assert dict(response.headers)["Content-Type"].startswith("text/html")


@pytest.mark.parametrize("url", ["https://example.com/", "http://example.com/a?b=c"])
def test_a_url_as_home_is_a_redirect(url: str) -> None:
    response = home_page(url, derp=True, debug=True)
    assert response.status == 302
    assert dict(response.headers)["Location"] == url
    assert set(BROWSER_HEADERS) <= set(response.headers)
