"""Why connecting failed, as a value that programs can compare."""

from __future__ import annotations

from enum import Enum

__all__ = ["FailureReason"]


class FailureReason(Enum):
    """Why connecting failed, for programs: the text of an error is for people, and may change.

    `DialError`, `TLSError`, `BadUpgrade` and their subclasses have one as `reason`. Where several
    addresses of a host failed, the error has the reason that stands first here.
    """

    # No connection
    BAD_MAP = "bad map"
    """The entry of the region or node in the DERP map cannot be used."""
    TIMEOUT = "timeout"
    REFUSED = "refused"
    """Nothing listens at that address and port."""
    UNKNOWN_NAME = "unknown name"
    """The name has no address, or the look-up failed."""
    CUT = "cut"
    """The connection was reset or closed."""
    UNREACHABLE = "unreachable"
    """Any other error of the system."""

    # Proxies
    PROXY_TIMEOUT = "proxy timeout"
    PROXY_UNREACHABLE = "proxy unreachable"
    PROXY_LOGIN = "proxy login"
    """The proxy requires a user and a password, or refused those that the client sent."""
    PROXY_LOGIN_UNKNOWN = "proxy login of an unknown kind"
    """The proxy takes no login by Basic, only by NTLM, Negotiate, Digest or such."""
    PROXY_REFUSED = "proxy refused"
    """The proxy works, but does not connect to the relay."""
    PROXY_BROKEN = "proxy broken"
    """The server at the proxy's address does not behave as a proxy of this kind."""

    # TLS
    NO_TLS = "no TLS"
    """The server does not speak TLS on this port."""
    TLS_NAME = "server name refused"
    """The server has no certificate for the name that the client sent."""
    TLS_REFUSED = "TLS refused"
    """The server speaks TLS, but ended the handshake with an alert or in another version."""
    TLS_FAILED = "TLS failed"
    CERTIFICATE_NOT_YET_VALID = "certificate not yet valid"
    CERTIFICATE_EXPIRED = "certificate expired"
    CERTIFICATE_OTHER_NAME = "certificate for another name"
    CERTIFICATE_UNUSABLE = "certificate unusable"
    """Refused whichever authority is trusted: a key too short, a broken signature, another use."""
    CERTIFICATE_UNTRUSTED = "certificate not trusted"
    PIN_OTHER_CERTIFICATE = "not the pinned certificate"
    PIN_OF_SEVERAL = "several certificates where one is pinned"

    # HTTP and DERP
    NO_HTTP = "no HTTP"
    """The answer is not HTTP; if the client used `http://`, it may be TLS."""
    NO_DERP = "no DERP"
