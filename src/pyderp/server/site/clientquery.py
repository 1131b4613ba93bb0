"""Parses requests for `/debug/clients/`: the filter, the order, and where the page begins."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import unquote_plus, urlencode

from pyderp.addresses import unmapped
from pyderp.keys import KEY_LEN, NodePublic
from pyderp.relay.connection import Connection
from pyderp.server.site.gotext import (
    address_text,
    parse_address,
    parse_address_port,
    parse_duration,
    parse_integer,
    parse_network,
    quote,
)

__all__ = [
    "COUNTERS",
    "SORTS",
    "UNKNOWN_ADDRESS",
    "AddressKey",
    "ClientsQuery",
    "address_key",
    "parse_fields",
    "wants_json",
]

T = TypeVar("T")

AddressKey: TypeAlias = tuple[int, bytes, str]
"""Bits, address and zone. Compares as Go's addresses do; an unknown address is the smallest."""

COUNTERS: Final = {
    "rx": "bytes_received",
    "tx": "bytes_sent",
    "rxpkts": "packets_received",
    "txpkts": "packets_sent",
}
"""The orders by a counter, and the attribute of a connection that has it."""
SORTS: Final = ("key", "ip", "conn", "connected", *COUNTERS)
UNKNOWN_ADDRESS: Final = "unknown"
"""The cursor after connections without an address, such as those on a Unix socket."""

_DEFAULT_LIMIT: Final = 100
_MOST: Final = 1000
_KEY_PREFIX: Final = "nodekey:"
_BAD_ESCAPE: Final = re.compile("%(?![0-9A-Fa-f]{2})")


def wants_json(fields: Mapping[str, Sequence[str]]) -> bool:
    """Return whether the request asks for JSON.

    Raises:
        ValueError: it asks for a format that is neither HTML nor JSON.
    """
    form = _first(fields, "format")
    if form not in ("", "html", "json"):
        raise ValueError(f"bad format {quote(form)}; want json or html")
    return form == "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientsQuery:
    """A request with a filter."""

    filter: tuple[str, str]
    """The filter's parameter and its value in normal form: `("cidr", "192.0.2.0/24")`."""
    address: AddressKey | None = None
    network: tuple[int, int, int] | None = None
    """Bits of an address, bits after the prefix, and the prefix as a number."""
    key: NodePublic | None = None
    apps: tuple[str, ...] | None = None
    """AppNames, one of which a connection must have; `None`: any."""
    app_set: frozenset[str] = frozenset()
    """`apps` as a set, so that the look-up is as fast with many names."""

    sort: str = "key"
    descending: bool = False
    limit: int = _DEFAULT_LIMIT
    json: bool = False
    after: Any = None
    """A value of the sort field; the page begins after it. `None`: the first page."""
    after_number: int | None = None
    """Among the connections with the value `after`, the page begins after this number."""
    debug_key: str = ""
    """The `debugkey` of the request; links repeat it."""

    @classmethod
    def parse(cls, fields: Mapping[str, Sequence[str]], *, now: int) -> ClientsQuery | None:
        """Read the fields of a request.

        Args:
            fields: all values of the query by name.
            now: nanoseconds since 1970.

        Returns:
            `None` if the request has no filter.

        Raises:
            ValueError: a value is invalid; the text is the answer to the request.
        """
        json = wants_json(fields)
        found = _filters(fields)
        apps = tuple(fields["app"]) if "app" in fields else None
        if not found and apps is None:
            return None
        if len(found) > 1:
            raise ValueError("only one of all, ip, cidr, or key may be given")
        order = _first(fields, "sort")
        sort, descending = order.removeprefix("-") or "key", order.startswith("-")
        if sort not in SORTS or order == "-":
            raise ValueError(
                f"bad sort {quote(order)}; want {', '.join(SORTS[:-1])}, or {SORTS[-1]}, "
                "optionally with a leading -"
            )
        limit = _limit(_first(fields, "limit"))
        after = _cursor(sort, _first(fields, "after"), descending=descending, now=now)
        number = _first(fields, "afterconn") if after is not None and sort != "conn" else ""
        return cls(
            **(found[0] if found else {"filter": ("all", "1")}),
            apps=apps,
            app_set=frozenset(apps or ()),
            sort=sort,
            descending=descending,
            limit=limit,
            json=json,
            after=after,
            after_number=_named("afterconn", number, parse_integer) if number else None,
            debug_key=_first(fields, "debugkey"),
        )

    def __str__(self) -> str:
        """Return the filter in words, for the page and `derper`'s JSON."""
        kind, value = self.filter
        text = {"all": "all clients", "key": f"connections for {value}"}.get(
            kind, f"clients from {value}"
        )
        if self.apps is not None:
            text += " with app " + " or ".join(app or "(none)" for app in self.apps)
        return text

    def matches(self, connection: Connection) -> bool:
        """Return whether a connection passes the filter. The caller applies a filter by key."""
        if self.apps is not None and connection.app_name not in self.app_set:
            return False
        if self.address is not None:
            return address_key(connection.peer[0]) == self.address
        if self.network is not None:
            bits, shift, prefix = self.network
            own_bits, packed, zone = address_key(connection.peer[0])
            return own_bits == bits and not zone and int.from_bytes(packed) >> shift == prefix
        return True

    def is_past_cursor(self, value: Any, number: int) -> bool:
        """Return whether a connection is on this page or a later one.

        Args:
            value: the connection's value of the sort field.
            number: the connection's number.
        """
        if self.after is None:
            return True
        here, cursor = value, self.after
        if self.after_number is not None:
            here, cursor = (value, number), (self.after, self.after_number)
        return bool(here < cursor if self.descending else here > cursor)

    def link(self, order: str = "", after: str = "", after_number: str = "") -> str:
        """Return a relative URL with the same filter, limit and format; `order`: another order."""
        order = order or (f"-{self.sort}" if self.descending else self.sort)
        fields: dict[str, Sequence[str]] = {
            self.filter[0]: [self.filter[1]],
            "app": self.apps or (),
            "sort": [order],
            "after": [after] if after else [],
            "afterconn": [after_number] if after_number else [],
            "limit": [str(self.limit)] if self.limit != _DEFAULT_LIMIT else [],
            "format": ["json"] if self.json else [],
            "debugkey": [self.debug_key] if self.debug_key else [],
        }
        return "?" + urlencode(sorted(fields.items()), doseq=True, errors="surrogateescape")


