from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyderp.keys import NodePrivate
from pyderp.wire.nonces import OwnNonces
from tests import vectors as v


def nonces(private: NodePrivate, role: bytes, random: bytes = v.CLIENT_NONCE) -> OwnNonces:
    return OwnNonces(private, role, random=lambda size: random[:size])


@given(st.binary(min_size=24, max_size=24))
def test_what_was_made_is_known_again_by_its_maker_alone(random: bytes) -> None:
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


def test_others_are_not_taken_for_own() -> None:
    maker = nonces(v.CLIENT, b"relay")
    nonce = maker.make()
    for at in range(24):
        assert not maker.made(nonce[:at] + bytes([nonce[at] ^ 1]) + nonce[at + 1 :])
    assert not maker.made(v.SERVER_NONCE)
    assert not maker.made(b"")
