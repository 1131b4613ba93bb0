"""Sends STUN requests from inside a network namespace, and prints the addresses in the answers.

Its argument is a JSON list of requests: an address, a port, and the source address, or nothing. It
prints a list of answers: the source of each, and the address in it.
"""

from __future__ import annotations

import json
import socket
import sys
from typing import TypeAlias

from pyderp.wire.stun import pack_request, parse_response_untrusted

TX = b"transaction!"
Question: TypeAlias = tuple[str, int, str]


def ask(host: str, port: int, source: str) -> tuple[str, str]:
    """The source of the answer, and the address in it."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as sock:
        sock.settimeout(20)
        if source:
            sock.bind(socket.getaddrinfo(source, 0, family, kind)[0][4])
        sock.sendto(pack_request(TX), address)
        answer, sender = sock.recvfrom(2048)
    found = parse_response_untrusted(answer)
    assert found.tx_id == TX
    assert sender[1] == port
    return sender[0], str(found.address)


if __name__ == "__main__":
    questions: list[Question] = json.loads(sys.argv[1])
    sys.stdout.write(json.dumps([ask(*question) for question in questions]))
