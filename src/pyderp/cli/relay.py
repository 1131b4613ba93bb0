"""`pyderp relay`: flags in, a running relay out. Names are `derper`'s, in GNU spelling."""

from __future__ import annotations

from typing import Any

from pyderp.cli.relayflags.load import load_settings
from pyderp.cli.relayflags.options import flag_layer, takes_flags
from pyderp.cli.relayflags.settings import Problems

__all__ = ["EPILOG", "relay"]

EPILOG = """**Examples**

A relay on this machine only, for trying things out:

`pyderp relay --dev`

On ports 443, 80 and 3478/udp, with a certificate from Let's Encrypt:

`pyderp relay --hostname=relay.example.com`

By IP address, with a self-signed certificate that the DERP map pins:

`pyderp relay --hostname=203.0.113.7`

The DERP map of that relay, for Tailscale's policy file and for headscale:

`pyderp relay --hostname=203.0.113.7 --show-map=all`

With a certificate that you have, in /etc/derp/derp.example.com.crt and .key:

`pyderp relay --certmode=manual --certdir=/etc/derp --hostname=derp.example.com -c relay.key`

All settings from a file; is it right?

`pyderp relay --config-file=/etc/pyderp/relay.toml --check`
"""


@takes_flags
def relay(**values: Any) -> None:
    """Run a DERP relay."""
    # Not at the top: the other commands begin without it.
    from pyderp.cli.relayrun import Loaded, carry_out

    given = flag_layer(values)

    def load() -> Loaded:
        problems = Problems()
        return Loaded(load_settings(given, problems), problems)

    carry_out(load, given["log-format"])
