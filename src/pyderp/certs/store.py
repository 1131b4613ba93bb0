"""The directory that keeps an ACME account, certificates, and what went wrong last.

A certificate is in a file of the name of its host, key first, in the form of Go's autocert:
so a relay takes over from `derper` in the same directory, and the other way round. What
`derper` keeps of certificates for addresses, two files, is read too, and never changed: in
manual mode a relay keeps its own in such a pair.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pyderp.certs.context import check_credential
from pyderp.certs.credential import Credential, utc_now
from pyderp.certs.leaf import info_of, is_self_signed, parse_leaf, valid_for
from pyderp.certs.schedule import Record
from pyderp.errors import ConfigError
from pyderp.secretfiles import FileStamp, file_stamp, make_private_folder, write_atomically
from pyderp.text import printable

__all__ = ["Store", "issued_credential", "order_lock"]

log = logging.getLogger("pyderp.tls")

ACCOUNT: Final = "acme-account.key"
_AUTOCERT_ACCOUNT: Final = "acme_account+key"
_BEGIN: Final = b"-----BEGIN CERTIFICATE-----"


def issued_credential(chain: bytes, key: bytes, subject: str, where: object) -> Credential:
    """Check what an authority is said to have issued.

    Args:
        chain: PEM, leaf first.
        key: PEM.
        subject: DNS name or IP address that it must be for.
        where: the file, for errors.

    Raises:
        ConfigError: it cannot be served, is for another host, or self-signed, so that no
            authority issued it. Expiry is not looked at.
    """
    leaf = parse_leaf(chain, where)
    info = info_of(leaf)
    if is_self_signed(leaf):
        raise ConfigError(f"{where}: the certificate is self-signed, no authority issued it")
    if not valid_for(leaf, subject):
        raise ConfigError(f"{where} is not for {subject!r}: it names {', '.join(info.names)}")
    credential = Credential(chain, key, info)
    check_credential(credential, str(where))
    return credential


class Store:
    """The directory. Made if missing, mode 0700; files with secrets have mode 0600.

    Raises:
        ConfigError: it cannot be made or written to.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            make_private_folder(directory)
            mode = stat.S_IMODE(directory.stat().st_mode)
        except OSError as e:
            raise ConfigError(
                f"cannot make the certificate directory {directory}: {e.strerror}"
            ) from e
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            raise ConfigError(
                f"cannot write to the certificate directory {directory}: check its owner and mode"
            )
        if mode & 0o022:
            log.warning(
                "others may write to the certificate directory %s (mode %04o); use 0700",
                directory,
                mode,
            )

    # Certificates

    def path(self, subject: str) -> Path:
        """The file with a certificate and its key."""
        return self.directory / subject.replace(":", ".")

    def load(self, subject: str) -> Credential | None:
        """The certificate of a host, if there is one that is valid now.

        A file that holds none is kept aside with the ending `.bad`; a pair stays.

        Raises:
            ConfigError: a file is there but cannot be read.
        """
        path = self.path(subject)
        for name in (path.name, f"{path.name}+rsa"):
            own = self._load(subject, path.with_name(name))
            if own is not None:
                return own
        pair = path.with_name(f"{path.name}.key"), path.with_name(f"{path.name}.crt")
        found = self._load(subject, *pair)
        if found is not None:
            log.info("using the certificate in %s; later ones will be kept in %s", pair[1], path)
        return found

    def _load(self, subject: str, *paths: Path) -> Credential | None:
        parts = [_read(path) for path in paths]
        text = b"".join(part for part in parts if part is not None)
        if None in parts:
            return None
        where = " and ".join(map(str, paths))
        at = max(text.find(_BEGIN), 0)
        try:
            found = issued_credential(text[at:], text[:at], subject, where)
        except ConfigError as e:
            if len(paths) > 1:  # of manual mode, which it may be good for
                own = self.path(subject)
                log.warning("%s; left as it is, one will be asked for and kept in %s", e, own)
            else:
                _put_aside(paths[0])
                log.error("%s; kept aside with the ending .bad, a new one will be asked for", e)
            return None
        if not found.info.is_valid(utc_now()):
            log.warning("the certificate in %s is not valid today", where)
            return None
        return found

    def read_again(self, subject: str) -> Credential:
        """The certificate in the file of a host, whatever its dates.

        Raises:
            ConfigError: there is none; the file stays where it is.
        """
        path = self.path(subject)
        text = _read(path) or b""
        at = max(text.find(_BEGIN), 0)
        return issued_credential(text[at:], text[:at], subject, path)

    def has_valid(self, subject: str) -> bool:
        """Whether a file holds a certificate that clients accept now; no file is touched."""
        path = self.path(subject)
        pair = (f"{path.name}.key", f"{path.name}.crt")
        for names in ((path.name,), (f"{path.name}+rsa",), pair):
            text = b"".join(_read(path.with_name(name)) or b"" for name in names)
            at = max(text.find(_BEGIN), 0)
            with contextlib.suppress(ConfigError):
                if issued_credential(text[at:], text[:at], subject, path).info.is_valid(utc_now()):
                    return True
        return False

    def stamp(self, subject: str) -> FileStamp | None:
        """Changes when the file of a host does."""
        return file_stamp(self.path(subject))

    def save(self, subject: str, credential: Credential) -> None:
        """Keep a certificate.

        Raises:
            OSError: the disk is full, for example; the old file is as it was.
        """
        data = credential.key.rstrip() + b"\n" + credential.chain.strip() + b"\n"
        write_atomically(self.path(subject), data, mode=0o600)

    # The account

    @property
    def account_path(self) -> Path:
        """The file with the private key of the account."""
        return self.directory / ACCOUNT

    def load_account(self) -> bytes | None:
        """The private key of the account at the authority, PEM; that of `derper` if need be.

        Raises:
            ConfigError: it cannot be read.
        """
        for name in (ACCOUNT, _AUTOCERT_ACCOUNT):
            key = _read(self.directory / name)
            if key is not None:
                return key
        return None

    def save_account(self, key: bytes) -> None:
        """Keep the private key of a new account.

        Raises:
            OSError: it cannot be written.
        """
        write_atomically(self.account_path, key, mode=0o600)

    def put_account_aside(self) -> None:
        """Keep an account key that cannot be used, for the operator to look at."""
        for name in (ACCOUNT, _AUTOCERT_ACCOUNT):
            if (self.directory / name).exists():
                _put_aside(self.directory / name)
                return

    # What went wrong

    def record_path(self, subject: str) -> Path:
        """The file with the `Record` of a host."""
        path = self.path(subject)
        return path.with_name(f"{path.name}.state.json")

    def load_record(self, subject: str) -> Record:
        """What was remembered; a new record if there is none, or garbage."""
        path = self.record_path(subject)
        try:
            return _parse_record(path.read_bytes())
        except FileNotFoundError:
            return Record()
        except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
            log.warning("%s is damaged or cannot be read, and not used", path)
            return Record()

    def save_record(self, subject: str, record: Record) -> None:
        """Remember.

        Raises:
            OSError: it cannot be written.
        """
        document = {name: getattr(record, name) for name in Record.__slots__}
        data = json.dumps(document, indent=1).encode() + b"\n"
        write_atomically(self.record_path(subject), data, mode=0o600)


def _parse_record(data: bytes) -> Record:
    document = json.loads(data)
    return Record(
        directory=str(document["directory"]),
        failures=max(int(document["failures"]), 0),
        retry_at=float(document["retry_at"]),
        authority_retry_at=float(document["authority_retry_at"]),
        error=printable(str(document["error"])),
    )


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from e


def _put_aside(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.replace(path.with_name(f"{path.name}.bad"))


@contextlib.contextmanager
def order_lock(directory: Path) -> Iterator[bool]:
    """Lets processes that share the directory ask an authority one at a time.

    Yields at once whether no other holder has it, in this process or another of the machine.

    Advisory, and on the directory itself: it needs no file, and so no room on a full disk, and
    ends with the process. Where the file system knows no locks, it is always given.
    """
    with contextlib.ExitStack() as stack:
        free = True
        try:
            handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError:
            pass  # a network's file system perhaps
        yield free
