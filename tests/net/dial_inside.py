"""Dial from inside a network namespace, as a script: settings as JSON in, results out.

`{"dials": [[host, port], …], "settings": {…}, "bind_to_default_route": bool}` becomes
`{"settings": …, "reached": [what each server sent], "sockets": [[mark, device], …]}`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from dataclasses import replace
from typing import Any

from pyderp.errors import DerpError
from pyderp.net.dial import dial_host
from pyderp.net.settings import NetworkSettings


async def dial(task: dict[str, Any]) -> dict[str, Any]:
    sockets: list[tuple[int, str]] = []

    def watch(sock: socket.socket) -> None:
        device = sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
        mark = sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
        sockets.append((mark, device.rstrip(b"\0").decode()))

    bind = {"TS_FORCE_LINUX_BIND_TO_DEVICE": "1"} if task.get("bind_to_default_route") else {}
    settings = NetworkSettings.from_environment(bind)
    settings = replace(settings, **task.get("settings", {}), before_connect=watch)
    reached = []
    for host, port in task["dials"]:
        try:
            async with asyncio.timeout(10):
                link = await dial_host(host, port, settings=settings)
                reached.append((await link.read()).decode())
                link.abort()
        except (DerpError, OSError) as e:
            reached.append(f"{type(e).__name__}: {e}")
    return {"reached": reached, "sockets": sockets}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(dial(json.loads(sys.argv[1])))))
