"""Write the seed corpora: `python -m fuzz.make_corpus`. The files are always the same.

If the protocol has published test vectors, the seeds are these vectors.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from fuzz.targets import CORPUS, NAMES
from fuzz.targets._input import PRIVATE_CLIENT, PRIVATE_SERVER
from fuzz.targets.relay_frames import KEYS
from pyderp.keys import NodePrivate, NodePublic
from pyderp.wire import frames
from pyderp.wire.frames import pack_frame
from pyderp.wire.stun import pack_request, pack_response
from pyderp.wire.upgrade import switching_protocols, upgrade_request

__all__ = ["main", "make"]

Seeds: TypeAlias = Mapping[str, bytes]

_CLIENT: Final = NodePrivate(PRIVATE_CLIENT)
_SERVER: Final = NodePrivate(PRIVATE_SERVER)
_K1, _K2, _K3, _MESH, _SELF = (KEYS[i] for i in (0, 1, 2, 4, 5))
_AT_ONCE: Final = bytes(4)
_BYTE_BY_BYTE: Final = b"\1\1\1\1"
_UNEVEN: Final = bytes((3, 5, 40, 1))
_DISCO: Final = frames.DISCO_MAGIC + bytes(frames.DISCO_MIN_LEN)

_CLIENT_INFO: Final = bytes.fromhex(
    "020000006807a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c"
    "a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7"
    "6cffec82736cd2129b825def91dab6667dfbbfe74feceee2842379acdf7acb5b"
    "b387740e0e27b6d3d9ab25945f3ffc3f"
)
_CLIENT_INFO_ALL_FIELDS: Final = bytes.fromhex(
    "02000000d507a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c"
    "a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7"
    "865c6e891ec2e9735411e343a02796977dfba4e74ef7cce8932379bcc369ba09e9f321526677b9d6"
    "c9ed7a861d7bab711bd6a83cb7231bd45c117fbb135982a44103d0ed518925284af32a657ab825b6"
    "639f26e89aa1e4c67b1b1beb30a689c059579081732e005210bab64122eca1514a645ea3472b38ba"
    "8e88ddcb68d60ea4592bb39c94323901e690ee9e7b396c1ef8c977bfc3e801c7ee206f6927"
)
_SERVER_INFO: Final = bytes.fromhex(
    "0300000035c0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7"
    "19e6b9c203327451f267124ec8d07d84d62c7c1b97f1bb18cbbfe8b602"
)
_SERVER_INFO_RATES: Final = bytes.fromhex(
    "0300000073c0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7"
    "c34d7fdcb8e4ff5cbd71f6de313e30ebd62c7c1b97f1bb18cbbfe8b65361cf2f"
    "7ee00473c3016e6788c042bb6a5a63dd1596a47f5f48762acd284f7ddd54c08f"
    "74d580adbf53d08d7669307a7d0138c4d748cdef1348ef314801de"
)
_CLIENT_HELLO: Final = base64.b64decode(
    "FgMBAgABAAH8AwMcm4US840qT9lxK3jKGtwPfXkOuBd340sXXPdlSoflnSAGhuuGKIa/j8gdpa97OXrPsNP9Ydn5"
    "U4bNf8wz9qYTOgAkEwITAxMBwCzAMMArwC/MqcyowCTAKMAjwCcAnwCeAGsAZwD/AQABjwAAABUAEwAAEGRlcnAu"
    "ZXhhbXBsZS5jb20ACwAEAwABAgAKABYAFAAdABcAHgAZABgBAAEBAQIBAwEEACMAAAAQAA0ACwphY21lLXRscy8x"
    "ABYAAAAXAAAADQAqACgEAwUDBgMIBwgICAkICggLCAQIBQgGBAEFAQYBAwMDAQMCBAIFAgYCACsABQQDBAMDAC0A"
    "AgEBADMAJgAkAB0AINTsoSQFwmasP5fMZNAsr8KlJlb4ZytmxG04bsPT9XAlABUAzAAAAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=="
)
_META_CERTIFICATE: Final = base64.b64decode(
    "MIIBYzCCARWgAwIBAgIBAjAFBgMrZXAwUjFQME4GA1UEAxNHZGVycGtleTY0YjEwMWIxZDBiZTVhODcwNGJkMDc4"
    "Zjk4OTUwMDFmYzAzZThlOWY5NTIyZjE4OGRkMTI4ZDk4NDZkNDg0NjYwHhcNMjYxMDIyMjMyMTI0WhcNMjYxMjIx"
    "MjMyMTI0WjBSMVAwTgYDVQQDE0dkZXJwa2V5NjRiMTAxYjFkMGJlNWE4NzA0YmQwNzhmOTg5NTAwMWZjMDNlOGU5"
    "Zjk1MjJmMTg4ZGQxMjhkOTg0NmQ0ODQ2NjAqMAUGAytlcAMhAAOhB7/zzhC+HXDdGOdLwJln5NYwm6UNXx3chmQS"
    "VTG4oxAwDjAMBgNVHRMBAf8EAjAAMAUGAytlcANBAIgPomzUWUbaF7EJgehaeojxxhwgkc44ChaWC96U17/8jDLM"
    "C/tnr9HXO+V+yfC8vQ0QRKS/LS0qjs/faI8MGAs="
)

# Steps of `fuzz.targets.relay_frames`.


def _feed(index: int, data: bytes) -> bytes:
    return bytes((index,)) + len(data).to_bytes(2) + data


def _fill(index: int, size: int) -> bytes:
    return bytes((16 << 3 | index,)) + size.to_bytes(2)


def _repeat(index: int, times: int, data: bytes) -> bytes:
    return bytes((18 << 3 | index, times)) + len(data).to_bytes(2) + data


def _step(what: int, index: int = 0, *number: int) -> bytes:
    return bytes((what << 3 | index, *number))


_PAUSE, _RESUME, _BLOCK, _LEAVE, _JOIN, _KEEP_ALIVE, _WAIT, _CLAIM, _UNCLAIM, _FLUSH = range(20, 30)


def _to(key: bytes, packet: bytes = b"hello") -> bytes:
    return frames.pack_send_packet(NodePublic(key), packet)


def _forward(src: bytes, dst: bytes, packet: bytes = b"hello") -> bytes:
    return frames.pack_forward_packet(NodePublic(src), NodePublic(dst), packet)


def _close(key: bytes) -> bytes:
    return frames.pack_close_peer(NodePublic(key))


_PING: Final = frames.pack_ping(bytes(range(1, 9)))
_WATCH: Final = frames.pack_watch_conns()
_UNKNOWN: Final = pack_frame(0xFF, b"zzz")


def _relay_frames() -> Seeds:
    absent = b"\x77" * 32
    large = _to(_K2, bytes(60_000))[: 5 + 32]
    every = (
        _to(_K2)
        + _to(_K2, b"")
        + frames.pack_note_preferred(True)
        + frames.pack_note_preferred(False)
        + _PING
        + frames.pack_pong(bytes(8))
        + _UNKNOWN
        + _to(_K2, _DISCO)
        + _to(absent, _DISCO)
    )
    mesh = _WATCH + _forward(_K1, _K2) + _forward(absent, _K2, _DISCO) + _forward(_K1, absent)
    return {
        "every-frame": _feed(0, every) + _step(_FLUSH) + _step(_LEAVE, 0),
        "every-frame-byte-by-byte": b"".join(_feed(0, every[i : i + 1]) for i in range(190)),
        "mesh": _feed(4, mesh) + _step(_LEAVE, 1) + _step(_JOIN, 1) + _feed(4, _close(_K2))
        + _feed(5, _WATCH + _to(_SELF)) + _step(_LEAVE, 0),
        "mesh-frames-without-rights": b"".join(
            _feed(index, frame)
            for index, frame in enumerate((_WATCH, _forward(_K1, _K2), _close(_K1)))
        ),
        "duplicates": _feed(0, _to(_K3)) + _feed(2, _PING) + _feed(0, _to(_K3)) + _step(_LEAVE, 2)
        + _feed(0, _to(_K3)) + _step(_LEAVE, 3) + _feed(0, _to(_K3, _DISCO)),
        "runs-to-changing-destinations": _feed(
            0, (_to(_K2) * 3 + _to(_K3) + _to(_K1) * 2 + _to(absent)) * 3
        ),
        "largest-packet": _feed(0, _to(_K2, bytes(65536))[:37]) + _fill(0, 65535) + _fill(0, 1),
        "packet-too-large": _feed(0, b"\x04\0\1\0\x21" + _K2),
        "unknown-frames": _feed(1, b"\xee\xff\xff\xff\xff") + _fill(1, 65535) * 2
        + _feed(0, b"\xee\0\0\0\x10abc") + _feed(0, bytes(13) + _to(_K2)),
        "pongs-and-not-here-are-bounded": _feed(0, _PING * 5 + _to(absent, _DISCO) * 5)
        + _step(_WAIT, 0, 25) + _feed(0, _to(absent, _DISCO)),
        "full-queue": _step(_PAUSE, 1, 100) + _repeat(0, 40, _to(_K2))
        + _repeat(0, 40, _to(_K2, _DISCO)) + _feed(1, _PING) + _step(_RESUME, 1),
        "socket-fills-up-in-a-run": _step(_BLOCK, 1)
        + (_feed(0, large) + _fill(0, 60_000)) * 5 + _step(_RESUME, 1),
        "mesh-takes-over": _feed(0, _to(_K2)) + _step(_CLAIM, 1) + _step(_LEAVE, 1)
        + _feed(0, _to(_K2) * 4) + _step(_UNCLAIM, 1) + _step(_KEEP_ALIVE, 0),
        "lengths-that-are-illegal": b"".join(
            _feed(index, bytes((kind, 0, 0)) + size.to_bytes(2))
            for index, (kind, size) in enumerate(
                ((0x04, 31), (0x07, 2), (0x12, 7), (0x12, 1001), (0x10, 1), (0x11, 31))
            )
        ),
        "regression-run-larger-than-any-queue": _repeat(0, 250, _to(_K2, bytes(900))),
        "regression-watches-after-closing-itself": _feed(4, _close(_MESH) + _WATCH),
        "regression-sends-after-closing-itself": _feed(
            4, _to(_K1) + _close(_MESH) + frames.pack_note_preferred(True) + _to(_K2)
        ),
    }  # fmt: skip


def _from_server() -> Iterator[tuple[str, bytes]]:
    address = bytes(10) + b"\xff\xff" + bytes((192, 0, 2, 1)) + b"\x1f\x90"
    ip6 = bytes.fromhex("20010db800000000000000000000000101bb01")
    yield (
        "peers",
        b"".join(
            [pack_frame(8, _K1 + more) for more in (b"", b"\0", b"\1", b"\1\2")]
            + [pack_frame(9, _K1 + more) for more in (b"", address[:-1], address, address + b"\5")]
            + [
                pack_frame(9, _K1 + more)
                for more in (ip6, bytes(18) + b"\1", address + b"\xff\xff")
            ]
        ),
    )
    yield (
        "others",
        b"".join(
            (
                pack_frame(5, _K1 + b"hello") + pack_frame(5, _K1),
                pack_frame(6) + pack_frame(6, b"xx"),
                _PING + pack_frame(0x12, bytes(9)) + frames.pack_pong(bytes(8)),
                frames.pack_health("BAD") + frames.pack_health("") + pack_frame(0x14, b"\xff\xc0"),
                frames.pack_restarting(0.001, 0.002),
                pack_frame(0x15, bytes.fromhex("000075300000271001")),
            )
        ),
    )
    short = pack_frame(5, bytes(31)), pack_frame(0x12, bytes(7)), pack_frame(0x15, bytes(7))
    yield "skipped", _UNKNOWN + b"".join(short) + pack_frame(6)


def _client_frames() -> Seeds:
    every = b"".join(frame for _, frame in _from_server())
    greeting = frames.pack_server_key(_SERVER.public)
    low_order = b"\1" + bytes(31)
    return {
        "login": b"\0" + _UNEVEN + greeting + _SERVER_INFO + every,
        "known-key": b"\1" + _AT_ONCE + greeting + _SERVER_INFO_RATES + every,
        **{name: b"\2" + _UNEVEN + frame for name, frame in _from_server()},
        "too-large": b"\2" + _AT_ONCE + bytes.fromhex("0500100001"),
        "server-info-too-short": b"\2" + _AT_ONCE + pack_frame(3, bytes(23)),
        "server-info-does-not-open": b"\2" + _AT_ONCE + pack_frame(3, bytes(60)),
        "greeting-of-low-order": b"\0" + _AT_ONCE + pack_frame(1, frames.MAGIC + low_order),
        "greeting-too-large": b"\0" + _AT_ONCE + bytes.fromhex("0100000401"),
        "json-rates": b"\3" + _AT_ONCE + b'{"version":2,"TokenBucketBytesPerSecond":1000,'
        b'"TokenBucketBytesBurst":5000}',
    }  # fmt: skip


def _login() -> Seeds:
    mesh = b'{"meshKey":"' + b"0123456789abcdef" * 4 + b'",'
    every = mesh + b'"version":2,"CanAckPings":true,"IsProber":true,"AppName":"app"}'
    return {
        "client-info": b"\0" + _UNEVEN + _CLIENT_INFO + _PING,
        "client-info-all-fields": b"\0" + _BYTE_BY_BYTE + _CLIENT_INFO_ALL_FIELDS,
        "key-of-low-order": b"\1" + _AT_ONCE + b"\1" + bytes(31 + 24 + 18),
        "json-sealed": b"\2" + _UNEVEN + b'{"version":2,"CanAckPings":true}',
        "json-all-fields": b"\3" + _AT_ONCE + every,
        "json-odd": b"\3" + _AT_ONCE + b' {"VERSION":null,"x":[{}, 1.5e3, "\\ud83d\\ude00"],'
        b'"appname":"\\u0000\xc3\xa9","meshkey":"' + b"0" * 64 + b'"}',
        "json-deep": b"\3" + _AT_ONCE + b"[" * 1500,
    }  # fmt: skip


_WEBSOCKET_HEAD: Final = (
    b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
    b"Sec-WebSocket-Protocol: derp\r\n"
)


def _http_requests() -> Seeds:
    get = b"GET %s HTTP/1.1\r\nHost: h\r\n\r\n"
    pages = (b"/", b"/robots.txt", b"/derp/probe", b"/derp", b"/x?y")
    upgrade = upgrade_request("127.0.0.1:8080", "/derp?x=1", user_agent="u", ideal_node="1a")
    fast = upgrade_request("h", "/derp", user_agent="u", fast_start=True)
    return {
        "upgrade": b"\0" + _UNEVEN + upgrade + _CLIENT_INFO,
        "fast-start": b"\0" + _AT_ONCE + fast + _CLIENT_INFO,
        "websocket": b"\0" + _AT_ONCE + b"GET /derp HTTP/1.1\r\nHost: h\r\n" + _WEBSOCKET_HEAD
        + b"\r\n\x82\x80\0\0\0\0",
        "websocket-refused": b"\0" + _AT_ONCE + b"POST /derp HTTP/1.1\r\nHost: h\r\n"
        + _WEBSOCKET_HEAD + b"Content-Length: 3\r\n\r\nabc",
        "pages": b"\0" + _UNEVEN + b"".join(get % page for page in pages)
        + b"GET /generate_204 HTTP/1.1\r\nHost: h\r\nX-Tailscale-Challenge: ts_h.x:1\r\n\r\n",
        "head-and-post": b"\0" + _AT_ONCE + b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n"
        b"POST /derp/probe HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1\r\nx\r\n0\r\n\r\n",
        "redirect": b"\1" + _AT_ONCE + get % b"/a?b=c" + get % b"/generate_204",
        "not-http": b"\0" + _AT_ONCE + b"\x16\x03\x01\x02\0\1\0\1\xfc\x03\x03\r\n\r\n",
        "regression-connect": b"\0" + _AT_ONCE + b"CONNECT / HTTP/1.1\r\nHost: h\r\n\r\n",
        "regression-websocket-refused-to-head": b"\0" + _AT_ONCE + b"HEAD /derp HTTP/1.1\r\n"
        b"Host: h\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: derp\r\n\r\n",
        "regression-host-beyond-ascii": b"\1" + _AT_ONCE + b"GET / HTTP/1.1\r\nHost: h\xff\r\n\r\n",
    }  # fmt: skip


def _upgrade_reply() -> Seeds:
    accepted = switching_protocols(_SERVER.public) + frames.pack_server_key(_SERVER.public)
    refused = b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 3\r\n\r\nno\n"
    return {
        "accepted": b"\0" + _UNEVEN + accepted,
        "refused": b"\0" + _UNEVEN + b"HTTP/1.1 100 Continue\r\n\r\n" + refused,
        "refused-in-chunks": b"\0" + _AT_ONCE + b"HTTP/1.1 404 Not Found\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    }  # fmt: skip


def _http_reply() -> Seeds:
    no_content = b"HTTP/1.1 204 No Content\r\nX-Tailscale-Response: response ts_192.0.2.1\r\n\r\n"
    page = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    return {
        "no-content": b"\0" + _UNEVEN + no_content,
        "portal": b"\0" + _AT_ONCE + b"HTTP/1.0 302 Found\r\nLocation: http://portal/\r\n\r\nhi",
        "page": b"\0" + _BYTE_BY_BYTE + b"HTTP/1.1 100 Continue\r\n\r\n" + page,
        "head": b"\1" + _UNEVEN + page[:-5],
        "chunks": b"\0" + _UNEVEN + b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n0\r\n\r\n",
        "body-too-long": b"\0" + _AT_ONCE + b"HTTP/1.1 200 OK\r\n\r\n" + bytes(200),
        "upgraded": b"\2" + _UNEVEN + switching_protocols(_SERVER.public) + bytes(99),
        "another-protocol": b"\0" + _AT_ONCE + switching_protocols(_SERVER.public) + bytes(99),
    }  # fmt: skip


def _websocket_frame(opcode: int, data: bytes, *, final: bool = True) -> bytes:
    """Returns a client's frame, with a mask of zeros so that its content can be mutated."""
    size = len(data)
    length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2)
    return bytes((opcode | (0x80 if final else 0),)) + length + bytes(4) + data


