"""All flags of the relay, in the order of its help."""

from __future__ import annotations

from typing import Final

from pyderp.cli.relayflags.serviceflags import (
    ADMISSION_FLAGS,
    CONNECTION_FLAGS,
    MESH_FLAGS,
    SERVED_FLAGS,
)
from pyderp.cli.relayflags.startflags import (
    BASIC_FLAGS,
    CERTIFICATE_FLAGS,
    PROCESS_FLAGS,
    UNBUILT_FLAGS,
)

__all__ = ["BY_NAME", "FLAGS"]

FLAGS: Final = (
    *BASIC_FLAGS,
    *CERTIFICATE_FLAGS,
    *ADMISSION_FLAGS,
    *MESH_FLAGS,
    *SERVED_FLAGS,
    *CONNECTION_FLAGS,
    *PROCESS_FLAGS,
    *UNBUILT_FLAGS,
)

BY_NAME: Final = {flag.name: flag for flag in FLAGS}
