"""STUN: Go's client against pyderp's server, and both servers compared, datagram by datagram."""

from __future__ import annotations

import random
import re
import socket
import struct
import subprocess
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import pytest

from pyderp.wire.stun import pack_request, parse_response_untrusted

from .peers import need
from .ports import free_port
from .relays import DERPERS, OLDER, Kind
from .stunserver import our_stun_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_TRIES = 3
TX = bytes(range(12))
REQUEST = pack_request(TX)
_END = pack_request(b"that is all!")

Answers: TypeAlias = list[bytes]


@contextmanager
def theirs(kind: Kind, host: str, directory: Path) -> Iterator[int]:
    """Go's server of a version; yields its STUN port."""
    log = directory / "derper.log"
    for _ in range(_TRIES):
        # It cannot pick ports, and logs nothing about a STUN port that is taken.
        port = free_port("::", socket.SOCK_DGRAM)
        args = [str(need(kind)), "-c", str(directory / "derper.json"), "-http-port=-1"]
        args += ["-a", f"{host}:{free_port('::')}", f"-stun-port={port}"]
        with log.open("ab") as output:
            process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            if _answers(process, port):
                yield port
                return
        finally:
            process.kill()
            process.wait()
    raise AssertionError(f"{kind} serves no STUN\n{log.read_text()[-2000:]}")


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.1)
        sock.connect(("127.0.0.1", port))
        for _ in range(100):
            try:
                sock.send(REQUEST)
                sock.recv(2048)
            except TimeoutError:
                continue
            except ConnectionRefusedError:
                # No server listens yet; wait as long as for an answer.
                try:
                    process.wait(0.1)
                except subprocess.TimeoutExpired:
                    continue
                return False
            return True
    return False


@dataclass
class Pair:
    """Both servers, listening alike."""

    kind: Kind
    """The version of derper."""
    derper: int
    ours: int

    def ask(self, datagrams: list[bytes], host: str = "127.0.0.1") -> tuple[Answers, Answers]:
        """The answers of each to the same datagrams from the same address."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        answers: list[Answers] = []
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            for port in (self.derper, self.ours):
                answers.append([])
                for datagram in datagrams:
                    # The servers answer in turn: all answers are there before the end is.
                    sock.sendto(datagram, (host, port))
                    sock.sendto(_END, (host, port))
                    while (answer := sock.recv(2048))[8:20] != _END[8:20]:
                        answers[-1].append(answer)
        return answers[0], answers[1]


@contextmanager
def both(kind: Kind, host: str, directory: Path) -> Iterator[Pair]:
    with theirs(kind, host, directory) as derper, our_stun_server(host) as own:
        yield Pair(kind, derper, own)


@pytest.fixture(scope="module", params=DERPERS)
def bound(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """Both on 127.0.0.1."""
    with both(request.param, "127.0.0.1", tmp_path_factory.mktemp("stun")) as pair:
        yield pair


@pytest.fixture(scope="module", params=DERPERS)
def wildcard(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """Both on all addresses of both families."""
    with both(request.param, "", tmp_path_factory.mktemp("stun-all")) as pair:
        yield pair


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_stunc_reads_the_answer(host: str) -> None:
    stunc = need("stunc")
    with our_stun_server("") as port:
        done = subprocess.run(
            [str(stunc), host, str(port)],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    # An IPv4 client gets its address as IPv4, without ::ffff: in front.
    shown = re.search(r"stun addr:\s*\[?([0-9a-f.:]+?)\]?:\d+$", done.stderr, re.MULTILINE)
    assert shown, done.stderr
    assert shown[1] == host


def test_both_answer_with_the_same_bytes(bound: Pair) -> None:
    derper, own = bound.ask([REQUEST])
    assert derper == own
    assert [len(answer) for answer in own] == [32]


def test_both_answer_with_the_same_bytes_over_ipv6(wildcard: Pair) -> None:
    derper, own = wildcard.ask([REQUEST], "::1")
    assert derper == own
    assert [len(answer) for answer in own] == [44]


def test_a_socket_on_all_addresses_reports_ipv4_addresses_as_ipv4(wildcard: Pair) -> None:
    """derper does since v1.104; before, it sends it as an IPv6 address."""
    derper, own = wildcard.ask([REQUEST])
    assert [len(answer) for answer in derper] == [44 if wildcard.kind == OLDER else 32]
    assert [len(answer) for answer in own] == [32]
    assert parse_response_untrusted(derper[0]) == parse_response_untrusted(own[0])


def _fingerprinted(datagram: bytes) -> bytes:
    return datagram + struct.pack(">HHI", 0x8028, 4, zlib.crc32(datagram) ^ 0x5354554E)


def _attribute(random_: random.Random) -> bytes:
    kind = random_.choice([0x8022, 0x8028, 0x0020, 0x7777])
    value = random_.choice([b"tailnode", b"tailnode\0", b"", b"abc", bytes(4)])
    return struct.pack(">HH", kind, len(value)) + value + bytes(-len(value) % 4)


def _variant(random_: random.Random) -> bytes:
    """A request that may be good, damaged, or unusual."""
    attributes = [REQUEST[20:32]] * random_.randint(0, 2)
    attributes += [_attribute(random_) for _ in range(random_.randint(0, 3))]
    random_.shuffle(attributes)
    length = random_.choice([0, 20, sum(map(len, attributes)) + 8]).to_bytes(2)
    kind = random_.choice([b"\x00\x01"] * 9 + [b"\x01\x01"])
    datagram = _fingerprinted(kind + length + REQUEST[4:20] + b"".join(attributes))
    match random_.randint(0, 4):
        case 0:
            return datagram[: random_.randint(0, len(datagram))]
        case 1:
            at = random_.randrange(len(datagram))
            return datagram[:at] + random_.randbytes(1) + datagram[at + 1 :]
        case 2:
            return datagram + random_.randbytes(random_.randint(1, 8))
    return datagram


def test_both_answer_the_same_requests(bound: Pair) -> None:
    random_ = random.Random(8489)  # the same each time
    datagrams = [_variant(random_) for _ in range(600)]
    derper, own = bound.ask(datagrams)
    assert derper == own
    assert 50 < len(own) < 400