def _websocket() -> Seeds:
    frame = _websocket_frame
    fragments = frame(2, b"de", final=False) + frame(9, b"ping") + frame(0, b"rp")
    head = _WEBSOCKET_HEAD.replace(b"\r\n", b"\n")
    return {
        "login": b"\0" + _UNEVEN + frame(2, _CLIENT_INFO) + frame(2, _PING + _to(_K1)) * 2,
        "fragments": b"\0" + _BYTE_BY_BYTE + fragments + frame(8, b"\x03\xe8bye"),
        "text": b"\0" + _AT_ONCE + frame(2, b"a") + frame(1, b"text") + frame(2, b"b"),
        "too-large": b"\0" + _AT_ONCE + b"\x82\xff" + (2**18 + 1).to_bytes(8) + bytes(4),
        "answered": b"\1" + _UNEVEN + frame(2, bytes(200)) + frame(10, b"") + frame(8, b""),
        "closed-by-us": b"\2" + _UNEVEN + frame(2, b"late") + frame(8, b"\x03\xe9"),
        "handshake": b"\3" + _AT_ONCE + b"GET\n" + head,
    }  # fmt: skip


def _metacert() -> Seeds:
    certificate = _META_CERTIFICATE
    name, serial = b"derpkey64b1", b"\xa0\x03\x02\x01\x02\x02\x01\x02"

    def chain(*ders: bytes) -> bytes:
        return b"".join(len(der).to_bytes(2) + der for der in ders)

    return {
        "certificate": chain(certificate),
        "chain": chain(
            certificate.replace(name, b"notakey64b1"),
            certificate.replace(serial, serial[:-1] + b"\xff"),
            certificate,
        ),
        "cut": chain(
            certificate[:200],
            certificate[:9],
            b"\x30\x84\0\0\0\x06\x30\x84\xff\xff\xff\xff",
            b"\x30\xff",
        ),
    }


