"""Reads policy files of a tailnet: JSON with comments and trailing commas (HuJSON), with a map."""

from __future__ import annotations

import re
from typing import Final

from pyderp import gojson
from pyderp.errors import InvalidMap
from pyderp.extras import needs

__all__ = ["map_in_policy", "parse_hujson"]

_SNIPPET: Final = re.compile(r'(?:\s|//[^\n]*+\n|/\*(?:[^*]|\*(?!/))*+\*/)*+"')
"""The start of a text that is a single member, as `pyderp relay --show-map=policy` prints it."""
_TRAILING: Final = re.compile(r",\s*\Z")
_OF_POLICY: Final = gojson.same_name("derpMap")


def parse_hujson(text: str) -> object:
    """Parse JSON that may have `//` and `/* */` comments and a comma after the last item.

    Objects are `gojson.Object`, which keep repeated names. A single member without braces around
    it is read as the object that has this member.

    Raises:
        InvalidMap: the text is not JSON; the error has line and column of the first mistake.
        MissingExtra: jsonyx is not installed.
    """
    with needs("cli", "maps with comments or trailing commas"):
        import jsonyx

    shift = 0
    if _SNIPPET.match(text) is not None:
        text, shift = "{" + _TRAILING.sub("", text) + "\n}", 1
    # Go accepts halves of surrogate pairs, too.
    allowed = jsonyx.allow.COMMENTS | jsonyx.allow.TRAILING_COMMA | jsonyx.allow.SURROGATES
    try:
        document: object = jsonyx.loads(text, allow=allowed, hooks={"object": gojson.Object})
    except jsonyx.JSONSyntaxError as e:
        column = e.colno - (shift if e.lineno == 1 else 0)
        where = f"line {e.lineno}, column {column}"
        first, space, rest = e.msg.partition(" ")
        # Only a word such as "Expecting": names such as NaN keep their case.
        first = first.lower() if first[1:].islower() else first
        raise InvalidMap(f"{where}: {first}{space}{rest}") from None
    except ValueError:
        raise InvalidMap("an integer has thousands of digits") from None
    except RecursionError:
        raise InvalidMap("nested too deeply") from None
    return document


def map_in_policy(policy: object) -> object | None:
    """Return the member `derpMap` of a policy, or `None` if it has none.

    As in Go, the name may be in any case, and of several such members the last one counts.
    """
    found = None
    for name, value in policy.pairs if isinstance(policy, gojson.Object) else ():
        if gojson.same_name(name) == _OF_POLICY:
            found = value
    return found
