"""Bytes a second and CPU seconds a GB of `baltoro fetch` over loopback, beside huggingface_hub's snapshot_download.

    python bench/fetch.py [--files 4 --mb 512 --jobs 8 --repeats 3]

Both fetch the same files from one server that speaks the hub's API and sends with sendfile, each in a process of its
own whose start is not counted, into one directory on one disk. Ours compares every sha256; the peer compares sizes.
The best of `repeats` counts. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

REPO, COMMIT = "owner/model", "0" * 40


def serve(root: Path) -> str:
    """The address of a hub that shows the files of `root`; threads that mostly wait in sendfile."""
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(root.iterdir())}
    sizes = {name: (root / name).stat().st_size for name in digests}
    siblings, tree = [], []
    for name, digest in digests.items():
        lfs = {"size": sizes[name], "pointerSize": 135}
        siblings.append({"rfilename": name, "size": sizes[name], "blobId": "0" * 40, "lfs": lfs | {"sha256": digest}})
        tree.append({"type": "file", "path": name, "size": sizes[name], "oid": "0" * 40, "lfs": lfs | {"oid": digest}})
    info = {"id": REPO, "modelId": REPO, "sha": COMMIT, "tags": [], "siblings": siblings}

    def answer(client: socket.socket) -> None:
        with client, client.makefile("rb") as lines:
            while request := lines.readline().decode():
                headers = {}
                while line := lines.readline().decode().strip():
                    key, _, value = line.partition(":")
                    headers[key.lower()] = value.strip()
                method, path, _ = request.split()
                if path.startswith("/api/"):
                    listing = json.dumps(tree if "/tree/" in path else info).encode()
                    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
                    client.sendall(b"Content-Length: %d\r\n\r\n" % len(listing) + listing)
                    continue
                name = path.rpartition("/")[2]
                start, end = 0, sizes[name]
                span = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
                if span:
                    start, end = int(span[1]), int(span[2]) + 1 if span[2] else end
                head = [
                    "HTTP/1.1 206 Partial Content" if span else "HTTP/1.1 200 OK",
                    f"Content-Length: {end - start}",
                    f'ETag: "{digests[name]}"',
                    f"X-Repo-Commit: {COMMIT}",
                    *([f"Content-Range: bytes {start}-{end - 1}/{sizes[name]}"] if span else []),
                ]
                client.sendall("\r\n".join(head).encode() + b"\r\n\r\n")
                with (root / name).open("rb") as file:
                    while method == "GET" and start < end:
                        start += os.sendfile(client.fileno(), file.fileno(), start, end - start)

    def accept(listener: socket.socket) -> None:
        while True:
            threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    threading.Thread(target=accept, args=(listener,), daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def ours(directory: Path, jobs: int) -> None:
    from baltoro.weights.fetch import run

    run.fetch(REPO, directory, pace=run.Pace(jobs=jobs))


def theirs(directory: Path, jobs: int) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(REPO, local_dir=directory, max_workers=jobs)


def measure(side: str, directory: Path, jobs: int) -> dict[str, float]:
    """In a process of its own: seconds and CPU seconds of the call, imports done."""
    import huggingface_hub  # noqa: F401

    from baltoro.weights.fetch import run  # noqa: F401

    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    (ours if side == "ours" else theirs)(directory, jobs)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return {"seconds": seconds, "user_s": user, "system_s": system}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--mb", type=int, default=512)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.directory, options.jobs)))
        return
    gb = options.files * options.mb / 1000
    best: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "source")
        root.mkdir()
        for index in range(options.files):
            (root / f"model-{index + 1}-of-{options.files}.safetensors").write_bytes(os.urandom(options.mb * 10**6))
        environment = os.environ | {"HF_ENDPOINT": serve(root), "HF_HUB_DISABLE_XET": "1", "HF_HOME": f"{folder}/home"}
        for _ in range(options.repeats):
            for side in ("ours", "theirs"):
                target = Path(folder, side)
                command = [sys.executable, __file__, "--side", side, "--directory", str(target)]
                command += ["--jobs", str(options.jobs)]
                out = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout
                found = json.loads(out.splitlines()[-1])
                for path in root.iterdir():
                    assert (target / path.name).stat().st_size == path.stat().st_size, (side, path.name)
                shutil.rmtree(target)
                if (
                    side not in best
                    or found["user_s"] + found["system_s"] < best[side]["user_s"] + best[side]["system_s"]
                ):
                    best[side] = found
        began = time.process_time()
        hashlib.sha256(next(root.iterdir()).read_bytes())
        hash_s = (time.process_time() - began) / (options.mb / 1000)
    result = {
        side: {
            "gb_per_s": round(gb / found["seconds"], 3),
            "cpu_s_per_gb": round((found["user_s"] + found["system_s"]) / gb, 3),
            "user_s_per_gb": round(found["user_s"] / gb, 3),
        }
        for side, found in best.items()
    }
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "date": datetime.now(UTC).date().isoformat()}
    print(json.dumps({"bench": "fetch", "gb": gb, "sha256_s_per_gb": round(hash_s, 3), **result, **machine}))


if __name__ == "__main__":
    main()
