"""Databases for tests: an SQLite file, and a PostgreSQL of the test run's own where its programs are installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PASSWORD = "swordfish"


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """The URL of a cluster that listens on a socket in `folder` alone; skips where there is no PostgreSQL."""
    initdb = _program("initdb")
    if initdb is None:
        pytest.skip("PostgreSQL's programs are not installed")
    pytest.importorskip("psycopg")
    owner: dict[str, object] = {}
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        try:
            owner = {"user": pwd.getpwnam("postgres").pw_uid, "group": pwd.getpwnam("postgres").pw_gid}
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        shutil.chown(folder, "postgres")
        for each in folder.parents[:3]:  # pytest's folders are its user's alone
            if each != Path("/tmp"):
                each.chmod(each.stat().st_mode | 0o011)
    data, secret = folder / "data", folder / "password"
    secret.write_text(PASSWORD)
    secret.chmod(0o644)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "cwd": folder, **owner}
    subprocess.run(
        [initdb, "-D", data, "-U", "baltoro", "-A", "scram-sha-256", f"--pwfile={secret}", "--no-sync", "-E", "UTF8"],
        check=True, **quiet,  # type: ignore[call-overload]
    )  # fmt: skip
    control = initdb.with_name("pg_ctl")
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    begin = [control, "-D", data, "-w", "-o", options, "-l", folder / "log", "start"]
    subprocess.run(begin, check=True, **quiet)  # type: ignore[call-overload]
    try:
        yield f"postgresql://baltoro:{PASSWORD}@/postgres?host={folder}"
    finally:
        subprocess.run([control, "-D", data, "-m", "immediate", "stop"], check=True, **quiet)  # type: ignore[call-overload]


def _program(name: str) -> Path | None:
    found = shutil.which(name)
    places = [Path(found)] if found else sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return places[-1] if places else None
