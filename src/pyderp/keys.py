"""Keys of nodes and meshes: parse, print, compare, seal and open; key files.

Texts, binary form and error messages are those of Tailscale's `types/key`; see
`docs/reference/wire.md` for the table. No parse error repeats its input, which may be secret.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from functools import total_ordering
from pathlib import Path
from typing import Final

import nacl.bindings
import nacl.exceptions

from pyderp import gojson
from pyderp.errors import BadBox, ConfigError, InvalidKey, LocalProtocolError
from pyderp.secretfiles import (
    make_private_folder,
    read_secret,
    warn_if_replaceable,
    write_atomically,
)

__all__ = ["KEY_LEN", "NONCE_LEN", "MeshKey", "NodePrivate", "NodePublic", "load_or_create_key"]
__all__ += ["read_mesh_key"]

KEY_LEN: Final = 32
NONCE_LEN: Final = 24

_PRIVATE_PREFIX: Final = "privkey:"
_PUBLIC_PREFIX: Final = "nodekey:"
_BINARY_PREFIX: Final = b"np"
_HEX_DIGITS: Final = frozenset("0123456789abcdefABCDEF")
_ZERO: Final = bytes(KEY_LEN)


def _from_hex(text: str, prefix: str = "") -> bytes:
    if not _as_text(text).startswith(prefix):
        raise InvalidKey(f"key hex string doesn't have expected type prefix {prefix}")
    digits = text[len(prefix) :]
    if len(digits) != 2 * KEY_LEN:
        wanted = f"{prefix} and {2 * KEY_LEN}" if prefix else 2 * KEY_LEN
        raise InvalidKey(f"want {wanted} hex digits, got {len(digits)}")
    if not _HEX_DIGITS.issuperset(digits):
        raise InvalidKey("invalid hex character in key")
    return bytes.fromhex(digits)


def _as_text(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"a key to parse is a {type(text).__name__}; want str")
    return text


def _check_raw(raw: bytes) -> bytes:
    if len(raw) != KEY_LEN:
        raise InvalidKey(f"a key is {KEY_LEN} bytes, got {len(raw)}")
    return bytes(raw)


@total_ordering
class NodePublic:
    """A node's Curve25519 public key, which is its address in DERP (`key.NodePublic`).

    Hashable and ordered bytewise. The zero key can be held, printed and compared, but
    it is not a client's address and never opens or seals a box.

    Args:
        raw: the 32 bytes as they go over the wire.

    Raises:
        InvalidKey: `raw` is not 32 bytes.
    """

    __slots__ = ("raw",)

    raw: bytes

    def __init__(self, raw: bytes) -> None:
        self.raw = _check_raw(raw)

    @classmethod
    def parse(cls, text: str) -> NodePublic:
        """Parse `nodekey:` and 64 hex digits of either case.

        Raises:
            InvalidKey: wrong prefix, length or digit.
        """
        return cls(_from_hex(text, _PUBLIC_PREFIX))

    @classmethod
    def parse_untyped(cls, digits: str) -> NodePublic:
        """Parse 64 hex digits without a prefix, as in `Derp-Public-Key` and meta certificates."""
        return cls(_from_hex(digits))

    @classmethod
    def from_binary(cls, data: bytes) -> NodePublic:
        """Parse the 34-byte binary form: ASCII `np` and the key.

        Raises:
            InvalidKey: another prefix or length.
        """
        if not data.startswith(_BINARY_PREFIX):
            raise InvalidKey("a binary node key begins with np")
        return cls(data[len(_BINARY_PREFIX) :])

    def to_binary(self) -> bytes:
        """Returns the 34-byte binary form: ASCII `np` and the key."""
        return _BINARY_PREFIX + self.raw

    def untyped_hex(self) -> str:
        """Returns 64 lower-case hex digits (`UntypedHexString`)."""
        return self.raw.hex()

    def short(self) -> str:
        """Returns the form for logs, `[`, five base64 characters, `]`; empty for the zero key."""
        if self.is_zero():
            return ""
        return f"[{base64.b64encode(self.raw)[:5].decode('ascii')}]"

    def is_zero(self) -> bool:
        """Whether all 32 bytes are zero."""
        return self.raw == _ZERO

    def __str__(self) -> str:
        return _PUBLIC_PREFIX + self.raw.hex()

    def __repr__(self) -> str:
        return f"NodePublic.parse({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NodePublic) and self.raw == other.raw

    def __lt__(self, other: NodePublic) -> bool:
        return self.raw < other.raw

    def __hash__(self) -> int:
        return hash(self.raw)


class NodePrivate:
    """A node's Curve25519 private key (`key.NodePrivate`).

    Unclamped keys work: X25519 clamps internally. `repr` and `str` never show the
    key; `to_text` does.

    Args:
        raw: 32 bytes, not all zero.

    Raises:
        InvalidKey: wrong length, or the zero key.
    """

    __slots__ = ("_raw", "public")

    public: NodePublic
    """The public key that belongs to this key."""

    def __init__(self, raw: bytes) -> None:
        self._raw = _check_raw(raw)
        if self._raw == _ZERO:
            raise InvalidKey("the zero key is not a private key")
        self.public = NodePublic(nacl.bindings.crypto_scalarmult_base(self._raw))

    @classmethod
    def generate(cls, random: bytes | None = None) -> NodePrivate:
        """Returns a new, clamped key.

        Args:
            random: 32 bytes to make the key of; by default new ones from the system.
        """
        b = bytearray(nacl.bindings.randombytes(KEY_LEN) if random is None else _check_raw(random))
        b[0] &= 248
        b[31] = (b[31] & 127) | 64
        return cls(bytes(b))

    @classmethod
    def load(cls, path: str | Path, *, create: bool = False) -> NodePrivate:
        """Read the key in a file, so that a program has the same key each time that it runs.

        Args:
            path: a file as `pyderp key new -o` and relays make it, `{"PrivateKey": "privkey:…"}`,
                or with `privkey:` and 64 hex digits alone. `~` is the home folder.
            create: make the file with a new key if it is missing, for this user only: the file
                with mode 0600, missing folders with 0700.

        Raises:
            ConfigError: the file is missing, cannot be read or made, or holds no key. The text
                never shows its content.
        """
        try:
            return _load(Path(path).expanduser(), create=create)
        except RuntimeError as e:
            raise ConfigError(f"the key file {path}: the home folder is not known") from e

    @classmethod
    def parse(cls, text: str) -> NodePrivate:
        """Parse `privkey:` and 64 hex digits of either case.

        Raises:
            InvalidKey: wrong prefix, length or digit, or the zero key.
        """
        return cls(_from_hex(text, _PRIVATE_PREFIX))

    def to_text(self) -> str:
        """Returns `privkey:` and 64 lower-case hex digits. This is the secret itself."""
        return _PRIVATE_PREFIX + self._raw.hex()

    def shared_key(self, peer: NodePublic) -> bytes:
        """Returns the 32-byte NaCl box key shared with `peer` (`crypto_box_beforenm`).

        Raises:
            BadBox: `peer` is the zero key or another point of low order.
        """
        try:
            return nacl.bindings.crypto_box_beforenm(peer.raw, self._raw)
        except (nacl.exceptions.RuntimeError, RuntimeError) as e:
            raise BadBox(f"no secret can be shared with key {peer}") from e

    def derive(self, purpose: bytes) -> bytes:
        """Returns 32 bytes for a purpose, which only a holder of this key can compute."""
        return hashlib.blake2b(purpose, digest_size=KEY_LEN, key=self._raw).digest()

    def seal_to(self, peer: NodePublic, cleartext: bytes, *, nonce: bytes) -> bytes:
        """Box `cleartext` for `peer`: nonce 24 ‖ tag 16 ‖ ciphertext.

        Args:
            nonce: 24 bytes, never used twice between the same two keys.

        Raises:
            BadBox: `peer` is not a usable key.
        """
        return seal(self.shared_key(peer), cleartext, nonce=nonce)

    def open_from(self, peer: NodePublic, sealed: bytes) -> bytes:
        """Open a box that `peer` sealed for this key.

        Raises:
            BadBox: it was not sealed by `peer` for this key, or was changed, or `peer` is not a
                usable key.
        """
        return open_sealed(self.shared_key(peer), sealed)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NodePrivate) and hmac.compare_digest(self._raw, other._raw)

    def __hash__(self) -> int:
        return hash(self.public)

    def __repr__(self) -> str:
        return f"<NodePrivate of {self.public}>"


def seal(shared: bytes, cleartext: bytes, *, nonce: bytes) -> bytes:
    """Box `cleartext` under a key from `NodePrivate.shared_key`: nonce ‖ tag ‖ ciphertext."""
    if len(nonce) != NONCE_LEN:
        raise LocalProtocolError(f"a nonce is {NONCE_LEN} bytes, got {len(nonce)}")
    return nonce + nacl.bindings.crypto_box_afternm(cleartext, nonce, shared)


def open_sealed(shared: bytes, sealed: bytes) -> bytes:
    """Open nonce ‖ tag ‖ ciphertext under a key from `NodePrivate.shared_key`.

    Raises:
        BadBox: too short, or not sealed under this key, or changed.
    """
    try:
        return nacl.bindings.crypto_box_open_afternm(sealed[NONCE_LEN:], sealed[:NONCE_LEN], shared)
    except (nacl.exceptions.CryptoError, ValueError) as e:
        raise BadBox("box does not open") from e


class MeshKey:
    """The secret that relays of one mesh share (`key.DERPMesh`): 32 bytes, 64 hex digits.

    Raises:
        InvalidKey: wrong length, or the zero key, which means "no key" and grants nothing.
    """

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        self._raw = _check_raw(raw)
        if self._raw == _ZERO:
            raise InvalidKey("invalid mesh key: the zero key grants nothing")

    @classmethod
    def parse(cls, text: str) -> MeshKey:
        """Parse 64 hex digits of either case; white space around them is ignored.

        Raises:
            InvalidKey: anything else; the text contains `invalid mesh key`.
        """
        try:
            return cls(_from_hex(_as_text(text).strip()))
        except InvalidKey as e:
            detail = str(e).removeprefix("invalid mesh key: ")
            raise InvalidKey(f"invalid mesh key: {detail}") from None

    def to_text(self) -> str:
        """Returns 64 lower-case hex digits. This is the secret itself."""
        return self._raw.hex()

    def __eq__(self, other: object) -> bool:
        # In constant time, as key.DERPMesh.Equal: by the time of a comparison that stops at the
        # first difference, a client could learn the key byte by byte.
        return isinstance(other, MeshKey) and hmac.compare_digest(self._raw, other._raw)

    def __hash__(self) -> int:
        return hash(self._raw)

    def __repr__(self) -> str:
        return "<MeshKey>"


# Files


def load_or_create_key(path: Path) -> NodePrivate:
    """Read the key in a file of `derper`'s form, `{"PrivateKey": "privkey:…"}`.

    A missing file is made, with its parents: mode 0600 and 0700, complete or not at all. Two relays
    that start at the same time on one path end up with the same key.

    Raises:
        ConfigError: the file cannot be read or made, or holds no key; its content is never shown.
    """
    # Twice: another process may make the file between the read and the write.
    for _ in range(2):
        try:
            text = read_secret(path, "key file")
        except ConfigError as e:
            if not isinstance(e.__cause__, FileNotFoundError):
                raise
        else:
            warn_if_replaceable(path)
            return _parse(path, text)
        key = NodePrivate.generate()
        document = json.dumps({"PrivateKey": key.to_text()}, indent="\t")
        try:
            make_private_folder(path.parent)
            if write_atomically(path, document.encode(), mode=0o600, replace=False):
                return key
        except OSError as e:
            raise ConfigError(f"cannot make the key file {path}: {e.strerror}") from e
    raise ConfigError(f"the key file {path} appears and disappears; cannot read it")


def _load(path: Path, *, create: bool) -> NodePrivate:
    try:
        text = read_secret(path, "key file").strip()
    except ConfigError as e:
        if not isinstance(e.__cause__, FileNotFoundError):
            raise
        if create:
            return load_or_create_key(path)
        raise ConfigError(
            f"the key file {path} does not exist; use create=True, or run: pyderp key new -o {path}"
        ) from e.__cause__
    if not text.startswith("privkey:"):
        return _parse(path, text)
    try:
        return NodePrivate.parse(text)
    except InvalidKey as e:
        raise ConfigError(f"the key file {path} holds no usable key: {e}") from None


def _parse(path: Path, text: str) -> NodePrivate:
    try:
        document = gojson.parse(text)
    except ValueError:
        # The parser's error is dropped, as it would quote the file.
        alone = (
            "holds a key alone and" if text.lstrip().startswith("privkey:") else "is not JSON; it"
        )
        raise ConfigError(
            f'the key file {path} {alone} must hold {{"PrivateKey": "privkey:…"}}, as '
            "`pyderp key new -o FILE` makes it"
        ) from None
    value = document.get("PrivateKey") if isinstance(document, dict) else None
    if not isinstance(value, str):
        raise ConfigError(
            f'the key file {path} lacks "PrivateKey"; it must hold {{"PrivateKey": "privkey:…"}}'
        )
    try:
        return NodePrivate.parse(value)
    except InvalidKey as e:
        raise ConfigError(f"the key file {path} holds no usable key: {e}") from None


def read_mesh_key(path: Path) -> MeshKey:
    """Read the mesh key in a file: 64 hex digits, white space around them ignored.

    Raises:
        ConfigError: the file cannot be read or holds no mesh key.
    """
    text = read_secret(path, "mesh key file")
    try:
        return MeshKey.parse(text)
    except InvalidKey as e:
        raise ConfigError(f"the mesh key file {path} cannot be used: {e}") from None
