"""The sealed login blobs: their JSON, read and written like in Go, and their boxes."""

from __future__ import annotations

import json
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyderp.errors import BadBox, FrameTooLarge, RemoteProtocolError, UnexpectedFrame
from pyderp.keys import MeshKey, NodePrivate
from pyderp.wire.frames import frame_header
from pyderp.wire.login import (
    ClientInfo,
    OwnNonces,
    ServerLogin,
    check_client_info_frame_untrusted,
    open_client_info_untrusted,
    open_server_info_untrusted,
    seal_client_info,
    seal_server_info,
    server_info_json,
)
from pyderp.wire.messages import ServerInfo
from tests import vectors as v

MESH = MeshKey.parse(v.MESH_KEY_TEXT)
MESH_TEXT = v.MESH_KEY_TEXT

# Written by Go


@pytest.mark.parametrize(("info", "text", "frame"), v.CLIENT_INFOS)
def test_client_info_is_written_as_by_go(info: ClientInfo, text: bytes, frame: bytes) -> None:
    assert info.to_json() == text
    assert seal_client_info(v.CLIENT, v.SERVER.public, info, nonce=v.CLIENT_NONCE) == frame


@pytest.mark.parametrize(("info", "text", "frame"), v.CLIENT_INFOS)
def test_client_info_of_go_is_read(info: ClientInfo, text: bytes, frame: bytes) -> None:
    assert ClientInfo.from_json_untrusted(text) == info
    assert open_client_info_untrusted(v.SERVER, frame[5:]) == (v.CLIENT.public, v.SHARED_KEY, info)


def test_only_can_ack_pings_is_always_written() -> None:
    assert ClientInfo().to_json() == b'{"CanAckPings":false}'


def test_takes_health_is_written_behind_the_fields_of_go() -> None:
    text = ClientInfo(takes_health=True).to_json()
    assert text == b'{"CanAckPings":false,"pyderpTakesHealth":true}'
    assert ClientInfo.from_json_untrusted(text).takes_health


@pytest.mark.parametrize(("info", "text", "frame"), v.SERVER_INFOS)
def test_server_info_of_go_is_read(info: ServerInfo, text: bytes, frame: bytes) -> None:
    assert server_info_json(info) == text
    assert open_server_info_untrusted(v.CLIENT, v.SERVER.public, frame[5:]) == info


def test_server_info_is_written_as_by_go() -> None:
    assert seal_server_info(v.SHARED_KEY, nonce=v.SERVER_NONCE) == v.SERVER_INFOS[0][2]


def test_empty_server_info_has_no_fields() -> None:
    assert server_info_json(ServerInfo()) == b"{}"


# Read by Go


@pytest.mark.parametrize(
    ("text", "info"),
    [
        ("{}", ClientInfo()),
        (" {\n} ", ClientInfo()),
        ("null", ClientInfo()),
        ('{"version":1,"future":{"a":[1,2,{}]},"":null}', ClientInfo(version=1)),
        (f'{{"Version":3,"MESHKEY":"{MESH_TEXT}"}}', ClientInfo(version=3, mesh_key=MESH)),
        (f'{{"MeshKey":"{MESH_TEXT.upper()}"}}', ClientInfo(mesh_key=MESH)),
        (
            '{"canackpings":true,"ISPROBER":true,"appname":"x"}',
            ClientInfo(can_ack_pings=True, is_prober=True, app_name="x"),
        ),
        ('{"pyderpTakesHealth":true}', ClientInfo(takes_health=True)),
        ('{"PYDERPTAKESHEALTH":true}', ClientInfo(takes_health=True)),
        ('{"pyderpTakesHealth":null}', ClientInfo()),
        ('{"can_ack_pings":true,"takes_health":true}', ClientInfo()),
        (
            '{"version":null,"CanAckPings":null,"IsProber":null,"AppName":null}',
            ClientInfo(),
        ),
        ('{"meshKey":"' + "0" * 64 + '"}', ClientInfo()),  # well-formed, and grants nothing
        ('{"version":9223372036854775807}', ClientInfo(version=2**63 - 1)),
        ('{"version":-9223372036854775808}', ClientInfo(version=-(2**63))),
        ('{"version":-0}', ClientInfo()),
        ('{"AppName":"\\u00e9"}', ClientInfo(app_name="é")),
        ('{"version":1,"version":2}', ClientInfo(version=2)),
    ],
)
def test_valid_client_info_is_accepted(text: str, info: ClientInfo) -> None:
    assert ClientInfo.from_json_untrusted(text.encode()) == info


