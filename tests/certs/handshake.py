"""TLS handshakes in memory."""

from __future__ import annotations

import ssl

from pyderp.certs import CertificateSource, ServerContexts, meta_certificate
from pyderp.keys import NodePrivate
from tests.server.certificates import trusting_nobody

NAME = "derp.example.com"
ANY = "127.0.0.1"
SERVER = NodePrivate.generate().public
META = meta_certificate(SERVER)


def context_of(source: CertificateSource, local_address: str = ANY) -> ssl.SSLContext:
    """Return the TLS context with which a relay with this source starts handshakes."""
    return ServerContexts(source, META).context(local_address)


def shake_hands(
    context: ssl.SSLContext, server_name: str | None, client: ssl.SSLContext | None = None
) -> ssl.SSLObject:
    """Do a handshake in memory; return the client's side."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = (client or trusting_nobody()).wrap_bio(to_client, to_server, server_hostname=server_name)
    far = context.wrap_bio(to_server, to_client, server_side=True)
    waiting: list[ssl.SSLObject] = [near, far]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                if side is far:
                    continue  # an alert for the client is in the output
                raise
            waiting.remove(side)
        if not waiting:
            break
    assert not waiting
    return near


def presented(context: ssl.SSLContext, server_name: str | None = NAME) -> list[bytes]:
    """Return the chain that a client is shown, as DER."""
    near = shake_hands(context, server_name)
    chain = near._sslobj.get_unverified_chain()  # type: ignore[attr-defined]
    return [ssl.PEM_cert_to_DER_cert(each.public_bytes()) for each in chain]
