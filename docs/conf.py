"""The site of the documentation: how Sphinx builds the Markdown pages of this repository.

`make site` reads them where they are, so that their relative links work in the repository as on
the site, also those to pages and files beside `docs/`. The menu is `MENU` below: the start page
stays free of directives, which a forge would show as code.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from docutils import nodes
from sphinx.ext.napoleon import Config, GoogleDocstring

import pyderp

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT: Final = Path(__file__).resolve().parents[1]

# The pages

project = "pyderp"
version = release = pyderp.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = ["docs/**", "*.md", "*/README.md", "bench/*.md"]
# Sphinx does not look into these folders, which have thousands of files.
exclude_patterns = [".*", "build", "dist", "src", "tests", "fast/target", "fuzz/corpus"]
myst_heading_anchors = 6
highlight_language = "text"
# Two dashes of a flag are no dash of a sentence.
smartquotes = False

MENU: Final[dict[str, list[str]]] = {
    "Start": ["docs/tutorial", "docs/howto/install", "docs/howto/pipx"],
    "Run a relay": [
        "docs/operate",
        "docs/howto/start-a-relay",
        "docs/howto/replace-derper",
        "docs/howto/tailscale",
        "docs/howto/headscale",
        "docs/howto/maps",
        "docs/howto/settings",
        "docs/howto/certificates",
        "docs/howto/admission",
        "docs/howto/limits",
        "docs/howto/mesh",
        "docs/howto/bootstrap-dns",
    ],
    "Run it as a service": [
        "docs/howto/systemd",
        "docs/howto/containers",
        "docs/howto/behind-a-proxy",
        "docs/howto/fail2ban",
        "docs/howto/memory",
        "docs/howto/native",
        "docs/howto/log-rotation",
        "docs/howto/stop-and-restart",
        "docs/howto/upgrade",
        "docs/howto/backup",
    ],
    "Check and watch": [
        "docs/howto/is-it-working",
        "docs/howto/netcheck",
        "docs/howto/monitoring",
        "docs/howto/troubleshooting",
    ],
    "Write a program": [
        "docs/howto/client",
        "docs/howto/talk-to-a-peer",
        "docs/howto/in-tests",
        "docs/howto/websocket-as-stream",
        "docs/howto/embed-wire",
        "docs/howto/*",
    ],
    "Reference": [
        "docs/reference/cli",
        "docs/reference/metrics",
        "docs/reference/log-and-counters",
        "docs/reference/limits",
        "docs/reference/wire",
        "docs/reference/sealed",
        "docs/reference/speed",
        "docs/reference/*",
    ],
    "Python API": [
        "docs/reference/api/index",
        "docs/reference/api/client",
        "docs/reference/api/blocking",
        "docs/reference/api/messages",
        "docs/reference/api/keys",
        "docs/reference/api/errors",
        "docs/reference/api/network",
        "docs/reference/api/relay",
        "docs/reference/api/testing",
        "docs/reference/api/maps",
        "docs/reference/api/wsconn",
        "docs/reference/api/wire",
        "docs/reference/api/*",
    ],
    "Explanation": ["docs/architecture", "docs/differences", "docs/security", "docs/*"],
    "Project": ["README", "CONTRIBUTING", "changelog/README", "*", "*/README", "bench/*"],
}
"""Group → its pages. A pattern stands for what it matches and is not named elsewhere."""


def menu() -> str:
    """Return the table of contents for each group, as MyST directives."""
    named = {page for pages in MENU.values() for page in pages} | {root_doc}
    text = ""
    for caption, entries in MENU.items():
        pages: list[str] = []
        for entry in entries:
            pages += _others(entry, named) if "*" in entry else [entry]
            named.update(pages)
        lines = "\n".join(f"/{page}" for page in pages)
        text += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n"
    return text


def _others(pattern: str, named: set[str]) -> list[str]:
    found = (path.relative_to(ROOT) for path in ROOT.glob(f"{pattern}.md"))
    pages = [p.with_suffix("").as_posix() for p in found if not p.parts[0].startswith(".")]
    return sorted(set(pages) - named)


def _add_menu(app: Sphinx, page: str, source: list[str]) -> None:
    if page == root_doc:
        source[0] += menu()


# The Python API, from docstrings

default_role = "py:obj"
add_module_names = False
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_type_aliases = {"JSONValue": "JSONValue"}
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
NOT_CALLED: Final = {
    f"{package}.{name}"
    for package in ("pyderp", "pyderp.blocking")
    for name in ("Client", "SealedPeer")
}
"""Classes that methods make, not callers: their pages show no arguments of the constructor."""

_SPAN: Final = re.compile(r"(?<![:`\w])`([^`]+)`(?![`_])")


def _read_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Turn a docstring in Google's style, with code in single backticks, into reStructuredText."""

    def mark(span: re.Match[str]) -> str:
        # A Python name stays a reference, which Sphinx resolves if it can; other code does not.
        words = span[1].split(".")
        return span[0] if all(word.isidentifier() for word in words) else f"`{span[0]}`"

    text = _SPAN.sub(mark, "\n".join(lines))
    if what == "module":  # an indented block is code
        text = re.sub(r"\n\n(?=    \S)", "\n\n::\n\n", text)
    if what == "data" and obj.__doc__ == type(obj).__doc__:
        text = ""  # the docstring is that of the type
    # Not as the extension napoleon does it, which takes the words before a colon in the docstring
    # of an attribute for its type.
    if what not in ("attribute", "data"):
        text = str(GoogleDocstring(text, Config(), what="function", name=name, obj=obj))
    lines[:] = text.split("\n")