def _first_bytes() -> Seeds:
    hello, proxy, stun, stun_answer = (bytes((parser,)) for parser in range(4))
    v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes((192, 0, 2, 1, 198, 51, 100, 2, 1, 2, 3, 4))
    request = pack_request(bytes(range(12)))
    return {
        "client-hello": hello + _CLIENT_HELLO,
        "client-hello-in-two": hello
        + (b"\x16\3\1" + (99).to_bytes(2) + _CLIENT_HELLO[5:104])
        + (b"\x16\3\1" + (len(_CLIENT_HELLO) - 104).to_bytes(2) + _CLIENT_HELLO[104:]),
        "proxy-v1": proxy + b"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.1 4711 443\r\nGET",
        "proxy-v2": proxy + v2,
        "stun": stun + request,
        "stun-more-attributes": stun + request[:20] + b"\x80\x29\0\1x\0\0\0" + request[20:],
        "stun-answer": stun_answer + pack_response(bytes(range(12)), bytes((192, 0, 2, 1)), 32853),
    }


def _tls_records() -> Seeds:
    fresh, established = b"\0", b"\1"
    # The ClientHello of a client that asks for this relay, and not for the ACME challenge.
    hello = _CLIENT_HELLO.replace(b"acme-tls/1", b"http/1.1\1x")
    alert = b"\x15\3\3\0\2\2\x28"
    change = b"\x14\3\3\0\1\1"
    return {
        "client-hello": fresh + _AT_ONCE + hello,
        "client-hello-byte-by-byte": fresh + _BYTE_BY_BYTE + hello,
        "client-hello-and-more": fresh + _UNEVEN + hello + change + alert,
        "plain-http": fresh + _AT_ONCE + b"GET / HTTP/1.1\r\nHost: derp.example.com\r\n\r\n",
        "record-that-was-not-encrypted": established + _AT_ONCE + b"\x17\3\3\0\x20" + bytes(32),
        "alert-in-the-clear": established + _AT_ONCE + alert,
        "changes-of-cipher": established + _UNEVEN + change * 40,
        "record-too-long": established + _AT_ONCE + b"\x17\3\3\x48\1" + bytes(40),
    }


