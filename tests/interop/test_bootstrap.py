"""Bootstrap DNS: the answers and counters of derper and pyderp, request by request."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from pyderp.config import BootstrapDNSConfig
from pyderp.server.services.bootstrap import BootstrapDNS
from pyderp.wire.http import Request

from .relays import Kind, each_derper, running

if TYPE_CHECKING:
    from pathlib import Path

# Addresses are names as well, and "a b" is none: so no name server is asked.
GOOD = ("192.0.2.7", "2001:db8::7")
BAD = ("a b",)
SECRET = "192.0.2.9"
QUESTIONS = ("", SECRET, GOOD[0], "random", "random", SECRET, "RANDOM", GOOD[1])


def _ours(published: tuple[str, ...]) -> tuple[list[bytes], dict[str, int]]:
    async def main() -> tuple[list[bytes], dict[str, int]]:
        served = BootstrapDNS(BootstrapDNSConfig(published=published, unpublished=(SECRET,)))
        served.start()
        found = set(GOOD) & set(published)
        known = served._answers
        while not (  # noqa: ASYNC110 (there is no event)
            known._unpublished and known._body and found <= known._published.keys()
        ):
            await asyncio.sleep(0)
        answers = []
        for name in QUESTIONS:
            target = f"/bootstrap-dns?q={name}" if name else "/bootstrap-dns"
            request = Request("GET", target, "1.1", [], remote="127.0.0.1")
            answers.append(served.answer(request).body)
        await served.aclose()
        return answers, asdict(served.counters)

    return asyncio.run(main())


def _get(url: str) -> tuple[bytes, Any]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read(), answer.headers


def _theirs(
    derper: Kind, published: tuple[str, ...], directory: Path
) -> tuple[list[bytes], dict[str, int]]:
    options = [
        f"-bootstrap-dns-names={','.join(published)}",
        f"-unpublished-bootstrap-dns-names={SECRET}",
    ]
    with running(derper, "plain", directory, options=options) as relay:
        base = f"http://127.0.0.1:{relay.port}"
        deadline = time.monotonic() + 10
        # The list of unpublished names is the second.
        while SECRET.encode() not in _get(f"{base}/bootstrap-dns?q={SECRET}")[0]:
            assert time.monotonic() < deadline
        before = _counters(base)
        answers = []
        for name in QUESTIONS:
            body, headers = _get(f"{base}/bootstrap-dns" + (f"?q={name}" if name else ""))
            assert headers["Connection"] == "close"
            assert headers["Content-Type"] == "application/json"
            answers.append(body)
        after = _counters(base)
        after.update((k, v - before[k]) for k, v in after.items() if k != "queried_domains")
        return answers, after


def _counters(base: str) -> dict[str, int]:
    prefix = "counter_bootstrap_dns_"
    found = json.loads(_get(f"{base}/debug/vars")[0])
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


@each_derper
@pytest.mark.parametrize("published", [GOOD + BAD, BAD], ids=["some", "all failed"])
def test_answers_and_counters_are_those_of_derper(
    derper: Kind, tmp_path: Path, published: tuple[str, ...]
) -> None:
    assert _ours(published) == _theirs(derper, published, tmp_path)