def parse_fields(target: str) -> dict[str, list[str]]:
    """Return all values of a target's query, as Go's `url.ParseQuery` does.

    A field with a semicolon or a broken escape is ignored.
    """
    fields: dict[str, list[str]] = {}
    for part in target.partition("?")[2].split("&"):
        if part and ";" not in part and not _BAD_ESCAPE.search(part):
            name, _, value = part.partition("=")
            values = fields.setdefault(unquote_plus(name, errors="surrogateescape"), [])
            values.append(unquote_plus(value, errors="surrogateescape"))
    return fields


def address_key(host: str) -> AddressKey:
    """Return a connection's address in a form to compare and to sort by."""
    text, _, zone = host.partition("%")
    try:
        packed = socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except OSError:
        return 0, b"", ""
    return 8 * len(packed), packed, zone


def _first(fields: Mapping[str, Sequence[str]], name: str) -> str:
    return fields[name][0] if name in fields else ""


def _filters(fields: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if "all" in fields:
        found.append({"filter": ("all", "1")})
    if text := _first(fields, "ip"):
        address = unmapped(_named("ip", text, parse_address))
        found.append(
            {"filter": ("ip", address_text(address)), "address": address_key(str(address))}
        )
    if text := _first(fields, "cidr"):
        base, length = _named("cidr", text, parse_network)
        shift = base.max_prefixlen - length
        network = (base.max_prefixlen, shift, int(base) >> shift)
        found.append({"filter": ("cidr", f"{address_text(base)}/{length}"), "network": network})
    if text := _first(fields, "key"):
        key = _named("key", text, _node_key)
        found.append({"filter": ("key", str(key)), "key": key})
    return found


def _named(name: str, text: str, parse: Callable[[str], T]) -> T:
    try:
        return parse(text)
    except ValueError as e:
        raise ValueError(f"bad {name} {quote(text)}: {e}") from None


def _node_key(text: str) -> NodePublic:
    if not text.startswith(_KEY_PREFIX):
        raise ValueError(f"key hex string doesn't have expected type prefix {_KEY_PREFIX}")
    digits = text.removeprefix(_KEY_PREFIX)
    size = len(digits.encode("utf-8", "surrogateescape"))
    if size != 2 * KEY_LEN:
        raise ValueError(f"key hex has the wrong size, got {size} want {2 * KEY_LEN}")
    if not re.fullmatch("[0-9A-Fa-f]*", digits):
        raise ValueError("invalid hex character in key")
    return NodePublic(bytes.fromhex(digits))


def _limit(text: str) -> int:
    if not text:
        return _DEFAULT_LIMIT
    try:
        limit = parse_integer(text)
    except ValueError:
        limit = 0
    if limit < 1:
        raise ValueError(f"bad limit {quote(text)}")
    return min(limit, _MOST)


def _cursor(sort: str, text: str, *, descending: bool, now: int) -> Any:
    """Return the value of the sort field after which the page begins; `None` without a cursor."""
    if not text:
        return None
    if sort == "connected":
        return _time_cursor(text, now)
    try:
        if sort == "key":
            return _node_key(text).raw
        if sort == "ip":
            return _address_cursor(text, descending=descending)
        return parse_integer(text, signed=sort == "conn")
    except ValueError as e:
        raise ValueError(f"bad after {quote(text)} for sort by {sort}: {e}") from None


def _time_cursor(text: str, now: int) -> int:
    try:
        return parse_integer(text)
    except ValueError:
        pass
    try:
        return now - parse_duration(text)
    except ValueError:
        raise ValueError(
            f"bad after {quote(text)} for sort by connected; want Unix nanoseconds or a duration"
        ) from None


def _address_cursor(text: str, *, descending: bool) -> tuple[AddressKey, int]:
    if text == UNKNOWN_ADDRESS:
        return address_key(""), 0
    try:
        address, port = parse_address_port(text)
    except ValueError as e:
        # An address without a port: the page begins after all ports of it.
        try:
            return address_key(str(parse_address(text))), 0 if descending else 0xFFFF
        except ValueError:
            raise e from None
    return address_key(str(address)), port
