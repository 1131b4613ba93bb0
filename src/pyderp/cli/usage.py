"""Errors of a command line: as JSON, too, if it asks for that; and flags in Go's spelling."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from pyderp.cli.output import print_error, print_event
from pyderp.cli.process import json_line
from pyderp.cli.relay import goflags
from pyderp.cli.relay.layers import spelling_of

__all__ = ["refuse_single_dashes", "tell_in_json"]


def tell_in_json(text: str, words: Sequence[str]) -> bool:
    """Print the text as JSON if the command line asks for that.

    Returns:
        whether it was printed as a line of a relay's JSON log: then standard error must get no
        other text.
    """
    if "--json" in words:
        print_event("error", {"error": text, "advice": []})
    if words[:1] not in (["relay"], ["derper"]) or not goflags.wants_json_log(words[1:]):
        return False
    print_error(json_line(logging.ERROR, "pyderp.relay", text))
    return True


def refuse_single_dashes(words: Sequence[str]) -> None:
    """Exit 2 if a flag is spelled as Go's programs spell theirs."""
    if words[:1] == ["derper"]:
        return
    # Go's spelling would be taken as a bundle of short flags: -certmode=manual as
    # -c ertmode=manual, a relay without TLS that keeps its key in a file of that name.
    # `-c5` passes: it is the usual way to call ping.
    for word in words:
        name = word.partition("=")[0]
        if len(name) > 2 and name[0] == "-" and name[1:3].isalpha():
            advice = spelling_of(f"-{word}")
        elif len(name) == 2 and "=" in word and name[0] == "-" and name[1].isalpha():
            advice = word.replace("=", " ", 1)
        else:
            continue
        text = f"{word}: write {advice}; long flags have two dashes"
        if words[0] == "relay":
            text += ". `pyderp derper` takes them with one"
        if not tell_in_json(text, words):
            print_error(f"pyderp: {text}")
        sys.exit(2)
