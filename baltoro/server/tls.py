"""A certificate and its key, from files: checked before anything is served, read again when they were renewed."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from baltoro.errors import BaltoroError


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Where they are. All in PEM, as certbot and cert-manager write them."""

    chain: Path  # the server's own certificate first, then those that vouch for it
    key: Path
    password_file: Path | None = None  # of an encrypted key; a line break at its end is none of the password

    def check(self) -> None:
        """A BaltoroError that says which file is wrong, and how."""
        self.load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))

    def load(self, context: ssl.SSLContext) -> None:
        """For connections that begin from now on. A context that was good may be useless after a failure."""
        if b"-----BEGIN CERTIFICATE-----" not in _read(self.chain, "--tls-cert"):
            raise BaltoroError(f"--tls-cert {self.chain} has no certificate", hint="expected one in PEM")
        if b"PRIVATE KEY-----" not in _read(self.key, "--tls-key"):
            raise BaltoroError(f"--tls-key {self.key} has no private key", hint="expected one in PEM")
        password, asked = self.password, False

        def answer() -> str:
            nonlocal asked
            asked = True
            if password is None:  # OpenSSL would ask the terminal
                raise BaltoroError(f"--tls-key {self.key} is encrypted", hint="--tls-key-password-file FILE")
            return password

        try:
            context.load_cert_chain(self.chain, self.key, answer)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise BaltoroError(
                    f"--tls-key {self.key} does not fit the certificate {self.chain}",
                    hint="the key is of the server's own certificate, and that is the first of its file",
                ) from error
            if asked:
                raise BaltoroError(
                    f"--tls-key {self.key} is not opened by the password in {self.password_file}"
                ) from error
            raise BaltoroError(f"{self.chain} and {self.key} cannot be used: {error.reason or error}") from error
        if password is not None and not asked:
            raise BaltoroError(
                f"--tls-key {self.key} is not encrypted", hint="leave --tls-key-password-file out, or name another key"
            )

    @property
    def password(self) -> str | None:
        if self.password_file is None:
            return None
        try:
            password = _read(self.password_file, "--tls-key-password-file").decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise BaltoroError(f"--tls-key-password-file {self.password_file} is not UTF-8") from error
        if not 1 <= len(password.encode()) <= 1024:  # OpenSSL's bound
            raise BaltoroError(
                f"--tls-key-password-file {self.password_file} has {len(password.encode())} bytes, expected 1 to 1024"
            )
        return password


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BaltoroError(f"{option} {path} cannot be read: {error.strerror}") from error
