"""What the built pages have: all modules that are public, the menu, and nothing from elsewhere."""

from __future__ import annotations

import importlib
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from scripts import check_docs

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]

PUBLIC = ("pyderp", "pyderp.blocking", "pyderp.testing", "pyderp.wire", "pyderp.wsconn")
"""Modules of which each name in `__all__` is public."""


def foreign_assets(text: str) -> list[str]:
    """The addresses from which a page would load what it shows or runs."""
    found: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag != "a":
                loaded = [v or "" for name, v in attrs if name in ("src", "srcset", "href", "data")]
                found.extend(each for each in loaded if re.match(r"(?i)\s*(https?:)?//", each))

    Parser().feed(text)
    return found


def documented(site: Path) -> set[str]:
    """The Python names that have a description, from the inventory of Sphinx."""
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(inventory).decode().splitlines()
    return {line.split()[0] for line in lines if " py:" in line}


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://cdn.example.com/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example.com/x.css">',
        '<IMG SRC="HTTP://example.com/x.png">',
    ],
)
def test_what_is_loaded_from_elsewhere_is_found(page: str) -> None:
    """The check below finds each way to load something from another host."""
    assert len(foreign_assets(page)) == 1
    assert not foreign_assets('<a href="https://example.com">x</a><script src="x.js"></script>')


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    """No script, style sheet, font or picture comes from another host."""
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    assert {p.name: f for p in pages if (f := foreign_assets(p.read_text()))} == {}
    outside = re.compile(r"@import|url\(\s*['\"]?(?:https?:)?//", re.IGNORECASE)
    assert [p for p in site.rglob("*.css") if outside.search(p.read_text())] == []


def test_every_page_of_docs_is_built(site: Path) -> None:
    """Each Markdown page below docs/ is built, and is in the menu of the start page."""
    start = (site / "docs/index.html").read_text()
    for page in (check_docs.ROOT / "docs").rglob("*.md"):
        built = page.relative_to(check_docs.ROOT / "docs").with_suffix(".html")
        assert (site / "docs" / built).is_file()
        assert f'href="{built}"' in start or built.name == "index.html"


def test_the_address_of_the_site_leads_to_the_start_page(site: Path) -> None:
    """The first page of the folder leads to docs/index.html."""
    assert 'content="0; url=docs/index.html"' in (site / "index.html").read_text()


def test_pages_have_no_links_to_their_source(site: Path) -> None:
    """The Markdown is in the repository; the site has no second copy of it."""
    assert list(site.glob("_sources/*")) == []
    assert "_sources/" not in (site / "docs/index.html").read_text()


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_described(site: Path, module: str) -> None:
    """The pages of the Python API have what a public module exports."""
    names = set(importlib.import_module(module).__all__)
    known = documented(site)
    missing = {n for n in names if not {f"{module}.{n}", f"pyderp.{n}"} & known}
    assert missing == set()


@pytest.mark.parametrize(
    ("page", "name"), [("client", "pyderp.Client"), ("blocking", "pyderp.blocking.Client")]
)
def test_constructors_that_callers_do_not_use_are_not_shown(
    site: Path, page: str, name: str
) -> None:
    """The page of a client has its name without the arguments that its methods pass."""
    text = (site / "docs" / "reference" / "api" / f"{page}.html").read_text()
    _, _, rest = text.partition(f'id="{name}"')
    signature, _, rest = rest.partition("</dt>")
    assert ">Client<" in signature
    assert "sig-param" not in signature
    assert "sig-param" in rest  # those of its methods are shown
