"""Request a relay's debug pages from many addresses, as a script in its own network namespace.

Requests come as JSON, `[[port, tls, method, target, source, destination, [header, …]], …]`;
answers are printed as `[[status, location, body], …]`.
"""

from __future__ import annotations

import json
import sys

from tests.interop.server.support import ask, request
from tests.server.certificates import trusting_nobody


def main() -> None:
    context = trusting_nobody()
    answers = []
    for port, tls, method, target, source, destination, headers in json.load(sys.stdin):
        answer = ask(
            (destination, port),
            request(target, *headers, method=method, host="relay.test"),
            tls=context if tls else None,
            source=source,
        )
        location = answer.headers.get("location", "")
        answers.append((answer.status, location, answer.body.decode(errors="replace")))
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