def _maps() -> Seeds:
    found_out, json, policy, headscale = (bytes((mode,)) for mode in range(4))
    region = (
        b'{"RegionID":900,"RegionCode":"lab","Latitude":48.5,"Nodes":[{"Name":"900a",'
        b'"RegionID":900,"HostName":"derp.example.com","IPv6":"none","STUNPort":-1,"New":[1]}]}'
    )
    whole = b'{"HomeParams":{"RegionScore":{"900":0.5}},"Regions":{"900":' + region + b"}}"
    yaml = (
        b"regions:\n  1: null\n  900: &r\n    regionid: 900\n    regioncode: no\n    nodes:\n"
        b"    - {name: 900a, regionid: 900, hostname: derp.example.com, canport80: yes}\n"
        b"  901:\n    <<: *r\n    regionid: 901\n    extra: [1.5, ~, 'x']\n"
    )
    config = b"server_url: https://h\nderp:\n  server: {enabled: true}\n  paths: [a]\n  urls: []\n"
    return {
        "json": json + whole,
        "found-out": found_out + whole,
        "policy": policy + b'{ // mine\n"acls": [], "derpMap": ' + whole + b",\n}",
        "snippet": found_out + b'"derpMap": ' + whole + b",",
        "headscale": headscale + yaml,
        "headscale-found-out": found_out + yaml,
        "headscale-config": headscale + config,
        "names-twice": json + b'{"Regions":{"1":{},"01":{"Nodes":null}},"regions":{"2":{}}}',
    }


def make() -> dict[str, Seeds]:
    """Returns all seeds, by target and name."""
    return {
        "client_frames": _client_frames(),
        "first_bytes": _first_bytes(),
        "http_reply": _http_reply(),
        "http_requests": _http_requests(),
        "login": _login(),
        "maps": _maps(),
        "metacert": _metacert(),
        "relay_frames": _relay_frames(),
        "tls_records": _tls_records(),
        "upgrade_reply": _upgrade_reply(),
        "websocket": _websocket(),
    }


def main() -> None:
    """Write all seeds; other files in the folders stay."""
    corpora = make()
    assert sorted(corpora) == NAMES
    for target, corpus in corpora.items():
        directory = CORPUS / target
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in corpus.items():
            (directory / name).write_bytes(data)
    print(f"{sum(map(len, corpora.values()))} seeds in {CORPUS.relative_to(CORPUS.parent.parent)}")


if __name__ == "__main__":
    main()