REPLACED = "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("text", "info"),
    [
        (b'{"x":"\xff","version":1}', ClientInfo(version=1)),
        (b'{"\xff":"\xed\xa0\x80","version":1}', ClientInfo(version=1)),
        (b'{"AppName":"\xff"}', ClientInfo(app_name=REPLACED)),
        (b'{"AppName":"\\ud800x"}', ClientInfo(app_name=f"{REPLACED}x")),
        (b'{"\\ud800":"\\udfff","version":1}', ClientInfo(version=1)),
        (b'{"AppName":"\\ud83d\\ude00"}', ClientInfo(app_name="\N{GRINNING FACE}")),
        (b'{"x":' + b"[" * 9000 + b"]" * 9000 + b',"version":1}', ClientInfo(version=1)),
        (b'{"x":' + b'{"a":' * 9999 + b"1" + b"}" * 9999 + b"}", ClientInfo()),
        (b'{"x":' + b"9" * 5000 + b"}", ClientInfo()),
        (b'{"x":[1e999,-1e-99999,-0,0.10E+7,{"y":{}}]}', ClientInfo()),
        (b'{"version":2,"version":null}', ClientInfo(version=2)),
        (b'{"version":1,"VERSION":2,"version":3}', ClientInfo(version=3)),
        (
            '{"CanAckPing\N{LATIN SMALL LETTER LONG S}":true}'.encode(),
            ClientInfo(can_ack_pings=True),
        ),
        ('{"CanAc\N{KELVIN SIGN}Pings":true}'.encode(), ClientInfo(can_ack_pings=True)),
        (b'{"\\u0076ersion":4}', ClientInfo(version=4)),
        (b'{"meshKey":""}', ClientInfo()),
    ],
    ids=range(16),
)
def test_json_that_go_accepts_is_accepted(text: bytes, info: ClientInfo) -> None:
    assert ClientInfo.from_json_untrusted(text) == info


@pytest.mark.parametrize(
    "text",
    [
        b'{"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"x":' + b"[" * 11_000 + b"]" * 11_000 + b"}",
        b'{"x":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}",
        b'{"x":' + b'{"a":' * 9999 + b"[]" + b"}" * 9999 + b"}",
        b'{"x":01}',
        b'{"x":1.}',
        b'{"x":.5}',
        b'{"x":+1}',
        b'{"x":-}',
        b'{"x":1e}',
        b'{"x":Infinity}',
        b'{"x":"\x01"}',
        b'{"x":"\t"}',
        b'{"x":"\\x"}',
        b'{"x":"\\u12G4"}',
        b'{"x":1,}',
        b'{"x":[1,]}',
        b'{"x":[,1]}',
        b"{,}",
        b'{"x"}',
        b'{"x" 1}',
        b'{"x":[}',
        b'{"x":{]}',
        b'{"x":[]]}',
        b'{"x":[[1 2]]}',
        b'{"x":[[1]',
        b'{"x":{"y":1,}}',
        b'{"x":{"y":{"z":1},}}',
        b'{"x":nul}',
        b'{"x":truee}',
        b"{}\x00",
        b"\x0b{}",
        b"{}\xc2\xa0",
        b"[1",
        b'{"x":[' + b"[1]," * 12_000 + b"1]}",
        b"{" + b'"":0,' * 12_000 + b'"":0}',
    ],
    ids=range(36),
)
def test_json_that_go_refuses_is_refused(text: bytes) -> None:
    """Go accepts the last two; here they exceed the bound of the work for one login."""
    with pytest.raises(RemoteProtocolError, match=r"^login blob is not JSON$"):
        ClientInfo.from_json_untrusted(text)


@pytest.mark.parametrize(
    "text",
    ['{"version":"x","version":2}', '{"version":2,"VERSION":"x"}', '{"AppName":1,"AppName":"x"}'],
)
def test_a_wrong_type_is_refused_wherever_it_is(text: str) -> None:
    with pytest.raises(RemoteProtocolError, match="has a wrong type"):
        ClientInfo.from_json_untrusted(text.encode())


