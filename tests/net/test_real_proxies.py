"""Proxies from other projects: tinyproxy (HTTP CONNECT) and microsocks (SOCKS5)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pyderp.errors import ProxyError
from pyderp.maps.region import DERPNode
from pyderp.net.dial import dial_host, dial_node
from pyderp.net.settings import NetworkSettings

from .proxy_servers import microsocks, tinyproxy
from .ways_out import carries, closed_port, echo, serving

NODE = DERPNode(name="900a", region_id=900, host_name="localhost", ipv6="none")


async def test_tinyproxy_takes_the_right_password_only(tmp_path: Path) -> None:
    async with (
        tinyproxy(tmp_path, user="me", password="secret") as proxy,
        serving(echo) as port,
    ):
        for userinfo in ("me:secret", "me:wrong", ""):
            settings = NetworkSettings(proxy=f"http://{userinfo}@127.0.0.1:{proxy}")
            for dial in (
                dial_node(NODE, port, settings=settings),
                dial_host("localhost", port, settings=settings),
            ):
                if userinfo == "me:secret":
                    link = await dial
                    await carries(link)
                    link.abort()
                else:
                    with pytest.raises(ProxyError, match=r"CONNECT to localhost:\d+: 40[17] "):
                        await dial


async def test_tinyproxy_takes_a_verbatim_authorization(tmp_path: Path) -> None:
    async with (
        tinyproxy(tmp_path, user="me", password="secret") as proxy,
        serving(echo) as port,
    ):
        settings = NetworkSettings(
            proxy=f"127.0.0.1:{proxy}", proxy_authorization="Basic bWU6c2VjcmV0"
        )
        link = await dial_host("localhost", port, settings=settings)
        await carries(link)
        link.abort()


async def test_microsocks_takes_the_right_password_only() -> None:
    async with microsocks(user="me", password="secret") as proxy, serving(echo) as port:
        for userinfo in ("me:secret@", "me:wrong@", ""):
            settings = NetworkSettings(proxy=f"socks5://{userinfo}127.0.0.1:{proxy}")
            for dial in (
                dial_node(NODE, port, settings=settings),
                dial_node(replace(NODE, ipv4="127.0.0.1"), port, settings=settings),
                dial_host("localhost", port, settings=settings),
            ):
                if userinfo == "me:secret@":
                    link = await dial
                    await carries(link)
                    link.abort()
                else:
                    with pytest.raises(ProxyError, match="SOCKS5 proxy socks5://"):
                        await dial


async def test_the_error_has_the_reason_of_microsocks() -> None:
    async with microsocks(user="me", password="secret") as proxy:
        settings = NetworkSettings(proxy=f"socks5h://me:secret@127.0.0.1:{proxy}")
        with pytest.raises(ProxyError, match=r"127.0.0.1:\d+: .*[Rr]efused"):
            await dial_host("127.0.0.1", closed_port(), settings=settings)
