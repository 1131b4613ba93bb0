from __future__ import annotations

from pyderp.admission.verdict import excerpt


def test_an_excerpt_is_one_short_printable_line() -> None:
    assert excerpt(" no such node\n") == "no such node"
    assert excerpt("a\nb\x1b[0m") == r"a\nb\x1b[0m"
    assert len(excerpt("x" * 200)) == 200
    assert excerpt("x" * 201) == "x" * 199 + "…"
