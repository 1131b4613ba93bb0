"""Group `tls`: each check, with a server that makes it fail."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from pyderp import Relay
from pyderp.net.tls import TLSConfig
from pyderp.wire.clienthello import parse_client_hello_untrusted
from tests.net.certificates import META, ROOT, Identity, certificate

from .support import (
    FAIL,
    LOCALHOST,
    OK,
    SKIP,
    SOON,
    WARN,
    Found,
    Handler,
    front,
    look_at,
    no_network,
    resolving,
    run,
    serving,
    tls_files,
    tls_relay,
)

TRUST = TLSConfig(system_roots=False, builtin_roots=False, extra_roots=(ROOT.der,))
GOOD = certificate("localhost", issuer=ROOT)


async def behind(
    identity: Identity, version: ssl.TLSVersion | None = None, **single: object
) -> Found:
    """Findings about a relay behind a proxy with this certificate."""
    async with Relay() as relay:
        handler = front(relay.address[1])
        async with serving(handler, tls=identity.server(version)) as port:
            settings = no_network(tls=TRUST, resolver=LOCALHOST)
            return await look_at(f"https://localhost:{port}", settings, **single)


def pin(identity: Identity) -> str:
    return f"sha256-raw:{hashlib.sha256(identity.der).hexdigest()}"


def test_a_good_certificate_of_an_authority_is_ok() -> None:
    async def main() -> None:
        found = await behind(GOOD)
        for name in ("handshake", "chain", "name", "expiry", "sni", "middlebox"):
            assert found[f"tls.{name}"].result is OK, found[f"tls.{name}"].seen
        assert found["tls.meta"].result is SKIP

    run(main())


def test_a_port_without_tls_fails() -> None:
    async def main() -> None:
        async with Relay() as relay:
            url = f"https://127.0.0.1:{relay.address[1]}"
            found = await look_at(url)
        assert found["tls.handshake"].result is FAIL
        assert found["tls.handshake"].seen.data["reason"] == "no TLS"
        assert found["tls.chain"].result is found["http.upgrade"].result is SKIP

    run(main())


def test_an_untrusted_authority_fails_and_other_checks_run() -> None:
    async def main() -> None:
        own = certificate("localhost")
        found = await behind(own)
        assert found["tls.chain"].result is FAIL
        assert pin(own) in found["tls.chain"].seen.text
        assert found["tls.name"].result is found["tls.expiry"].result is OK
        # A firewall that replaced the certificate would look the same.
        assert found["tls.middlebox"].result is FAIL
        assert found["http.upgrade"].result is found["relay.packet"].result is OK

    run(main())


def test_a_self_signed_certificate_is_no_sign_of_interception(tmp_path: Path) -> None:
    """The relay's meta certificate came with it, which a firewall in between would not have."""

    async def main() -> None:
        files = tls_files(tmp_path)
        async with tls_relay(files) as (_, url):
            found = await look_at(url, no_network(resolver=LOCALHOST, tls=TRUST))
        assert found["tls.chain"].result is FAIL
        assert found["tls.middlebox"].result is OK

    run(main())


def test_a_firewall_that_decrypts_is_named() -> None:
    async def main() -> None:
        box = certificate(common_name="Fortinet CA", authority=True)
        found = await behind(certificate("localhost", issuer=box))
        assert found["tls.middlebox"].result is FAIL
        assert "Fortinet" in found["tls.middlebox"].seen.text

    run(main())


def test_a_certificate_for_another_name_fails() -> None:
    async def main() -> None:
        found = await behind(certificate("other.example", issuer=ROOT))
        assert found["tls.name"].result is FAIL
        assert found["tls.name"].seen.text == "not for 'localhost', but for other.example"
        assert found["tls.middlebox"].result is OK

    run(main())


def test_a_certificate_for_the_cert_name_is_ok() -> None:
    async def main() -> None:
        other = certificate("other.example", issuer=ROOT)
        found = await behind(other, cert_name="other.example")
        assert found["tls.name"].result is found["tls.chain"].result is OK

    run(main())


def test_a_pin_is_compared() -> None:
    async def main() -> None:
        own = certificate("localhost")
        right = await behind(own, cert_name=pin(own))
        assert right["tls.pin"].result is OK
        assert right["tls.chain"].result is SKIP
        wrong = await behind(own, cert_name=pin(GOOD))
        assert wrong["tls.pin"].result is FAIL
        assert wrong["tls.pin"].seen.data["pin"] == pin(own)
        several = await behind(own.followed_by(ROOT.der), cert_name=pin(own))
        assert several["tls.pin"].result is FAIL
        assert "multiple certs" in several["tls.pin"].seen.text

    run(main())


@pytest.mark.parametrize(
    ("since", "until", "result", "text"),
    [
        (-30, 60, OK, "60.0 days left"),
        (-85, 5, WARN, "5.0 days left"),
        (-4, 2, OK, "2.0 days left"),  # of six days, as certificates of addresses have
        (-30, -2, FAIL, "expired 2.0 days ago"),
        (1, 30, FAIL, "valid only from"),
    ],
)
def test_remaining_days_decide_the_result(
    since: int, until: int, result: object, text: str
) -> None:
    async def main() -> None:
        found = await behind(certificate("localhost", issuer=ROOT, since=since, until=until))
        assert found["tls.expiry"].result is result, found["tls.expiry"].seen
        assert text in found["tls.expiry"].seen.text

    run(main())


