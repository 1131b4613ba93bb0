"""Recognises a text or document that is not a DERP map in JSON, so that errors can name it."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from typing import Final

from pyderp import gojson
from pyderp.errors import InvalidMap

__all__ = [
    "BYTE_ORDER_MARK",
    "NO_REGIONS",
    "has_mark",
    "is_hujson",
    "is_map",
    "is_policy",
    "read_document",
]
__all__ += ["refuse_other"]

BYTE_ORDER_MARK: Final = (
    "it begins with a byte order mark, which JSON must not have: save it as UTF-8 without one"
)
NO_REGIONS: Final = "it has no Regions"
_MARKS: Final = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_OF_POLICY: Final = frozenset({"derpmap", "acls", "grants", "tagowners", "ssh", "hosts", "groups"})
_OF_MAP: Final = frozenset({"regions", "homeparams", "omitdefaultregions"})
_OF_REGION: Final = frozenset({"regionid", "regioncode", "nodes"})
_POLICY: Final = "this is a policy file of Tailscale"
_WANTED: Final = (
    'want a DERP map in JSON, {"Regions": …}; pyderp.mapio.sources.load_map reads other forms'
)


def read_document(text: str | bytes, wanted: str = _WANTED) -> object:
    """Parse JSON; refuse a document whose top-level names show that it is not a DERP map.

    Args:
        wanted: the end of the error's text: what the text should have been.

    Raises:
        InvalidMap: the text is not JSON, or not a map. The error names a form that it recognises.
    """
    if has_mark(text):
        raise InvalidMap(BYTE_ORDER_MARK)
    try:
        document = gojson.parse(text)
    except ValueError as e:
        what = _other_form(text) or f"not JSON: {gojson.mistake(e)}"
        raise InvalidMap(f"{what}: {wanted}") from None
    refuse_other(document, wanted)
    return document


def refuse_other(document: object, wanted: str = _WANTED) -> None:
    """Refuse an object without the members of a map; an empty object passes, as an empty update.

    Raises:
        InvalidMap: as from `read_document`.
    """
    names = _names(document)
    if not names or (is_map(document) and "derpmap" not in names):
        return
    if is_policy(document):
        what = _POLICY
    elif "hostname" in names:
        what = f"{NO_REGIONS}, this is one node of a region"
    elif names & _OF_REGION:
        what = f"{NO_REGIONS}, this is one region"
    else:
        what = NO_REGIONS
    raise InvalidMap(f"{what}: {wanted}")


def has_mark(text: str | bytes) -> bool:
    """Return whether a text begins with a byte order mark, of UTF-8 or UTF-16."""
    return text.startswith(_MARKS) if isinstance(text, bytes) else text.startswith("\ufeff")


def is_hujson(text: str) -> bool:
    """Return whether a text seems to have comments or trailing commas."""
    return re.search(r"(^|[\s,{\[])/[/*]|,\s*[}\]]", text) is not None


def is_map(document: object) -> bool:
    """Return whether a document has a member that maps have."""
    return not _OF_MAP.isdisjoint(_names(document))


def is_policy(document: object) -> bool:
    """Return whether a document has a member that policy files have."""
    return not _OF_POLICY.isdisjoint(_names(document))


def _names(document: object) -> frozenset[str]:
    if not isinstance(document, Mapping):
        return frozenset()
    return frozenset(gojson.same_name(name) for name in document if isinstance(name, str))


def _other_form(source: str | bytes) -> str | None:
    """Return what a text is that is not JSON; `None` if it is not recognised."""
    text = source.decode("utf-8", "replace") if isinstance(source, bytes) else source
    start = text.lstrip()
    if not start:
        return "it is empty"
    if start.startswith("<"):
        return "this is a web page or XML"
    if re.search(r'"(derpMap|acls|grants)"', text):
        return f"{_POLICY}, with comments or trailing commas (HuJSON)"
    if start.startswith(("{", "//", "/*")):
        if is_hujson(text):
            return "it has comments or trailing commas (HuJSON), which JSON does not allow"
    elif re.search(r"(?m)^\s*regions\s*:", text):
        return "this is YAML, as headscale reads it"
    return None