@pytest.mark.parametrize(
    "value",
    [
        "null",
        "7",
        "true",
        "[]",
        '"badf00d"',
        f'"{MESH_TEXT[:-1]}"',
        f'"{MESH_TEXT}0"',
        f'"{MESH_TEXT[:-1]}g"',
        '"' + "?" * 64 + '"',
        f'" {MESH_TEXT}"',  # space is for files, not for JSON
        f'" {MESH_TEXT[:-1]}"',
        f'" {MESH_TEXT[:-2]} "',
        '"' + "0" * 63 + ' "',
    ],
)
def test_a_malformed_mesh_key_refuses_the_whole_blob(value: str) -> None:
    with pytest.raises(RemoteProtocolError, match=r"^invalid mesh key$") as caught:
        ClientInfo.from_json_untrusted(b'{"version":2,"meshKey":%s}' % value.encode())
    assert caught.value.frame_type == 2


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        b'{"version":2',
        b"{}{}",
        b"{} x",
        b"{'version':2}",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe",
        b'{"version":NaN}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_invalid_json_is_refused(text: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=r"^login blob is not JSON$"):
        ClientInfo.from_json_untrusted(text)


@pytest.mark.parametrize("text", [b"[]", b"2", b'"x"', b"true", b"[{}]"])
def test_json_other_than_an_object_is_refused(text: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="not a JSON object"):
        ClientInfo.from_json_untrusted(text)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        (
            "version",
            [
                '"2"',
                "2.0",
                "2.5",
                "1e3",
                "1e999",
                "true",
                "[]",
                "{}",
                str(2**63),
                str(-(2**63) - 1),
                "9" * 5000,
            ],
        ),
        ("CanAckPings", ["1", "0", '"true"', "[]", "{}"]),
        ("IsProber", ["1", "0", '"true"', "[]", "{}"]),
        ("AppName", ["1", "true", "[]", "{}"]),
        ("pyderpTakesHealth", ["1", "0", '"true"', "[]", "{}"]),
    ],
)
def test_a_wrong_type_refuses_the_whole_blob(field: str, values: list[str]) -> None:
    for value in values:
        for name in (field, field.upper()):
            with pytest.raises(RemoteProtocolError) as caught:
                ClientInfo.from_json_untrusted(f'{{"{name}":{value}}}'.encode())
            assert str(caught.value) == f"field {field} of the login blob has a wrong type"
            assert caught.value.frame_type == 2


@pytest.mark.parametrize(
    "text",
    [
        '{"meshKey":"SECRET"}',
        '{"meshKey":"' + "SECRET".ljust(64, "0") + '"}',
        '{"AppName":["SECRET"]}',
        '"SECRET"',
        "SECRET",
        '{"version":SECRET}',
    ],
)
def test_errors_never_quote_the_blob(text: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        ClientInfo.from_json_untrusted(text.encode())
    # Only the last line of each traceback: the lines before are source code.
    chain: BaseException | None = caught.value
    while chain is not None:
        assert "SECRET" not in "".join(traceback.format_exception_only(chain))
        chain = chain.__cause__


# Boxes


@pytest.mark.parametrize("length", [56, 74, 262144])
def test_a_first_frame_of_legal_length_is_awaited(length: int) -> None:
    login = ServerLogin(v.SERVER, random=v.gives(v.SERVER_NONCE))
    assert login.receive_untrusted(bytearray(frame_header(0x02, length)), 5) == (0, None)


@pytest.mark.parametrize(
    ("kind", "length", "error", "text"),
    [
        (0x04, 104, UnexpectedFrame, "bad frame type 0x4, want 0x2"),
        (0x01, 0xFFFFFFFF, UnexpectedFrame, "bad frame type 0x1, want 0x2"),
        (0x02, 0, RemoteProtocolError, "short client info"),
        (0x02, 55, RemoteProtocolError, "short client info"),
        (0x02, 262145, FrameTooLarge, "long client info"),
    ],
)
def test_other_first_frames_are_refused_at_their_header(
    kind: int, length: int, error: type[RemoteProtocolError], text: str
) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        check_client_info_frame_untrusted(kind, length)
    assert type(caught.value) is error
    assert str(caught.value) == text
    assert caught.value.frame_type == kind


def test_a_client_with_the_zero_key_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match=r"^client key is zero$"):
        open_client_info_untrusted(v.SERVER, bytes(104))