def test_an_intermediate_certificate_that_ends_first_counts() -> None:
    async def main() -> None:
        between = certificate(
            common_name="Between", issuer=ROOT, authority=True, since=-80, until=3
        )
        leaf = certificate("localhost", issuer=between, until=60)
        found = await behind(leaf.followed_by(between.der))
        assert found["tls.expiry"].result is WARN
        assert "3.0 days left" in found["tls.expiry"].seen.text

    run(main())


def test_insecure_is_a_warning() -> None:
    async def main() -> None:
        found = await behind(certificate("other.example"), insecure=True)
        assert found["tls.chain"].result is WARN
        assert found["tls.name"].result is SKIP

    run(main())


def test_the_meta_certificate_needs_tls_1_3(tmp_path: Path) -> None:
    async def main() -> None:
        files = tls_files(tmp_path)
        async with tls_relay(files) as (relay, url):
            found = await look_at(url, files.settings())
            assert found["tls.meta"].seen.data["key"] == str(relay.public_key)
        older = await behind(GOOD.followed_by(META), ssl.TLSVersion.TLSv1_2)
        assert older["tls.meta"].result is SKIP
        assert "TLS 1.3" in older["tls.meta"].seen.text

    run(main())


def test_a_meta_certificate_of_another_relay_fails() -> None:
    """The proxy has an old copy: fast starts would fail for every client."""

    async def main() -> None:
        found = await behind(GOOD.followed_by(META))
        assert found["http.faststart"].result is FAIL
        assert found["http.identity"].result is FAIL

    run(main())


def cut_if(wanted: Callable[[str], bool], inner: int) -> Handler:
    """A middlebox that reads the server name in the handshake, and resets some connections."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = b""
        while (seen := parse_client_hello_untrusted(hello)) is None:
            more = await reader.read(4096)
            if not more:
                return
            hello += more
        if wanted(seen.server_name):
            return
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", inner)
        other_writer.write(hello)

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                target.write(data)
            target.close()

        try:
            await asyncio.gather(pump(reader, other_writer), pump(other_reader, writer))
        finally:
            other_writer.transport.abort()

    return handle


def test_a_name_that_a_middlebox_blocks_is_found(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            Relay() as relay,
            serving(front(relay.address[1]), tls=GOOD.server()) as inner,
            serving(cut_if(lambda name: name == "localhost", inner)) as port,
        ):
            settings = no_network(tls=TRUST, resolver=LOCALHOST)
            found = await look_at(f"https://localhost:{port}", settings)
        assert found["tls.handshake"].result is FAIL
        assert found["tls.sni"].result is FAIL
        assert "works without a name" in found["tls.sni"].seen.text

    run(main())


def test_without_a_name_the_server_may_refuse_or_send_another_certificate(tmp_path: Path) -> None:
    async def main() -> None:
        files = tls_files(tmp_path)
        async with tls_relay(files) as (_, url):
            found = await look_at(url, files.settings())
        assert found["tls.sni"].seen.text.startswith("refused without a name")
        async with (
            Relay() as relay,
            serving(front(relay.address[1]), tls=GOOD.server()) as inner,
            serving(cut_if(lambda name: not name, inner)) as port,
        ):
            settings = no_network(tls=TRUST, resolver=LOCALHOST)
            cut = await look_at(f"https://localhost:{port}", settings)
        assert cut["tls.sni"].result is OK

    run(main())


def test_another_certificate_at_one_of_several_addresses_is_found() -> None:
    async def main() -> None:
        expired = certificate("localhost", issuer=ROOT, since=-30, until=-1)
        async with Relay() as relay:
            handler = front(relay.address[1])
            async with serving(handler, tls=GOOD.server()) as port:
                server = await asyncio.start_server(
                    lambda reader, writer: None, "127.0.0.9", port, ssl=expired.server()
                )
                async with server:
                    both = resolving(localhost=["127.0.0.1", "127.0.0.9"])
                    settings = no_network(tls=TRUST, resolver=both, timeout=3)
                    found = await look_at(f"https://localhost:{port}", settings)
        failures = {name for name in ("tls.addresses", "tls.handshake", "tls.expiry")
                    if found[name].result is FAIL}  # fmt: skip
        # Which of the two was faster is not certain.
        assert failures & {"tls.addresses", "tls.expiry"}

    run(main())


def test_a_server_that_is_silent_in_the_handshake_fails() -> None:
    async def main() -> None:
        async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            await reader.read()

        async with serving(silent) as port:
            found = await look_at(f"https://127.0.0.1:{port}", no_network(timeout=SOON))
        assert found["tls.handshake"].result is FAIL
        assert "not finished within 0.5 s" in found["tls.handshake"].seen.text

    run(main())


def test_the_clock_of_the_run_is_used() -> None:
    """So a test of a certificate's end does not have to wait."""

    async def main() -> None:
        later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=25)
        async with Relay() as relay:
            handler = front(relay.address[1])
            async with serving(handler, tls=GOOD.server()) as port:
                settings = no_network(tls=TRUST, resolver=LOCALHOST, now=later.timestamp)
                found = await look_at(f"https://localhost:{port}", settings)
        assert found["tls.expiry"].result is WARN

    run(main())
