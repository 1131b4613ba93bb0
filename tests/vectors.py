"""Bytes that Tailscale's own code (v1.102.3) made or accepted, and their meaning.

The login boxes were opened again with libsodium. All keys are invented.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from pyderp.keys import MeshKey, NodePrivate, NodePublic
from pyderp.wire.frames import PeerPresentFlags
from pyderp.wire.login import ClientInfo
from pyderp.wire.messages import (
    Health,
    KeepAlive,
    Message,
    PeerGone,
    PeerPresent,
    Ping,
    Pong,
    ReceivedPacket,
    Restarting,
    ServerInfo,
)

# Keys. Both private keys are unclamped on purpose.

CLIENT_PRIVATE_TEXT: Final = (
    "privkey:0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"
)
CLIENT_PUBLIC_TEXT: Final = (
    "nodekey:07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c"
)
SERVER_PRIVATE_TEXT: Final = (
    "privkey:4142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f60"
)
SERVER_PUBLIC_TEXT: Final = (
    "nodekey:64b101b1d0be5a8704bd078f9895001fc03e8e9f9522f188dd128d9846d48466"
)
SERVER_PUBLIC_HEX: Final = SERVER_PUBLIC_TEXT.removeprefix("nodekey:")
SHARED_KEY: Final = bytes.fromhex(
    "f8d48c0771b2fab0580110626883f7671e7d0001a6823f3ad9e93d8ef177e8fc"
)
MESH_KEY_TEXT: Final = "0123456789abcdef" * 4

CLIENT: Final = NodePrivate(bytes(range(0x01, 0x21)))
SERVER: Final = NodePrivate(bytes(range(0x41, 0x61)))
K1: Final = NodePublic(b"\x10" * 32)
K2: Final = NodePublic(b"\x20" * 32)
K1_HEX: Final = "10" * 32
K2_HEX: Final = "20" * 32
ZERO_KEY: Final = NodePublic(bytes(32))
LOW_ORDER_KEY: Final = NodePublic(b"\x01" + bytes(31))
"""A point of low order: all secrets shared with it are zero."""

# Login

CLIENT_NONCE: Final = bytes(range(0xA0, 0xB8))
SERVER_NONCE: Final = bytes(range(0xC0, 0xD8))


def gives(*chunks: bytes) -> Callable[[int], bytes]:
    """A `random` that returns each chunk once, for a request of exactly its size."""
    left = list(chunks)

    def random(size: int) -> bytes:
        chunk = left.pop(0)
        assert len(chunk) == size
        return chunk

    return random


SERVER_KEY_FRAME: Final = bytes.fromhex(
    "01 00000028"
    "44455250f09f9491"  # DERP and a picture of a key
    f"{SERVER_PUBLIC_HEX}"
)

_INFO_HEAD: Final = (
    "07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c"  # client key
    "a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7"  # nonce
)

CLIENT_INFOS: Final[list[tuple[ClientInfo, bytes, bytes]]] = [
    (
        ClientInfo(version=2, can_ack_pings=True),
        b'{"version":2,"CanAckPings":true}',
        bytes.fromhex(
            f"02 00000068 {_INFO_HEAD}"
            "6cffec82736cd2129b825def91dab6667dfbbfe74feceee2842379acdf7acb5bb387740e0e27b6d3"
            "d9ab25945f3ffc3f"
        ),
    ),
    (
        ClientInfo(version=2),
        b'{"version":2,"CanAckPings":false}',
        bytes.fromhex(
            f"02 00000069 {_INFO_HEAD}"
            "76cc3764759236a45af6b6561d17f56c7dfbbfe74feceee2842379acdf7acb5bb387740e0e27b6d3"
            "d9ab25864c26ea2752"
        ),
    ),
    (
        ClientInfo(
            mesh_key=MeshKey.parse(MESH_KEY_TEXT),
            version=2,
            can_ack_pings=True,
            is_prober=True,
            app_name="app",
        ),
        (
            b'{"meshKey":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",'
            b'"version":2,"CanAckPings":true,"IsProber":true,"AppName":"app"}'
        ),
        bytes.fromhex(
            f"02 000000d5 {_INFO_HEAD}"
            "865c6e891ec2e9735411e343a02796977dfba4e74ef7cce8932379bcc369ba09e9f321526677b9d6"
            "c9ed7a861d7bab711bd6a83cb7231bd45c117fbb135982a44103d0ed518925284af32a657ab825b6"
            "639f26e89aa1e4c67b1b1beb30a689c059579081732e005210bab64122eca1514a645ea3472b38ba"
            "8e88ddcb68d60ea4592bb39c94323901e690ee9e7b396c1ef8c977bfc3e801c7ee206f6927"
        ),
    ),
]
"""The content, as JSON, and sealed as a frame with `CLIENT_NONCE`."""

SERVER_INFOS: Final[list[tuple[ServerInfo, bytes, bytes]]] = [
    (
        ServerInfo(version=2),
        b'{"version":2}',
        bytes.fromhex(
            "03 00000035 c0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7"
            "19e6b9c203327451f267124ec8d07d84d62c7c1b97f1bb18cbbfe8b602"
        ),
    ),
    (
        ServerInfo(2, 1000, 5000),
        b'{"version":2,"TokenBucketBytesPerSecond":1000,"TokenBucketBytesBurst":5000}',
        bytes.fromhex(
            "03 00000073 c0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7"
            "c34d7fdcb8e4ff5cbd71f6de313e30ebd62c7c1b97f1bb18cbbfe8b65361cf2f"
            "7ee00473c3016e6788c042bb6a5a63dd1596a47f5f48762acd284f7ddd54c08f"
            "74d580adbf53d08d7669307a7d0138c4d748cdef1348ef314801de"
        ),
    ),
]
"""The content, as JSON, and sealed as a frame with `SERVER_NONCE`."""


def received(packet: bytes) -> ReceivedPacket:
    """A packet from K1."""
    return ReceivedPacket(K1, packet)


# Server to client: hex, messages, types of skipped frames.

V4: Final = "00000000000000000000ffffc0000201"  # ::ffff:192.0.2.1
V6: Final = "20010db8000000000000000000000001"
NO_FLAGS: Final = PeerPresentFlags(0)
NOWHERE: Final = PeerPresent(K1, None, None, NO_FLAGS)
EXAMPLE: Final = IPv4Address("192.0.2.1")

SERVER_STREAMS: Final[list[tuple[str, list[Message], list[int]]]] = [
    ("06 00000000", [KeepAlive()], []),
    ("06 00000002 7878", [KeepAlive()], []),
    (f"05 00000025 {K1_HEX} 68656c6c6f", [ReceivedPacket(K1, b"hello")], []),
    (f"05 00000020 {K1_HEX}", [ReceivedPacket(K1, b"")], []),
    (f"08 00000020 {K1_HEX}", [PeerGone(K1, 0)], []),
    (f"08 00000021 {K1_HEX} 01", [PeerGone(K1, 1)], []),
    (f"08 00000024 {K1_HEX} 01 ffffff", [PeerGone(K1, 1)], []),
    (f"08 00000021 {K1_HEX} 77", [PeerGone(K1, 0x77)], []),  # an unknown reason is passed on
    (f"09 00000020 {K1_HEX}", [NOWHERE], []),
    (f"09 00000031 {K1_HEX} {V4} 1f", [NOWHERE], []),  # 17 spare bytes
    (f"09 00000032 {K1_HEX} {V4} 1f90", [PeerPresent(K1, EXAMPLE, 8080, NO_FLAGS)], []),
    (
        f"09 00000033 {K1_HEX} {V4} 1f90 05",
        [PeerPresent(K1, EXAMPLE, 8080, PeerPresentFlags.REGULAR | PeerPresentFlags.PROBER)],
        [],
    ),
    (
        f"09 00000033 {K1_HEX} {V6} 01bb 01",
        [PeerPresent(K1, IPv6Address("2001:db8::1"), 443, PeerPresentFlags.REGULAR)],
        [],
    ),
    (
        f"09 00000033 {K1_HEX} {'00' * 18} 01",
        [PeerPresent(K1, IPv6Address("::"), 0, PeerPresentFlags.REGULAR)],
        [],
    ),
    (
        f"09 00000036 {K1_HEX} {V4} 1f90 90 00 ffff",  # unknown bits are kept, spare bytes ignored
        [PeerPresent(K1, EXAMPLE, 8080, PeerPresentFlags(0x90))],
        [],
    ),
    ("12 00000009 01020304050607 08 09", [Ping(bytes(range(1, 9)))], []),
    ("13 00000009 01020304050607 08 09", [Pong(bytes(range(1, 9)))], []),
    ("14 00000003 424144", [Health("BAD")], []),
    ("14 00000000", [Health("")], []),
    ("15 00000008 00000001 00000002", [Restarting(0.001, 0.002)], []),
    ("15 00000009 00007530 00002710 01", [Restarting(30.0, 10.0)], []),
    ("ff 00000003 7a7a7a 06 00000000", [KeepAlive()], [0xFF]),
    (f"05 0000001f {K1_HEX[2:]} 06 00000000", [KeepAlive()], [0x05]),
    (f"08 0000001f {K1_HEX[2:]} 06 00000000", [KeepAlive()], [0x08]),
    (f"09 0000001f {K1_HEX[2:]} 06 00000000", [KeepAlive()], [0x09]),
    ("12 00000007 01020304050607 06 00000000", [KeepAlive()], [0x12]),
    ("13 00000007 01020304050607 06 00000000", [KeepAlive()], [0x13]),
    ("15 00000007 00000001 000000 06 00000000", [KeepAlive()], [0x15]),
    (f"04 00000020 {K1_HEX} 06 00000000", [KeepAlive()], [0x04]),  # not from a server
]

# Frames that v1.104.7 reads: hex, the message, whether a name is cut off.

REGULAR: Final = PeerPresentFlags.REGULAR

PEERS_PRESENT: Final[list[tuple[str, PeerPresent, bool]]] = [
    (f"09 00000020 {K1_HEX}", NOWHERE, False),
    (
        f"09 00000032 {K1_HEX} {V4} 1f90",
        PeerPresent(K1, EXAMPLE, 8080, NO_FLAGS),
        False,
    ),
    (f"09 00000033 {K1_HEX} {V4} 1f90 01", PeerPresent(K1, EXAMPLE, 8080, REGULAR), False),
    (f"09 00000034 {K1_HEX} {V4} 1f90 01 00", PeerPresent(K1, EXAMPLE, 8080, REGULAR), False),
    (
        f"09 00000037 {K1_HEX} {V4} 1f90 01 03616263",
        PeerPresent(K1, EXAMPLE, 8080, REGULAR, "abc"),
        False,
    ),
    (
        f"09 00000039 {K1_HEX} {V4} 1f90 01 03616263 dead",  # of a later version
        PeerPresent(K1, EXAMPLE, 8080, REGULAR, "abc"),
        False,
    ),
    (
        f"09 00000037 {K1_HEX} {V4} 1f90 01 c8616263",  # 200 bytes, of which three are there
        PeerPresent(K1, EXAMPLE, 8080, REGULAR),
        True,
    ),
    (
        f"09 00000037 {K1_HEX} {V4} 1f90 01 03010203",
        PeerPresent(K1, EXAMPLE, 8080, REGULAR),
        False,
    ),
    (f"09 00000035 {K1_HEX} {V4} 1f90 01 01ff", PeerPresent(K1, EXAMPLE, 8080, REGULAR), False),
    (
        f"09 00000037 {K1_HEX} {V4} 1f90 01 03612062",
        PeerPresent(K1, EXAMPLE, 8080, REGULAR, "a b"),
        False,
    ),
    (
        f"09 00000054 {K1_HEX} {V4} 1f90 05 20 {'78' * 32}",
        PeerPresent(K1, EXAMPLE, 8080, PeerPresentFlags(5), "x" * 32),
        False,
    ),
    (
        f"09 00000055 {K1_HEX} {V4} 1f90 05 21 {'78' * 33}",
        PeerPresent(K1, EXAMPLE, 8080, PeerPresentFlags(5)),
        False,
    ),
    (
        f"09 00000038 {K1_HEX} 20010db8000000000000000000000000 1f90 00 04 7461696c",
        PeerPresent(K1, IPv6Address("2001:db8::"), 8080, NO_FLAGS, "tail"),
        False,
    ),
]

# Logins that v1.104.7 accepts or refuses for their AppName: the JSON, the name, whether it is
# accepted, the frame, sealed with `CLIENT_NONCE`. v1.102.3 accepts them all.

_COMMON_BOX: Final = (
    "7dfbbfe74feceee2842379acdf7acb5bb387740e0e27b6d3d9ab25945f3ffc6e0da2ee7bc17b17d31d4f"
)

APP_NAMES: Final[list[tuple[str, str, bool, bytes]]] = [
    (
        text,
        name,
        taken,
        bytes.fromhex(f"02 {length} {_INFO_HEAD} {tag} {_COMMON_BOX} {end}"),
    )
    for text, name, taken, length, tag, end in (
        (
            '{"version":2,"CanAckPings":true,"AppName":"app"}',
            "app",
            True,
            "00000078",
            "44d14d79d9ab5f8365e869dbc3da11b2",
            "38bc531892ea",
        ),
        (
            f'{{"version":2,"CanAckPings":true,"AppName":"{"x" * 32}"}}',
            "x" * 32,
            True,
            "00000095",
            "85d55841e6913bf34973f4314c5509f5",
            "38a55b10c8ef0d4e9ea211c83c3251ef377b32f16ffd2fd268a7dae0fddc600706af6f",
        ),
        (
            f'{{"version":2,"CanAckPings":true,"AppName":"{"x" * 33}"}}',
            "x" * 33,
            False,
            "00000096",
            "aa034521726641bffb2b6ddf4fe55b70",
            "38a55b10c8ef0d4e9ea211c83c3251ef377b32f16ffd2fd268a7dae0fddc600706f530f7",
        ),
        (
            '{"version":2,"CanAckPings":true,"AppName":"a\\u007f"}',
            "a\x7f",
            False,
            "0000007c",
            "cb9fbe130813540133f6b3ea9f69d170",
            "38bc7f1d80a74250c4a7",
        ),
        (
            '{"version":2,"CanAckPings":true,"AppName":"caf\\u00e9"}',
            "café",
            False,
            "0000007e",
            "7dc422d9cd319d270a215edb73d843b5",
            "38be420eece2450683e34bcd",
        ),
        (
            '{"version":2,"CanAckPings":true,"AppName":null}',
            "",
            True,
            "00000077",
            "791f21546518fdf977bab9ab1b5dc9bc",
            "74a84f04cd",
        ),
    )
]

# HTTP

SWITCHING_PROTOCOLS: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\n"
    b"Upgrade: DERP\r\n"
    b"Connection: Upgrade\r\n"
    b"Derp-Version: 2\r\n"
    b"Derp-Public-Key: 64b101b1d0be5a8704bd078f9895001fc03e8e9f9522f188dd128d9846d48466\r\n"
    b"\r\n"
)

WEBSOCKET_SERVER_KEY: Final = b"\x82\x2d" + SERVER_KEY_FRAME
"""The first message of a relay inside a websocket: binary, not masked."""

# Meta certificate of SERVER, valid 2026-10-22T23:21:24Z to 2026-12-21T23:21:24Z

META_CERTIFICATE: Final = base64.b64decode(
    "MIIBYzCCARWgAwIBAgIBAjAFBgMrZXAwUjFQME4GA1UEAxNHZGVycGtleTY0YjEwMWIxZDBiZTVhODcwNGJkMDc4Zjk4"
    "OTUwMDFmYzAzZThlOWY5NTIyZjE4OGRkMTI4ZDk4NDZkNDg0NjYwHhcNMjYxMDIyMjMyMTI0WhcNMjYxMjIxMjMyMTI0"
    "WjBSMVAwTgYDVQQDE0dkZXJwa2V5NjRiMTAxYjFkMGJlNWE4NzA0YmQwNzhmOTg5NTAwMWZjMDNlOGU5Zjk1MjJmMTg4"
    "ZGQxMjhkOTg0NmQ0ODQ2NjAqMAUGAytlcAMhAAOhB7/zzhC+HXDdGOdLwJln5NYwm6UNXx3chmQSVTG4oxAwDjAMBgNV"
    "HRMBAf8EAjAAMAUGAytlcANBAIgPomzUWUbaF7EJgehaeojxxhwgkc44ChaWC96U17/8jDLMC/tnr9HXO+V+yfC8vQ0Q"
    "RKS/LS0qjs/faI8MGAs="
)
META_CERTIFICATE_SHA256: Final = "c5697a9a55ff6e739ef932527a16f837c795f5fef8f66d701a20e4f380a8f2d0"
