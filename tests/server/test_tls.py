"""TLS: what is wrong with a certificate is said before anything is served; a renewed one is taken up."""

from __future__ import annotations

import shutil
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from baltoro.errors import BaltoroError
from baltoro.server.tls import Certificate
from tests.server.certificates import Made, make

PROGRAM = """
import sys
from pathlib import Path
from baltoro.server import listen, logs
from baltoro.server.app import Served, create_app
from baltoro.server.tls import Certificate
from tests.server.script import Script
chain, key = map(Path, sys.argv[1:])
logs.configure()
sockets = listen.bind("127.0.0.1", 0)
certificate = Certificate(chain=chain, key=key)
sockets[0].listen()
print(listen.url("127.0.0.1", sockets[0], scheme="https"), flush=True)
listen.run(create_app(Served(llm=Script(), names=("tiny",))), sockets, grace_s=1, certificate=certificate)
"""


@contextmanager
def serving(made: Made) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-c", PROGRAM, str(made.chain), str(made.key)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def serial(url: str) -> int:
    """Of the certificate that a new connection is shown."""
    host, port = url.removeprefix("https://").split(":")
    return x509.load_pem_x509_certificate(
        ssl.get_server_certificate((host, int(port)), timeout=20).encode()
    ).serial_number


def test_a_server_speaks_https_to_who_trusts_its_certificate_and_nothing_else(tmp_path: Path) -> None:
    made = make(tmp_path, "ours")
    with serving(made) as (_, url):
        assert url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(made.chain))
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
        with httpx.Client(verify=trusting, timeout=20) as client:
            answer = client.post(f"{url}/v1/chat/completions", json=body)
        assert answer.json()["choices"][0]["message"]["content"] == "Hello"
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{url}/health", timeout=20)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url.replace('https', 'http')}/health", timeout=20)


def test_a_renewed_certificate_is_taken_up_on_sighup_and_a_broken_one_is_not(tmp_path: Path) -> None:
    made, renewed, other = (make(tmp_path, name) for name in ("ours", "renewed", "other"))
    with serving(made) as (process, url):
        assert serial(url) == made.serial
        heard = _Lines(process)
        shutil.copy(renewed.chain, made.chain)
        shutil.copy(other.key, made.key)
        process.send_signal(signal.SIGHUP)
        assert "the certificate stays as it was" in heard.next()
        assert serial(url) == made.serial
        shutil.copy(renewed.key, made.key)
        process.send_signal(signal.SIGHUP)
        assert "new connections get the certificate" in heard.next()
        assert serial(url) == renewed.serial


class _Lines:
    """What a process says on stderr."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self._stream = process.stderr

    def next(self) -> str:
        found: list[str] = []
        reading = threading.Thread(target=lambda: found.append(self._stream.readline()), daemon=True)
        reading.start()
        reading.join(20)
        assert found, "nothing was said within 20 s"
        return found[0]


Spoil = Callable[[Path, Made, Made], Certificate]  # a folder, two certificates -> one that cannot be used


def _password(folder: Path, text: bytes) -> Path:
    file = folder / "password"
    file.write_bytes(text)
    return file


def _text(folder: Path) -> Path:
    file = folder / "text"
    file.write_text("no PEM")
    return file


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f, a, _: Certificate(chain=f / "none", key=a.key), r"--tls-cert .*none cannot be read: No such"),
        (lambda f, a, _: Certificate(chain=a.chain, key=f / "none"), r"--tls-key .*none cannot be read: No such"),
        (lambda f, a, _: Certificate(chain=f, key=a.key), r"--tls-cert .* cannot be read: Is a directory"),
        (lambda f, a, _: Certificate(chain=_text(f), key=a.key), r"--tls-cert .*text has no certificate"),
        (lambda f, a, _: Certificate(chain=a.key, key=a.chain), r"--tls-cert .*a\.key has no certificate"),
        (lambda f, a, _: Certificate(chain=a.chain, key=_text(f)), r"--tls-key .*text has no private key"),
        (lambda f, a, b: Certificate(chain=a.chain, key=b.key), r"--tls-key .*b\.key does not fit .* .*a\.crt"),
        (
            lambda f, a, _: Certificate(chain=a.chain, key=a.key, password_file=_password(f, b"x")),
            r"a\.key is not encrypted",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_certificate_is_named(tmp_path: Path, spoil: Spoil, told: str) -> None:
    with pytest.raises(BaltoroError, match=told):
        spoil(tmp_path, make(tmp_path, "a"), make(tmp_path, "b")).check()


def test_damaged_files_are_refused_whatever_is_damaged(tmp_path: Path) -> None:
    made = make(tmp_path, "ours")
    for file in (made.chain, made.key):
        whole = file.read_bytes()
        file.write_bytes(whole[:120] + b"!" + whole[121:])
        with pytest.raises(BaltoroError, match="cannot be used"):
            Certificate(chain=made.chain, key=made.key).check()
        file.write_bytes(whole)
    Certificate(chain=made.chain, key=made.key).check()


@pytest.mark.parametrize("written", [b"secret", b"secret\n", b"secret\r\n"])
def test_an_encrypted_key_is_opened_by_its_password(tmp_path: Path, written: bytes) -> None:
    made = make(tmp_path, "ours", password="secret")
    Certificate(chain=made.chain, key=made.key, password_file=_password(tmp_path, written)).check()


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (None, r"ours\.key is encrypted"),
        (b"wrong", r"ours\.key is not opened by the password in .*password"),
        (b"\n", "has 0 bytes, expected 1 to 1024"),
        (b"x" * 1025, "has 1025 bytes"),
        (b"\xff", "is not UTF-8"),
    ],
)
def test_an_encrypted_key_without_its_password_is_refused_and_nobody_is_asked(
    tmp_path: Path, written: bytes | None, told: str
) -> None:
    made = make(tmp_path, "ours", password="secret")
    file = None if written is None else _password(tmp_path, written)
    with pytest.raises(BaltoroError, match=told) as found:
        Certificate(chain=made.chain, key=made.key, password_file=file).check()
    assert "secret" not in str(found.value) + found.value.hint
    assert "wrong" not in str(found.value)
