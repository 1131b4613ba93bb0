"""Certificates from a real ACME server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from pyderp.certs.acme import ACMECertificates
from pyderp.certs.schedule import Pace
from pyderp.config import ACMETLS
from pyderp.keys import NodePrivate
from tests.certs.serve import connected, serving
from tests.conftest import Run

from .pebble import Pebble, free_port, running

NAME = "derp.example.com"
SERVER = NodePrivate.generate().public
QUICK = Pace(first_retry=0.2, longest_retry=1.0, fresh=0.5, advice_delay=0.1, save_every=0.2)


def settings(pebble: Pebble, directory: Path, **more: Any) -> ACMETLS:
    return ACMETLS(
        **{
            "certdir": directory / "certs",
            "hostname": NAME,
            "directory": pebble.url,
            "ca_file": pebble.ca_file,
            "http_port": pebble.http_port,
            **more,
        }
    )


def source_of(tls: ACMETLS, pace: Pace = QUICK) -> ACMECertificates:
    return ACMECertificates(tls, SERVER, pace=pace, address_pace=pace)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("http_port", ["given", None])
def test_issuance(run: Run, tmp_path: Path, http_port: str | None) -> None:
    async def main() -> None:
        with running(tmp_path, http_port=free_port(), tls_port=free_port()) as pebble:
            more = {} if http_port else {"http_port": None}
            source = source_of(settings(pebble, tmp_path, **more))
            async with serving(
                source, http_port=pebble.http_port, tls_port=pebble.tls_port
            ) as served:
                await until(source.certificates)
                async with connected(served.tls_port, NAME) as (_, _, leaf):
                    assert b"derp.example.com" in leaf

    run(main())