def test_a_client_with_a_key_of_low_order_is_refused() -> None:
    with pytest.raises(BadBox):
        open_client_info_untrusted(v.SERVER, v.LOW_ORDER_KEY.raw + bytes(72))


@pytest.mark.parametrize("size", [24, 39, 40, 72])
def test_client_info_that_does_not_open_is_refused(size: int) -> None:
    with pytest.raises(BadBox) as caught:
        open_client_info_untrusted(v.SERVER, v.CLIENT.public.raw + bytes(size))
    assert str(caught.value) == (
        f"msgbox: cannot open len={size} with client key {v.CLIENT_PUBLIC_TEXT}"
    )
    assert caught.value.frame_type == 2


def test_sealed_invalid_json_is_refused() -> None:
    sealed = v.CLIENT.seal_to(v.SERVER.public, b"rubbish", nonce=v.CLIENT_NONCE)
    with pytest.raises(RemoteProtocolError, match="not JSON"):
        open_client_info_untrusted(v.SERVER, v.CLIENT.public.raw + sealed)


@pytest.mark.parametrize("size", [0, 23])
def test_a_short_server_info_is_refused(size: int) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        open_server_info_untrusted(v.CLIENT, v.SERVER.public, bytes(size))
    assert str(caught.value) == "invalid server info frame: short serverInfo frame"
    assert caught.value.frame_type == 3


@pytest.mark.parametrize("size", [24, 39, 60])
def test_server_info_that_does_not_open_is_refused(size: int) -> None:
    with pytest.raises(BadBox) as caught:
        open_server_info_untrusted(v.CLIENT, v.SERVER.public, bytes(size))
    assert str(caught.value) == (
        f"invalid server info frame: failed to open naclbox from server key {v.SERVER_PUBLIC_TEXT}"
    )
    assert caught.value.frame_type == 3


@pytest.mark.parametrize(
    ("text", "info"),
    [
        ("{}", ServerInfo()),
        ("null", ServerInfo()),
        ('{"Version":3,"tokenbucketbytesburst":7,"x":1}', ServerInfo(3, 0, 7)),
        ('{"TokenBucketBytesPerSecond":1}', ServerInfo(0, 1, 0)),
    ],
)
def test_valid_server_info_is_accepted(text: str, info: ServerInfo) -> None:
    sealed = v.SERVER.seal_to(v.CLIENT.public, text.encode(), nonce=v.SERVER_NONCE)
    assert open_server_info_untrusted(v.CLIENT, v.SERVER.public, sealed) == info


@pytest.mark.parametrize(
    "document",
    [[], {"version": "2"}, {"TokenBucketBytesPerSecond": True}, {"TokenBucketBytesBurst": 1.5}],
)
def test_server_info_of_a_wrong_type_is_refused(document: object) -> None:
    text = json.dumps(document).encode()
    sealed = v.SERVER.seal_to(v.CLIENT.public, text, nonce=v.SERVER_NONCE)
    with pytest.raises(RemoteProtocolError) as caught:
        open_server_info_untrusted(v.CLIENT, v.SERVER.public, sealed)
    assert caught.value.frame_type == 3


def nonces(private: NodePrivate, role: bytes, random: bytes = v.CLIENT_NONCE) -> OwnNonces:
    return OwnNonces(private, role, random=lambda size: random[:size])


@given(st.binary(min_size=24, max_size=24))
def test_a_nonce_is_recognised_only_by_its_maker(random: bytes) -> None:
    makers = [nonces(p, r, random) for p in (v.CLIENT, v.SERVER) for r in (b"relay", b"client")]
    made = [maker.make() for maker in makers]
    assert {len(nonce) for nonce in made} == {24}
    # Most of it is random; two nonces of one maker differ as two random texts do.
    assert {nonce[:16] for nonce in made} == {random[:16]}
    assert [[maker.made(nonce) for nonce in made] for maker in makers] == [
        [one == other for other in range(4)] for one in range(4)
    ]
    # Another process with the same key knows it as well.
    assert nonces(v.CLIENT, b"relay").made(made[0])


def test_other_nonces_are_not_recognised() -> None:
    maker = nonces(v.CLIENT, b"relay")
    nonce = maker.make()
    for at in range(24):
        assert not maker.made(nonce[:at] + bytes([nonce[at] ^ 1]) + nonce[at + 1 :])
    assert not maker.made(v.SERVER_NONCE)
    assert not maker.made(b"")
