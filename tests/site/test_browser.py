"""The built pages in Chromium: on a phone and a desktop, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from .browser import Browser

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]

SIZES = {"phone": (390, 844), "desktop": (1440, 900)}
SCHEMES = ("light", "dark")
LOOKS = [(size, scheme) for size in SIZES for scheme in SCHEMES]
TOO_WIDE = """(() => {
  const found = [];
  for (let box = document.querySelector("article"); box; box = box.parentElement)
    if (box.scrollWidth > box.clientWidth && getComputedStyle(box).overflowX != "visible")
      found.push(`${box.className || box.localName} ${box.scrollWidth}`);
  return found;
})()"""
"""The article and what it is in, if a reader would have to scroll it sideways, or could not."""
LOOKED_AT = (
    "docs/index.html",
    "docs/howto/certificates.html",
    "docs/reference/cli.html",
    "docs/reference/api/client.html",
)


def overflow(browser: Browser, looks: Sequence[tuple[str, str]] = LOOKS) -> list[str]:
    """The sizes and schemes in which a part of the page is wider than its place."""
    found = []
    for size, scheme in looks:
        browser.show(*SIZES[size], scheme)
        width = browser.evaluate("document.scrollingElement.scrollWidth")
        parts = browser.evaluate(TOO_WIDE)
        if width > SIZES[size][0] or parts:
            found.append(f"{size}, {scheme}: {width} {parts}")
    return found


def test_no_page_is_wider_than_its_window(browser: Browser, site: Path, url: str) -> None:
    """Wide tables and long code scroll within themselves, or break."""
    wide = {}
    for page in sorted(site.rglob("*.html")):
        name = page.relative_to(site).as_posix()
        if name != "index.html":  # leads to another page
            browser.open(f"{url}/{name}")
            looks = LOOKS if name in LOOKED_AT else [(size, "light") for size in SIZES]
            if found := overflow(browser, looks):
                wide[name] = found
    assert wide == {}


def test_what_is_too_wide_is_found(browser: Browser, url: str) -> None:
    """The check above finds a page that does not fit on a phone."""
    browser.open(f"{url}/docs/index.html")
    browser.evaluate("document.querySelector('article').style.width = '500px'")
    assert [each.split(":")[0] for each in overflow(browser)] == ["phone, light", "phone, dark"]


BROKEN_FLAGS = """[...document.querySelectorAll("article code .pre")]
  .filter(each => each.textContent.startsWith("--") && each.getClientRects().length > 1)
  .map(each => each.textContent)"""
"""Flags that stand in two lines."""
CUT_BLOCKS = """[...document.querySelectorAll("article .highlight pre")]
  .filter(each => each.scrollWidth > each.clientWidth).map(each => each.textContent)"""
"""Blocks of code that a reader has to scroll sideways."""


def test_a_line_does_not_end_within_a_flag(browser: Browser, url: str) -> None:
    """Not on a phone either, where code with several flags breaks between them."""
    browser.open(f"{url}/docs/howto/certificates.html")
    browser.show(*SIZES["phone"], "light")
    assert browser.evaluate(BROKEN_FLAGS) == []
    browser.evaluate(
        """document.querySelectorAll("article code").forEach(each => {
             each.classList.remove("short", "words");
             each.style.overflowWrap = "anywhere";
           })"""
    )
    assert browser.evaluate(BROKEN_FLAGS) != []


def test_long_lines_of_output_wrap(browser: Browser, url: str) -> None:
    """The output of `pyderp doctor` is read without scrolling."""
    browser.open(f"{url}/docs/howto/is-it-working.html")
    browser.show(*SIZES["desktop"], "light")
    assert browser.evaluate(CUT_BLOCKS) == []


@pytest.mark.parametrize("page", LOOKED_AT)
def test_pages_show_something(browser: Browser, url: str, page: str, tmp_path: Path) -> None:
    """A page has text on a background that is light or dark, as its reader prefers."""
    browser.open(f"{url}/{page}")
    for size, scheme in LOOKS:
        browser.show(*SIZES[size], scheme)
        picture = browser.screenshot()
        (tmp_path / f"{size}-{scheme}.png").write_bytes(picture.png)
        assert picture.drawn > 0.02, f"{size}, {scheme}: blank; see {tmp_path}"
        assert (picture.brightness > 0.7) == (scheme == "light")
        assert (picture.brightness < 0.3) == (scheme == "dark")


def test_an_empty_page_shows_nothing(browser: Browser) -> None:
    """The check above would find it."""
    browser.open("about:blank")
    assert browser.screenshot().drawn == 0


def test_pages_ask_no_other_host(browser: Browser, url: str) -> None:
    """All that the browser loads for a page comes from the site."""
    for page in LOOKED_AT:
        browser.open(f"{url}/{page}")
        loaded = browser.evaluate("performance.getEntriesByType('resource').map(e => e.name)")
        assert loaded
        assert [each for each in loaded if not each.startswith(url)] == []


def test_the_search_finds_pages(browser: Browser, url: str) -> None:
    """A word leads to the pages that have it."""
    browser.open(f"{url}/search.html?q=mesh")
    found = browser.evaluate(
        """new Promise(resolve => {
             const look = () => {
               const links = [...document.querySelectorAll("#search-results li a")];
               if (links.some(each => each.href.includes("howto/mesh.html"))) resolve("found");
               else setTimeout(look, 20);
             };
             look();
           })"""
    )
    assert found == "found"
