"""`pyderp relay --check`: checks settings, files and ports, and makes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pyderp.addresses import normal_name, parse_ip
from pyderp.admission.allowlist import read_allow_list
from pyderp.admission.denylist import read_deny_list
from pyderp.admission.gate import Gate
from pyderp.admission.verdict import AdmissionCounters
from pyderp.certs import import_acme, make_certificates
from pyderp.certs.credential import EXPIRES_SOON, utc_now
from pyderp.cli.output import print_error, print_line
from pyderp.cli.process import loop_factory
from pyderp.cli.relay.flags import FLAGS
from pyderp.cli.relay.layers import Settings
from pyderp.cli.relay.plan import StartPlan, make_plan
from pyderp.cli.relay.ports import check_ports
from pyderp.cli.relay.showmap import NO_DERP, STUN_HIDDEN, node_of, show_map, stun_hidden
from pyderp.config import ACMETLS, HealthRecipients, ManualTLS, RelayConfig
from pyderp.errors import ConfigError
from pyderp.extras import needs
from pyderp.keys import NodePrivate, load_or_create_key
from pyderp.native import NativeUse, load
from pyderp.server.conn.limits import read_rate_config
from pyderp.server.services.bootstrap import BootstrapDNS
from pyderp.text import counted, printable

__all__ = ["ask_tailscaled", "check_all", "check_files", "read_key"]

_HEALTH_TO_ALL: Final = (
    "--health=all: a single Health frame takes a tailscale-rs node off the relay until its process "
    "restarts; --health=known sends them to clients that are known to take them"
)


_ADMISSION: Final = frozenset(flag.name for flag in FLAGS if flag.setting.startswith("admission."))


def check_all(settings: Settings) -> None:
    """Print what is fine, what is doubtful and what is wrong; exits 1 if anything is wrong."""
    plan = make_plan(settings)
    lines: list[str] = []
    warnings: list[str] = []
    derp_map = ""
    with settings.collect():
        loop_factory(settings["loop"])
    if plan is not None:
        lines = check_files(plan, settings)
        with settings.collect():
            lines.append(asyncio.run(ask_tailscaled(plan.config)))
        fine, unsure = check_ports(plan, settings, _check_unix)
        lines += fine
        warnings = unsure + _doubts(plan, settings)
        if settings["show-map"]:
            with settings.collect():
                derp_map = _map(plan, settings["show-map"], warnings)
    for line in filter(None, lines):
        print_line(f"ok: {line}")
    for line in warnings:
        print_line(f"warning: {line}")
    for problem in settings.problems:
        print_error(f"pyderp: {problem}")
    if settings.problems:
        sys.exit(1)
    print_line("ok: the relay can start")
    if derp_map:
        print_line(f"\n{derp_map}")


def _map(plan: StartPlan, form: str, warnings: list[str]) -> str:
    """Returns the DERP map for `--show-map`; empty, with a warning, if a check must not make it.

    Raises:
        ConfigError: as `node_of`.
    """
    tls = plan.config.tls
    if isinstance(tls, ManualTLS) and _is_to_be_made(tls):
        warnings.append(
            "no DERP map: it needs the hash of the certificate, which does not exist yet; it "
            "is made by --show-map without --check, or at the first start"
        )
        return ""
    return show_map(node_of(plan), form)


def _is_to_be_made(tls: ManualTLS) -> bool:
    """Whether the certificate is a self-signed one that does not exist yet."""
    # Not at the top: it imports a library for X.509, and relays without TLS are checked, too.
    from pyderp.certs.manual import manual_paths

    self_signed = tls.cert_file is None and parse_ip(tls.hostname) is not None
    return self_signed and not all(map(_exists, manual_paths(tls)))


def check_files(plan: StartPlan, settings: Settings) -> list[str]:
    """Returns a line for each file that is fine; what is wrong is added to the settings' problems.

    A line may be empty.
    """
    checks = [
        *(_key_file, _certificate, _rate_config, _allowed_keys, _denied_keys),
        *(_mesh_hosts, _native, _libraries),
    ]
    if settings.failed.isdisjoint(_ADMISSION):  # else the plan lacks what a wrong flag asks for
        checks.append(_admission)
    lines = []
    for check in checks:
        with settings.collect():
            lines.append(check(plan))
    return lines


def read_key(path: Path) -> NodePrivate | None:
    """Returns the key in a file; `None`: there is no such file, but one can be made.

    Raises:
        ConfigError: it cannot be read or made.
    """
    if _exists(path):
        return load_or_create_key(path)
    _check_can_make(path.parent, f"the key file {path}")
    return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as e:
        raise ConfigError(f"cannot look for {path}: {e.strerror}") from e


def _check_can_make(folder: Path, what: str) -> None:
    there = folder.absolute()
    while not _exists(there):
        there = there.parent
    if not there.is_dir():
        raise ConfigError(f"cannot make {what}: {there} is not a directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot make {what}: no permission to write in {there}")


def _key_file(plan: StartPlan) -> str:
    if "key_file" in plan.missing:
        return ""
    if plan.key_file is None:
        return "key: a new one, in memory"
    key = read_key(plan.key_file)
    what = "made at the first start" if key is None else f"key {key.public}"
    return f"key file {plan.key_file}: {what}"


def _certificate(plan: StartPlan) -> str:
    tls = plan.config.tls
    if "tls" in plan.missing:
        return ""
    if tls is None:
        return f"no TLS, plain HTTP: {plan.transport.plain}"
    if isinstance(tls, ACMETLS):
        _check_can_make(tls.certdir, f"certificates in {tls.certdir}")
        _check_obtained(tls)
        return f"TLS, certificate for {tls.hostname}: from {tls.directory}, kept in {tls.certdir}"
    # Not at the top: it imports a library for X.509, and relays without TLS are checked, too.
    from pyderp.certs.manual import manual_paths

    files = manual_paths(tls)
    if _is_to_be_made(tls):
        _check_can_make(tls.certdir, f"the self-signed certificate {files[0]}")
        return f"TLS, certificate {files[0]}: self-signed, made at the first start"
    (info,) = make_certificates(tls).certificates()
    return f"TLS, certificate {files[0]}: for {tls.hostname}, until {info.not_after:%Y-%m-%d}"


def _check_obtained(tls: ACMETLS) -> None:
    """Read what a relay that used this directory noted about its attempts to get a certificate.

    Raises:
        ConfigError: they failed, and there is no certificate that clients accept.
    """
    if not _exists(tls.certdir):
        return
    # Not at the top: it imports an HTTP library.
    from pyderp.certs.schedule import INTERRUPTED
    from pyderp.certs.store import Store

    store = Store(tls.certdir)
    subject = parse_ip(tls.hostname)
    name = normal_name(tls.hostname) if subject is None else str(subject)
    record = store.load_record(name)
    # Before a relay asks the authority it notes that it was interrupted, so this is no failure.
    if record.error not in ("", INTERRUPTED) and not store.has_valid(name):
        raise ConfigError(
            f"no certificate for {name}, so every handshake fails; "
            f"{counted(record.failures, 'attempt')} failed, the last with: {record.error}"
        )


async def ask_tailscaled(config: RelayConfig) -> str:
    """Returns a line about the tailscaled that is asked about clients; empty if none is.

    Raises:
        ConfigError: it does not run or is not logged in. A relay would start, and admit no client.
    """
    if not config.admission.tailscaled:
        return ""
    with needs("relay", "questions to tailscaled"):
        from pyderp.admission.tailscaled import Tailscaled, default_socket

    path = config.admission.tailscaled_socket or default_socket()
    daemon = Tailscaled(path, AdmissionCounters())
    try:
        key = await daemon.own_key()
    finally:
        await daemon.aclose()
    if isinstance(key, str):
        raise ConfigError(
            f"tailscaled at {path} cannot be asked about clients: {key}; start it and log in, or "
            "name its socket with --socket"
        )
    return f"tailscaled at {path}"


def _rate_config(plan: StartPlan) -> str:
    path = plan.config.rate_config
    if path is None:
        return ""
    read_rate_config(path)
    return f"rate limits {path}"


def _allowed_keys(plan: StartPlan) -> str:
    path = plan.config.admission.keys_file
    return "" if path is None else f"allowed keys {path}: {len(read_allow_list(path))}"


def _denied_keys(plan: StartPlan) -> str:
    path = plan.config.admission.deny_file
    return "" if path is None else f"denied keys {path}: {len(read_deny_list(path))}"


def _admission(plan: StartPlan) -> str:
    """Returns a line that says which clients the relay admits; all sources must agree."""
    admission = plan.config.admission
    if not plan.config.derp:
        return ""
    rules = []
    if path := admission.keys_file:
        rules.append(f"whose key is in {path} ({counted(len(read_allow_list(path)), 'key')})")
    if admission.tailscaled:
        rules.append("that the tailscaled of this machine knows")
    if admission.url:
        otherwise = " (all, while it cannot be reached)" if admission.url_fail_open else ""
        rules.append(f"that {_shown(admission.url)} allows{otherwise}")
    text = f"clients {', and '.join(rules)}" if rules else "all clients that can reach it"
    if path := admission.deny_file:
        text += f", but not the {counted(len(read_deny_list(path)), 'key')} in {path}"
    return f"admits {text}"


def _shown(url: str) -> str:
    """Returns a URL without user, password and query, which may be secrets."""
    parts = urlsplit(url)
    return printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}", 200)


def _mesh_hosts(plan: StartPlan) -> str:
    # Not at the top: it imports the client.
    from pyderp.server.mesh.hosts import parse_mesh_host

    hosts = [parse_mesh_host(text).label for text in plan.config.mesh_with]
    return f"mesh with {', '.join(hosts)}" if hosts else ""


def _doubts(plan: StartPlan, settings: Settings) -> list[str]:
    """Returns a warning for each setting with which a relay starts but does not work well."""
    lines: list[str] = [plan.transport.warning] if plan.transport.warning else []
    path = plan.config.rate_config
    # If the file cannot be read, `check_files` has reported that.
    with contextlib.suppress(ConfigError):
        if path is not None and (ignored := read_rate_config(path).ignored):
            lines.append(f"rate limits {path}: unknown members are ignored: {', '.join(ignored)}")
    with settings.collect():
        lines += _expiry(plan)
    lines += plan.config.idle_app_names()
    if plan.config.health is HealthRecipients.ALL:
        lines.append(_HEALTH_TO_ALL)
    if not plan.config.derp:
        lines.append(NO_DERP)
    if stun_hidden(plan):
        lines.append(STUN_HIDDEN)
    return lines


def _expiry(plan: StartPlan) -> Iterator[str]:
    tls = plan.config.tls
    if not isinstance(tls, ManualTLS):
        return
    from pyderp.certs.manual import manual_paths

    file, *_ = files = manual_paths(tls)
    if not all(map(_exists, files)):
        return
    now = utc_now()
    for info in make_certificates(tls).certificates():
        refused = f"certificate {file}: clients that check refuse it"
        if now >= info.not_after:
            raise ConfigError(f"{refused}: it expired on {info.not_after:%Y-%m-%d %H:%M UTC}")
        if now < info.not_before:
            raise ConfigError(f"{refused} before {info.not_before:%Y-%m-%d %H:%M UTC}")
        if info.remaining(now) < EXPIRES_SOON:
            yield f"{refused} from {info.not_after:%Y-%m-%d %H:%M UTC} on; renew it"


def _native(plan: StartPlan) -> str:
    if plan.config.native is NativeUse.ON:
        load(NativeUse.ON)
    return ""


def _libraries(plan: StartPlan) -> str:
    """Import the optional libraries that the settings need, as the relay does when it starts."""
    Gate(plan.config.admission, live=tuple, revoke=lambda *_: None)
    BootstrapDNS(plan.config.bootstrap_dns)
    if isinstance(plan.config.tls, ACMETLS):
        import_acme()
    return ""


def _check_unix(path: Path) -> None:
    if not _exists(path.parent):
        raise ConfigError(f"cannot listen on unix:{path}: {path.parent} does not exist")
    _check_can_make(path.parent, f"the socket {path}")
