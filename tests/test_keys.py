"""Keys: their texts and boxes, and errors that do not repeat secrets."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from pyderp.errors import BadBox, ConfigError, InvalidKey, LocalProtocolError
from pyderp.keys import MeshKey, NodePrivate, NodePublic, open_sealed, seal
from tests import vectors as v

UPSTREAM_PRIVATE = "privkey:40ab1b58e9076c7a4d9d07291f5edf9d1aa017eb949624ba683317f48a640369"
UPSTREAM_PUBLIC = "nodekey:50d20b455ecf12bc453f83c2cfdb2a24925d06cf2598dcaa54e91af82ce9f765"

HEX = "Ab" * 32
BAD_TEXTS = [
    # (what follows the prefix, the error)
    ("", "hex digits, got 0"),
    ("ab" * 31 + "a", "hex digits, got 63"),
    ("ab" * 32 + "a", "hex digits, got 65"),
    ("ab" * 31 + "ag", "invalid hex character in key"),
    ("ab" * 31 + "a ", "invalid hex character in key"),
    (" " + "ab" * 31 + "a", "invalid hex character in key"),
    ("0x" + "ab" * 31, "invalid hex character in key"),
    ("ab" * 31 + "a\N{ARABIC-INDIC DIGIT ONE}", "invalid hex character in key"),
    ("ab" * 31 + "a\N{FULLWIDTH DIGIT ONE}", "invalid hex character in key"),
]


def all_text_of(error: BaseException) -> str:
    """The text that a log would show of an error, with its causes."""
    return "".join(traceback.format_exception_only(error)) + repr(error.args)


@pytest.mark.parametrize(
    ("private", "public"),
    [
        (v.CLIENT_PRIVATE_TEXT, v.CLIENT_PUBLIC_TEXT),
        (v.SERVER_PRIVATE_TEXT, v.SERVER_PUBLIC_TEXT),
        (UPSTREAM_PRIVATE, UPSTREAM_PUBLIC),
    ],
)
def test_public_key_of_a_private_key(private: str, public: str) -> None:
    key = NodePrivate.parse(private)
    assert str(key.public) == public
    assert key.to_text() == private
    assert NodePublic.parse(public) == key.public


def test_clamped_and_unclamped_key_have_one_public_key() -> None:
    clamped = NodePrivate.generate(bytes(range(0x01, 0x21)))
    assert clamped.to_text().startswith("privkey:00020304")
    assert clamped.to_text().endswith("1f60")
    assert clamped.public == v.CLIENT.public
    assert clamped != v.CLIENT


def test_generated_keys_are_clamped_and_differ() -> None:
    keys = [NodePrivate.generate() for _ in range(8)]
    assert len(set(keys)) == 8
    for key in keys:
        raw = bytes.fromhex(key.to_text().removeprefix("privkey:"))
        assert raw[0] & 7 == 0
        assert raw[31] & 0xC0 == 0x40


def test_generate_clears_and_sets_the_clamped_bits() -> None:
    raw = bytes.fromhex(NodePrivate.generate(b"\xff" * 32).to_text().removeprefix("privkey:"))
    assert raw == b"\xf8" + b"\xff" * 30 + b"\x7f"


@pytest.mark.parametrize("size", [0, 31, 33])
def test_keys_of_another_size_are_refused(size: int) -> None:
    raw = b"\x55" * size
    for refuse in (NodePublic, NodePrivate, NodePrivate.generate, MeshKey):
        with pytest.raises(InvalidKey, match=f"^a key is 32 bytes, got {size}$"):
            refuse(raw)


def test_hex_is_read_in_any_case_and_written_in_lower_case() -> None:
    assert str(NodePublic.parse(f"nodekey:{HEX}")) == f"nodekey:{HEX.lower()}"
    assert NodePublic.parse_untyped(HEX).untyped_hex() == HEX.lower()
    assert NodePrivate.parse(f"privkey:{HEX}").to_text() == f"privkey:{HEX.lower()}"


@pytest.mark.parametrize(("digits", "error"), BAD_TEXTS)
def test_bad_digits_are_refused(digits: str, error: str) -> None:
    for parse, text in (
        (NodePublic.parse, f"nodekey:{digits}"),
        (NodePublic.parse_untyped, digits),
        (NodePrivate.parse, f"privkey:{digits}"),
    ):
        with pytest.raises(InvalidKey) as caught:
            parse(text)
        assert str(caught.value).endswith(error)


def test_only_hex_digits_are_digits() -> None:
    for other in {chr(code) for code in range(0x250)} - set("0123456789abcdefABCDEF"):
        with pytest.raises(InvalidKey, match=r"^invalid hex character in key$"):
            NodePublic.parse_untyped("ab" * 31 + "a" + other)


@pytest.mark.parametrize(
    "prefix", ["", "privkey:", "NODEKEY:", "nodekey", " nodekey:", "discokey:"]
)
def test_public_key_needs_its_prefix(prefix: str) -> None:
    with pytest.raises(InvalidKey) as caught:
        NodePublic.parse(f"{prefix}{HEX}")
    assert str(caught.value) == "key hex string doesn't have expected type prefix nodekey:"


@pytest.mark.parametrize("prefix", ["", "nodekey:", "PRIVKEY:", "privkey", " privkey:"])
def test_private_key_needs_its_prefix(prefix: str) -> None:
    with pytest.raises(InvalidKey) as caught:
        NodePrivate.parse(f"{prefix}{HEX}")
    assert str(caught.value) == "key hex string doesn't have expected type prefix privkey:"


@pytest.mark.parametrize(
    "text",
    [
        "nodekey:SECRET",
        "nodekey:" + "SECRET" * 10 + "ab12",
        "SECRET" + "ab" * 32,
        "SECRET",
    ],
)
def test_parse_errors_never_repeat_the_input(text: str) -> None:
    for parse in (NodePublic.parse, NodePublic.parse_untyped, MeshKey.parse, NodePrivate.parse):
        for variant in (text, text.replace("nodekey:", "privkey:"), text.removeprefix("nodekey:")):
            with pytest.raises(InvalidKey) as caught:
                parse(variant)
            assert "SECRET" not in all_text_of(caught.value)


def test_invalid_key_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="prefix nodekey:"):
        NodePublic.parse("")


def test_the_binary_form_is_read_and_written() -> None:
    binary = v.CLIENT.public.to_binary()
    assert binary.hex() == "6e7007a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c"
    assert NodePublic.from_binary(binary) == v.CLIENT.public


@pytest.mark.parametrize("cut", [slice(33), slice(0), slice(1, None), slice(2, None)])
def test_malformed_binary_form_is_refused(cut: slice) -> None:
    with pytest.raises(InvalidKey):
        NodePublic.from_binary(v.CLIENT.public.to_binary()[cut])
    with pytest.raises(InvalidKey):
        NodePublic.from_binary(v.CLIENT.public.to_binary() + b"\0")
    with pytest.raises(InvalidKey, match="a binary node key begins with np"):
        NodePublic.from_binary(b"dp" + v.CLIENT.public.raw)


def test_the_short_form_has_five_characters() -> None:
    assert v.CLIENT.public.short() == "[B6N8v]"
    assert v.SERVER.public.short() == "[ZLEBs]"
    assert v.ZERO_KEY.short() == ""


def test_the_zero_key_is_recognised() -> None:
    assert v.ZERO_KEY.is_zero()
    assert not v.LOW_ORDER_KEY.is_zero()
    assert str(v.ZERO_KEY) == "nodekey:" + "0" * 64


def test_public_keys_order_bytewise() -> None:
    high, low = NodePublic(b"\x80" + bytes(31)), NodePublic(b"\x7f" + b"\xff" * 31)
    assert sorted([high, v.K2, low, v.K1]) == [v.K1, v.K2, low, high]
    assert low < high
    assert high >= low >= NodePublic(low.raw)


def test_equal_public_keys_are_one_key_of_a_dict() -> None:
    one, again = v.K1, NodePublic(b"\x10" * 32)
    assert one is not again
    assert len({one, again, v.K2}) == 2
    assert one == again
    assert one not in (v.K2, one.raw, str(one))


def test_repr_of_a_public_key_makes_it_again() -> None:
    assert eval(repr(v.K1)) == v.K1


def test_equal_private_keys_are_one_key_of_a_dict() -> None:
    again = NodePrivate.parse(v.CLIENT_PRIVATE_TEXT)
    assert again == v.CLIENT
    assert len({again, v.CLIENT, v.SERVER}) == 2
    assert again not in (v.SERVER, v.CLIENT.public)


def test_secrets_show_in_no_repr() -> None:
    assert repr(v.CLIENT) == f"<NodePrivate of {v.CLIENT_PUBLIC_TEXT}>"
    assert str(v.CLIENT) == repr(v.CLIENT)
    mesh = MeshKey.parse(v.MESH_KEY_TEXT)
    assert f"{mesh!r} {mesh}" == "<MeshKey> <MeshKey>"


def test_zero_private_key_is_refused() -> None:
    with pytest.raises(InvalidKey, match="zero key"):
        NodePrivate(bytes(32))
    with pytest.raises(InvalidKey, match="zero key"):
        NodePrivate.parse("privkey:" + "0" * 64)


# Boxes


def test_shared_key_is_the_same_on_both_sides() -> None:
    assert v.CLIENT.shared_key(v.SERVER.public) == v.SHARED_KEY
    assert v.SERVER.shared_key(v.CLIENT.public) == v.SHARED_KEY


@pytest.mark.parametrize("peer", [v.ZERO_KEY, v.LOW_ORDER_KEY])
def test_a_key_of_low_order_makes_no_box(peer: NodePublic) -> None:
    with pytest.raises(BadBox, match="no secret can be shared with key nodekey:0"):
        v.CLIENT.shared_key(peer)
    with pytest.raises(BadBox):
        v.CLIENT.seal_to(peer, b"x", nonce=v.CLIENT_NONCE)
    with pytest.raises(BadBox):
        v.CLIENT.open_from(peer, bytes(60))


@pytest.mark.parametrize(("_", "text", "frame"), v.CLIENT_INFOS)
def test_boxes_of_a_client_are_those_of_go(_: object, text: bytes, frame: bytes) -> None:
    sealed = frame[5 + 32 :]
    assert v.CLIENT.seal_to(v.SERVER.public, text, nonce=v.CLIENT_NONCE) == sealed
    assert v.SERVER.open_from(v.CLIENT.public, sealed) == text


@pytest.mark.parametrize(("_", "text", "frame"), v.SERVER_INFOS)
def test_boxes_of_a_server_are_those_of_go(_: object, text: bytes, frame: bytes) -> None:
    assert seal(v.SHARED_KEY, text, nonce=v.SERVER_NONCE) == frame[5:]
    assert open_sealed(v.SHARED_KEY, frame[5:]) == text


def test_changed_cut_or_foreign_box_does_not_open() -> None:
    sealed = v.CLIENT.seal_to(v.SERVER.public, b"{}", nonce=v.CLIENT_NONCE)
    assert v.SERVER.open_from(v.CLIENT.public, sealed) == b"{}"
    for at in range(len(sealed)):
        changed = sealed[:at] + bytes((sealed[at] ^ 1,)) + sealed[at + 1 :]
        for bad in (changed, sealed[:at]):
            with pytest.raises(BadBox, match=r"^box does not open$"):
                v.SERVER.open_from(v.CLIENT.public, bad)
    with pytest.raises(BadBox):
        v.SERVER.open_from(v.K1, sealed)
    with pytest.raises(BadBox):
        v.SERVER.open_from(v.CLIENT.public, sealed + b"\0")


@pytest.mark.parametrize("size", [0, 23, 25])
def test_a_nonce_of_another_size_is_a_value_error(size: int) -> None:
    with pytest.raises(LocalProtocolError, match=f"a nonce is 24 bytes, got {size}"):
        seal(v.SHARED_KEY, b"", nonce=bytes(size))


# Mesh keys


@pytest.mark.parametrize(
    "text",
    [v.MESH_KEY_TEXT, v.MESH_KEY_TEXT.upper(), f"  {v.MESH_KEY_TEXT}\r\n", f"\t{v.MESH_KEY_TEXT} "],
)
def test_mesh_key_in_any_case_and_with_space_around(text: str) -> None:
    key = MeshKey.parse(text)
    assert key.to_text() == v.MESH_KEY_TEXT
    assert key == MeshKey(bytes.fromhex(v.MESH_KEY_TEXT))
    assert hash(key) == hash(MeshKey(bytes.fromhex(v.MESH_KEY_TEXT)))


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("", "want 64 hex digits, got 0"),
        ("badf00d", "want 64 hex digits, got 7"),
        ("0123456789abcdef", "want 64 hex digits, got 16"),
        (v.MESH_KEY_TEXT + "0", "want 64 hex digits, got 65"),
        (v.MESH_KEY_TEXT[:-1] + "g", "invalid hex character in key"),
        (v.MESH_KEY_TEXT[:32] + " " + v.MESH_KEY_TEXT[33:], "invalid hex character in key"),
        ("0" * 64, "the zero key grants nothing"),
    ],
)
def test_no_mesh_key(text: str, detail: str) -> None:
    with pytest.raises(InvalidKey) as caught:
        MeshKey.parse(text)
    assert str(caught.value) == f"invalid mesh key: {detail}"


def test_mesh_keys_differ_by_any_digit() -> None:
    key = MeshKey.parse(v.MESH_KEY_TEXT)
    for at in range(64):
        other = v.MESH_KEY_TEXT[:at] + ("0" if at % 16 else "1") + v.MESH_KEY_TEXT[at + 1 :]
        assert key != MeshKey.parse(other)
    assert key != v.MESH_KEY_TEXT


def test_a_path_to_load_from_may_begin_with_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    key = NodePrivate.load("~/keys/me.key", create=True)
    assert NodePrivate.load(tmp_path / "keys" / "me.key") == key
    assert not (tmp_path / "~").exists()
    with pytest.raises(ConfigError, match="the home folder is not known"):
        NodePrivate.load("~no-such-user-here/me.key")


@pytest.mark.parametrize("create", [False, True])
def test_a_path_to_load_from_with_a_nul_is_refused(create: bool) -> None:
    with pytest.raises(ConfigError, match=r"key file .*: a path cannot contain NUL"):
        NodePrivate.load("me\0.key", create=create)