def _read_signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str, returns: str
) -> tuple[str, str] | None:
    """Make Python of what stands in a signature for a type's alias or a default that is a call."""
    if name in NOT_CALLED:
        return "", ""
    if not signature:
        return None
    signature = re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", signature)
    return re.sub(r"<factory>|<class '[\w.]+'>", "...", signature), returns


# How it looks

html_theme = "furo"
html_title = "pyderp"
html_static_path = ["_static"]
html_css_files = ["site.css"]
# The start page is docs/index.html; this one leads there.
html_extra_path = ["_extra"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
# The search finds names, too.
html_use_index = False
html_domain_indices = False
OPTIONS: Final = "Flag Value Default Environment Meaning"
"""The head of a table of flags, which `_static/site.css` shows as a list."""
SHORT: Final = 30
"""Characters of code that fit in a line of a phone, and are not broken at a hyphen."""
LONG: Final = 97
"""Characters of a line that fit on a desktop. A block with a longer one is wrapped; drawings have
none."""


def _mark_nodes(app: Sphinx, page: nodes.document) -> None:
    for head in page.findall(nodes.thead):
        if " ".join(entry.astext() for entry in head.findall(nodes.entry)) == OPTIONS:
            head.parent.parent["classes"].append("options")
    for text in list(page.findall(nodes.Text)):
        if text == " -- ":  # Sphinx's own, between a parameter and its description
            text.parent.replace(text, nodes.Text(" – "))
    for code in page.findall(nodes.literal):
        if len(code.astext()) <= SHORT:
            code["classes"].append("short")
        elif all(len(word) <= SHORT for word in code.astext().split()):
            code["classes"].append("words")  # several flags: break between them only
    for block in page.findall(nodes.literal_block):
        plain = block.get("language") in ("text", "console", "sh", "json")
        if plain and max(map(len, block.astext().splitlines()), default=0) > LONG:
            block["classes"].append("wrapped")


def setup(app: Sphinx) -> None:
    """Change what Sphinx reads: the start page, docstrings, and nodes that the style names."""
    app.connect("doctree-read", _mark_nodes)
    app.connect("source-read", _add_menu)
    app.connect("autodoc-process-docstring", _read_docstring)
    app.connect("autodoc-process-signature", _read_signature)
