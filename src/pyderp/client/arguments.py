"""Checks and defaults of the arguments that a program passes to a client."""

from __future__ import annotations

from pyderp.arguments import check_type
from pyderp.client.config import ClientConfig, GetRegion
from pyderp.keys import NodePrivate, NodePublic
from pyderp.maps.region import DERPRegion

__all__ = ["as_config", "as_get_region", "as_private_key", "check_peer", "check_region"]


def as_config(config: ClientConfig | None) -> ClientConfig:
    """Returns the settings, by default those of a new `ClientConfig`.

    Raises:
        ConfigError: of another type, such as a dict.
    """
    check_type("config", config, ClientConfig, type(None))
    return ClientConfig() if config is None else config


def as_private_key(private_key: NodePrivate | None) -> NodePrivate:
    """Returns the key, by default a new one.

    Raises:
        ConfigError: of another type, such as its text or a path.
    """
    hint = (
        ': NodePrivate.load(path) reads one from a file, NodePrivate.parse("privkey:…") makes '
        "one of text"
    )
    check_type("private_key", private_key, NodePrivate, type(None), hint=hint)
    return NodePrivate.generate() if private_key is None else private_key


def as_get_region(region: DERPRegion) -> GetRegion:
    """Returns a function that returns the region.

    Raises:
        ConfigError: it is not a region.
    """
    check_region(region)
    return lambda: region


def check_region(region: object, name: str = "region") -> None:
    """Refuse a value that is not a region, such as the id of one.

    Raises:
        ConfigError: it is no `DERPRegion`.
    """
    hint = ", as DERPMap.region(id_or_code) returns it if the map has it, or a function"
    check_type(name, region, DERPRegion, hint=hint)


def check_peer(key: object, what: str) -> None:
    """Refuse a value that is not a public key, such as its text.

    Args:
        what: the role of the key in the call, for the error.

    Raises:
        TypeError: it is no `NodePublic`.
    """
    if not isinstance(key, NodePublic):
        raise TypeError(
            f"{what} is a {type(key).__name__}; want a NodePublic, which "
            'NodePublic.parse("nodekey:…") makes of text'
        )
