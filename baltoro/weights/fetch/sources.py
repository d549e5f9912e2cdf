"""Where files come from: the hub, any folder that a web server shows, a directory. Each lists files and sends bytes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, cast
from urllib.parse import quote, urlsplit

from baltoro.config import PRESETS
from baltoro.errors import FetchError
from baltoro.weights.fetch import check, http
from baltoro.weights.fetch.digest import Digest, parse_sums
from baltoro.weights.fetch.http import Body, Http, Patience, Transient
from baltoro.weights.fetch.journal import RemoteFile
from baltoro.weights.fetch.spread import spread

INDEX = "model.safetensors.index.json"
SUMS = ("SHA256SUMS", "SHA256SUMS.txt", "sha256sums.txt", "checksums.sha256", "checksums.txt")
USUAL = (
    "config.json", "generation_config.json", "tiktoken.model", "tokenizer_config.json", "tokenizer.json",
    "special_tokens_map.json", "chat_template.jinja", "tokenization_kimi.py", "configuration_deepseek.py",
    "modeling_deepseek.py", "LICENSE", "THIRD_PARTY_NOTICES.md", "README.md",
)  # fmt: skip
HUB_NAMES = {
    "kimi-k2-instruct": "moonshotai/Kimi-K2-Instruct",
    "kimi-k2-instruct-0905": "moonshotai/Kimi-K2-Instruct-0905",
    "kimi-k2-base": "moonshotai/Kimi-K2-Base",
    "moonlight-16b-a3b": "moonshotai/Moonlight-16B-A3B",
}
SMALL = 64 * 2**20  # bytes; an index of Kimi K2 has 13 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    source: str  # as a person would write it
    revision: str | None  # the commit, where there is one
    files: tuple[RemoteFile, ...]


class Source(Protocol):
    def list(self) -> Listing: ...
    def open(self, file: RemoteFile, start: int, end: int) -> AbstractContextManager[Body]: ...


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def title(repo: str) -> str:
    """REPO as it is typed -> the name that its listing bears: a path, an address with / behind it, OWNER/NAME."""
    if Path(repo).is_dir():
        return str(Path(repo).resolve())
    if repo.startswith(f"{endpoint()}/") and re.fullmatch(r"[^/?#]+/[^/?#]+/?", repo.removeprefix(f"{endpoint()}/")):
        return repo.removeprefix(f"{endpoint()}/").rstrip("/")  # copied out of the browser
    if repo.startswith(("http://", "https://")):
        return repo.rstrip("/") + "/"
    return HUB_NAMES.get(repo, repo)


def source_of(repo: str, *, revision: str | None, connections: int, patience: Patience) -> Source:
    name = title(repo)
    if name.startswith(("/", "http://", "https://")):
        if revision is not None:
            raise FetchError(f"{repo} has no revisions", hint="--revision belongs to models of the hub")
        if not name.startswith("/") and not urlsplit(name).hostname:
            raise FetchError(f"{repo} names no host", hint="https://HOST/FOLDER")
        return Directory(Path(name)) if name.startswith("/") else Mirror(name, connections, patience)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FetchError(
            f"{repo}: no such directory, expected OWNER/NAME, an http address or a directory"
            if repo not in PRESETS
            else f"{repo} is embedded, there is nothing to fetch",
            hint=f"on the hub are {', '.join(HUB_NAMES.values())}",
        )
    return Hub(name, revision or "main", endpoint(), connections, patience)


class Hub:
    """A model repository of the Hugging Face hub, or of a server that speaks its API (HF_ENDPOINT)."""

    def __init__(self, repo: str, revision: str, endpoint: str, connections: int, patience: Patience) -> None:
        from huggingface_hub import get_token

        self._repo, self._revision, self._endpoint, self._patience = repo, revision, endpoint, patience
        self._token = get_token()
        self._http = Http(endpoint, token=self._token, connections=connections)
        self._commit = revision

    def list(self) -> Listing:
        """Everything at one commit: files that change on the hub while we fetch do not mix."""
        info = self._patience.call(self._info)
        self._commit = info.sha or self._revision
        files: list[RemoteFile] = []
        for each in info.siblings or ():
            if each.size is None:
                raise FetchError(
                    f"{self._endpoint} does not say how large {each.rfilename} is",
                    hint="its API is not the hub's; give the address of the folder itself",
                )
            digest = Digest.parse(f"sha256:{each.lfs.sha256}" if each.lfs else f"git-sha1:{each.blob_id}")
            files.append(RemoteFile(name=harmless(each.rfilename), size=each.size, digest=digest))
        return Listing(source=self._repo, revision=self._commit, files=in_order(files))

    def _info(self) -> Any:
        import httpx2
        from huggingface_hub import HfApi
        from huggingface_hub import errors as hub

        who = f"{self._repo} at {self._revision}"
        api = HfApi(endpoint=self._endpoint, token=self._token or False, library_name="baltoro")
        try:
            return api.model_info(self._repo, revision=self._revision, files_metadata=True, timeout=30)
        except hub.GatedRepoError as error:
            raise FetchError(
                f"{self._repo} is given only to those who accept its terms",
                hint=f"accept them at {self._endpoint}/{self._repo} and set HF_TOKEN to that account's token",
            ) from error
        except hub.RevisionNotFoundError as error:
            raise FetchError(f"{self._repo} has no revision {self._revision}", hint="main is the newest") from error
        except hub.RepositoryNotFoundError as error:
            raise FetchError(
                f"{self._endpoint} has no model {self._repo}",
                hint="mind capitals; a private one needs HF_TOKEN. Known: " + ", ".join(HUB_NAMES.values()),
            ) from error
        except (hub.HFValidationError, hub.OfflineModeIsEnabled) as error:
            raise FetchError(str(error).splitlines()[0], hint="OWNER/NAME, and HF_HUB_OFFLINE unset") from error
        except hub.HfHubHTTPError as error:
            if plea := http.later(error.response.status_code, error.response.headers, self._endpoint):
                raise plea from error
            raise FetchError(f"{who}: {self._endpoint} answers {error.response.status_code}") from error
        except httpx2.TransportError as error:
            if hopeless := http.given_reason(error, who=self._endpoint, is_first=True):
                raise hopeless from error
            raise Transient(f"{self._endpoint}: {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise FetchError(f"{who}: {self._endpoint} does not answer as the hub does ({error})") from error

    def open(self, file: RemoteFile, start: int, end: int) -> AbstractContextManager[Body]:
        url = f"{self._endpoint}/{self._repo}/resolve/{quote(self._commit, safe='')}/{quote(file.name)}"
        return self._http.open(url, file.size, start, end)


class Mirror:
    """A folder on a web server: what its file of sha256 sums names, its index of shards, and the usual small files."""

    def __init__(self, base: str, connections: int, patience: Patience) -> None:
        self._base, self._connections, self._patience = base, connections, patience
        self._http = Http(base, connections=connections)
        self._http.hint_refused = "this server asks for an account, or does not show this folder"

    def _url(self, name: str) -> str:
        return self._base + quote(name)

    def list(self) -> Listing:
        digests = self._sums()
        index = self._patience.call(lambda: self._http.get(self._url(INDEX), limit=SMALL))
        shards = _shards(index, self._url(INDEX)) if index is not None else ["model.safetensors"]
        names = [*digests, *USUAL, *([INDEX] if index is not None else []), *shards]
        required = {*digests, *(shards if index is not None else ())}

        def look(name: str) -> RemoteFile | None:
            head = self._patience.call(lambda: self._http.head(self._url(name)))
            if head is None or (
                head.content_type == "text/html" and not name.endswith(".html") and name not in required
            ):
                if name in required:
                    raise FetchError(f"{self._url(name)} is not there, though it is listed")
                return None  # a page that says "not found" with status 200 is common
            if head.size is None:
                raise FetchError(f"{self._url(name)}: the server does not say how large it is")
            digest = digests.get(name) or head.digest
            return RemoteFile(name=name, size=head.size, digest=digest, version=head.version)

        found = spread(look, list(dict.fromkeys(map(harmless, names))), self._connections)
        files = [file for file in found if file is not None]
        if not any(file.name.endswith(".safetensors") or file.name in digests for file in files):
            raise FetchError(
                f"{self._base} shows no model: neither {SUMS[0]} nor {INDEX} nor model.safetensors",
                hint="give the address of the folder that holds config.json",
            )
        return Listing(source=self._base, revision=None, files=in_order(files))

    def _sums(self) -> dict[str, Digest]:
        for name in SUMS:
            content = self._patience.call(lambda name=name: self._http.get(self._url(name), limit=SMALL))
            if content and (sums := parse_sums(content.decode("utf-8", errors="replace"))):
                return sums
        return {}

    def open(self, file: RemoteFile, start: int, end: int) -> AbstractContextManager[Body]:
        return self._http.open(self._url(file.name), file.size, start, end)


class Directory:
    """A directory of this machine, or of a disk that others share with it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def list(self) -> Listing:
        if not self._root.is_dir():
            raise FetchError(f"{self._root}: no such directory", hint="OWNER/NAME of the hub and http addresses go too")
        digests: dict[str, Digest] = {}
        for name in SUMS:
            if not digests and (self._root / name).is_file():
                digests = parse_sums((self._root / name).read_text(encoding="utf-8", errors="replace"))
        hidden = {check.STATE, ".git", ".cache"}
        found = [path for path in sorted(self._root.rglob("*")) if path.is_file()]
        names = [path.relative_to(self._root).as_posix() for path in found]
        files = [
            RemoteFile(
                name=name, size=path.stat().st_size, digest=digests.get(name), version=str(path.stat().st_mtime_ns)
            )
            for name, path in zip(names, found, strict=True)
            if not hidden & set(PurePosixPath(name).parts)
        ]
        if lost := sorted(digests.keys() - {file.name for file in files}):
            raise FetchError(f"{self._root} lacks {lost[0]}, though its list of sums names it")
        return Listing(source=str(self._root), revision=None, files=in_order(files))

    @contextmanager
    def open(self, file: RemoteFile, start: int, end: int) -> Generator[Body]:
        try:
            disk = (self._root / file.name).open("rb", buffering=0)
        except OSError as error:
            raise FetchError(f"{self._root / file.name}: {error.strerror}") from error
        with disk:
            found = os.fstat(disk.fileno())
            if found.st_size != file.size:
                raise FetchError(f"{self._root / file.name} has {found.st_size:,} bytes now, not {file.size:,}")
            yield Body(chunks=self._chunks(disk.fileno(), start, end), ranged=True, version=str(found.st_mtime_ns))

    def _chunks(self, descriptor: int, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            try:
                chunk = os.pread(descriptor, min(http.LARGEST, end - start), start)
            except OSError as error:
                raise Transient(f"{self._root}: {error.strerror}") from error
            if not chunk:
                return
            start += len(chunk)
            yield chunk


def in_order(files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """Small files first, so that config.json is there to plan with; then by name, numbers as numbers."""

    def key(file: RemoteFile) -> tuple[bool, list[tuple[int, str]]]:
        words = re.findall(r"\d+|\D+", file.name)
        return file.size > SMALL, [(int(word), "") if word.isdecimal() else (-1, word) for word in words]

    return tuple(sorted(files, key=key))


def harmless(name: str) -> str:
    """A list from elsewhere must not write outside DIR, nor into our own folder."""
    path = PurePosixPath(name)
    if (
        path.is_absolute()
        or not path.parts
        or ".." in path.parts
        or path.parts[0] == check.STATE
        or path.as_posix() != name
        or any(ord(c) < 0x20 or c == "\\" for c in name)
    ):
        raise FetchError(f"the source lists a file {name!r}, which is no name of a file inside a directory")
    return name


def _shards(index: bytes, url: str) -> list[str]:
    try:
        weight_map = cast("dict[str, str]", json.loads(index)["weight_map"])
        return sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FetchError(
            f"{url} has no weight_map from tensor names to files", hint="is it the right address?"
        ) from error
