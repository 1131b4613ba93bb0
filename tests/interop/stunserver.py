"""pyderp's STUN server in its own process, here or in a namespace."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SERVE = """
import asyncio, sys
from pyderp.server.services.stun import StunServer, stun_sockets
async def main():
    server = StunServer(stun_sockets(sys.argv[1], 0))
    server.start()
    print(server.addresses[0][1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.aclose()
    print(server.counters, flush=True)
asyncio.run(main())
"""
_END_WITHIN = 20.0


@contextmanager
def our_stun_server(host: str, command: Callable[[list[str]], list[str]] = list) -> Iterator[int]:
    """Serve on ``host`` until the block ends; yields the port. No read or write may fail.

    ``command`` turns a command line into one that runs in a namespace.
    """
    process = subprocess.Popen(
        command([sys.executable, "-c", _SERVE, host]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
        counters, _ = process.communicate("", timeout=_END_WITHIN)
        assert "read_error=0, write_error=0" in counters
        assert "no_local_addr=0" in counters
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
