"""The directory that keeps an ACME account, its certificates, and the last failures.

The file of a certificate has the name of its host, and holds the key, then the chain. Go's autocert
has the same format, so pyderp can take over from `derper` in the same directory, and the other way
round. For an IP address `derper` keeps two files. They are read too, and never changed, because in
manual mode a relay has its own certificate in such a pair.
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
    """Check a certificate of an authority, and return it with its key. Dates are not checked.

    Args:
        chain: PEM, leaf first.
        key: PEM.
        subject: DNS name or IP address that it must be valid for.
        where: the file, for errors.

    Raises:
        ConfigError: OpenSSL does not accept it, it is for another host, or it is self-signed, so
            that no authority issued it.
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
    """The files of one directory. It is made if missing, with mode 0700; files have mode 0600.

    Raises:
        ConfigError: the directory cannot be made or written to.
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
        # Found out now, and not weeks later, when the first renewal could not be saved.
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            raise ConfigError(
                f"cannot write to the certificate directory {directory}: check its owner and mode"
            )
        # A user who can write to the directory can replace the certificates by their own.
        if mode & 0o022:
            log.warning(
                "others may write to the certificate directory %s (mode %04o); use 0700",
                directory,
                mode,
            )

    # Certificates

    def path(self, subject: str) -> Path:
        """Return the path of the file with a certificate and its key."""
        return self.directory / subject.replace(":", ".")

    def load(self, subject: str) -> Credential | None:
        """Return the certificate of a host, if there is one that is valid now.

        A file without a usable certificate is renamed to end in `.bad`; a pair of files stays.

        Raises:
            ConfigError: a file exists but cannot be read.
        """
        path = self.path(subject)
        # autocert keeps a certificate with an RSA key, for old clients, in a second file.
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
        at = max(text.find(_BEGIN), 0)  # the key is before the first certificate
        try:
            found = issued_credential(text[at:], text[:at], subject, where)
        except ConfigError as e:
            if len(paths) > 1:  # it belongs to manual mode, where it may be usable
                own = self.path(subject)
                log.warning("%s; left as it is, one will be asked for and kept in %s", e, own)
            else:
                _put_aside(paths[0])
                log.error("%s; kept aside with the ending .bad, a new one will be asked for", e)
            return None
        # The file stays: it is well formed, and a new certificate will overwrite it.
        if not found.info.is_valid(utc_now()):
            log.warning("the certificate in %s is not valid today", where)
            return None
        return found

    def read_again(self, subject: str) -> Credential:
        """Return the certificate in the file of a host, whatever its dates are.

        Raises:
            ConfigError: there is none. The file stays as it is.
        """
        path = self.path(subject)
        text = _read(path) or b""
        at = max(text.find(_BEGIN), 0)
        return issued_credential(text[at:], text[:at], subject, path)

    def has_valid(self, subject: str) -> bool:
        """Return whether a file has a certificate that is valid now; changes no file."""
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
        """Return the stamp of the file of a host; `None` if there is no file."""
        return file_stamp(self.path(subject))

    def save(self, subject: str, credential: Credential) -> None:
        """Write a certificate to the file of a host.

        Raises:
            OSError: for example, the disk is full. The old file stays as it was.
        """
        # The order that Go's autocert reads: the key, then the chain.
        data = credential.key.rstrip() + b"\n" + credential.chain.strip() + b"\n"
        write_atomically(self.path(subject), data, mode=0o600)

    # The account

    @property
    def account_path(self) -> Path:
        """The path of the file with the private key of the account."""
        return self.directory / ACCOUNT

    def load_account(self) -> bytes | None:
        """Return the private key of the account at the authority, PEM; `None` if there is none.

        If pyderp has no account yet, the one of `derper` is returned.

        Raises:
            ConfigError: the file cannot be read.
        """
        for name in (ACCOUNT, _AUTOCERT_ACCOUNT):
            key = _read(self.directory / name)
            if key is not None:
                return key
        return None

    def save_account(self, key: bytes) -> None:
        """Write the private key of a new account.

        Raises:
            OSError: it cannot be written.
        """
        write_atomically(self.account_path, key, mode=0o600)

    def put_account_aside(self) -> None:
        """Rename the file of an unusable account key to end in `.bad`, for the operator."""
        for name in (ACCOUNT, _AUTOCERT_ACCOUNT):
            if (self.directory / name).exists():
                _put_aside(self.directory / name)
                return

    # What went wrong

    def record_path(self, subject: str) -> Path:
        """Return the path of the file with the `Record` of a host."""
        path = self.path(subject)
        return path.with_name(f"{path.name}.state.json")

    def load_record(self, subject: str) -> Record:
        """Return the record of a host; a new one if there is none, or the file is malformed."""
        path = self.record_path(subject)
        try:
            return _parse_record(path.read_bytes())
        except FileNotFoundError:
            return Record()
        except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
            log.warning("%s is damaged or cannot be read, and not used", path)
            return Record()

    def save_record(self, subject: str, record: Record) -> None:
        """Write the record of a host.

        Raises:
            OSError: it cannot be written.
        """
        document = {name: getattr(record, name) for name in Record.__slots__}
        data = json.dumps(document, indent=1).encode() + b"\n"
        write_atomically(self.record_path(subject), data, mode=0o600)


def _parse_record(data: bytes) -> Record:
    # Each field is converted, because an operator may have edited the file.
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
    """Let only one process or thread at a time ask an authority, of all that share the directory.

    Yields at once, without waiting: whether the lock is held by this block.

    It is an advisory lock (flock) on the directory itself. So it needs no file, which a full disk
    would refuse, and the kernel releases it when the process ends. If the file system has no
    locks, it yields true.
    """
    with contextlib.ExitStack() as stack:
        free = True
        try:
            # flock belongs to this open file, so it also excludes other relays of this process.
            handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError:
            pass  # for example a network file system without locks
        yield free
