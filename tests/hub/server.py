"""A small Hub on 127.0.0.1 for tests: the real client talks to it, and it counts what it gives and fails on demand.

It keeps repositories in memory, speaks the LFS protocol and, with `use_xet`, that of Xet, and serves large files from a
second address under signed URLs, as the real one does. A signature is `SIGNATURE`, so that a test can search for it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

from xmerge.sources import _read_remote

SIGNATURE = "0123456789abcdefSIGNED"
TOKEN = "hf_LoopbackTokenOfTheTests"  # noqa: S105 -- opens nothing but this server
USER = "tester"

_REPO = r"(?P<repo>[^/]+/[^/]+|[^/]+)"
_LFS_SUFFIXES = (".safetensors", ".bin", ".pt")

Reply = tuple[int, bytes, dict[str, str]]


@dataclass
class Repository:
    """One repository: its commits, oldest first, and where its branches stand."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, changes: dict[str, bytes | None], branch: str = "main") -> str:
        """Add a commit to a branch; None removes a file."""
        files = {**self.commits.get(self.branches.get(branch, ""), {}), **changes}
        kept = {name: data for name, data in sorted(files.items()) if data is not None}
        told = f"{len(self.commits)}{branch}{[(name, _sha256(data)) for name, data in kept.items()]}"
        sha = hashlib.sha1(told.encode()).hexdigest()  # noqa: S324 -- as git
        self.commits[sha] = kept
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch or sha names."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Fault:
    """What goes wrong with the next requests whose `METHOD /path` contains `match`.

    Attributes:
        match: Part of `METHOD /path`.
        status: Answer with this status instead.
        headers: Headers of that answer.
        reset: Break the connection in the middle of the body.
        whole: Ignore the range that was asked for.
        shifted: Give the range that begins so many bytes later.
        garbled: Change a byte of the body.
        cut: Send a body that is this many bytes shorter, and say so in its length.
        act: Do this first, and then answer as always.
        times: For how many requests.
    """

    match: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    reset: bool = False
    whole: bool = False
    shifted: int = 0
    garbled: bool = False
    cut: int = 0
    act: Callable[[], object] | None = None
    times: int = 1


@dataclass(frozen=True)
class Served:
    """One request that was answered."""

    method: str
    path: str
    status: int
    sent: int
    authorized: bool


class HubServer:
    """The server; use `running()` to start one."""

    def __init__(self) -> None:
        """Bind both addresses; nothing is answered yet."""
        self.repositories: dict[str, Repository] = {}
        self.storage: dict[str, bytes] = {}
        self.served: list[Served] = []
        self.faults: list[Fault] = []
        self.slept: list[float] = []
        self.ignored: list[str] = []
        self.xet_store: Path | None = None
        self.xet_hashes: dict[str, str] = {}
        self.lock = threading.RLock()
        self._servers = [_Server(("127.0.0.1", 0), _Handler, self) for _ in range(2)]

    @property
    def endpoint(self) -> str:
        """The address for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def storage_endpoint(self) -> str:
        """The address that large files are served from, as a content network would."""
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    def add(self, repo: str, files: dict[str, bytes], *, private: bool = False, gated: bool = False) -> str:
        """Add a repository with one commit, and give the commit."""
        self.repositories[repo] = Repository(private, gated)
        return self.repositories[repo].commit(dict(files))

    def fail(self, match: str, **how: Any) -> None:
        """Let the next requests that match go wrong; see `Fault`."""
        self.faults.append(Fault(match, **how))

    def count(self, match: str) -> int:
        """How many requests were answered whose `METHOD /path` contains the text."""
        return sum(match in f"{served.method} {served.path}" for served in self.served)

    def bytes_of(self, name: str) -> int:
        """How many bytes of a file's content were sent, from either address."""
        return sum(served.sent for served in self.served if served.method == "GET" and served.path.endswith(f"/{name}"))

    def environment(self, home: Path, *, token: str | None = TOKEN, xet: bool = False) -> dict[str, str]:
        """The environment variables that make a fresh process use this server."""
        named = {"HF_TOKEN": token} if token else {}
        return named | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_HUB_DISABLE_XET": "0" if xet else "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def use_xet(self, store: Path, files: list[Path]) -> None:
        """Have large files in a Xet store on this disk.

        The client sends them there without showing them to the server, which must still announce their Xet hashes.

        Args:
            store: The store's folder.
            files: What is going to be uploaded.
        """
        import hf_xet  # type: ignore[import-untyped]

        self.xet_store = store
        for file, hashed in zip(files, hf_xet.hash_files([str(file) for file in files]), strict=True):
            data = file.read_bytes()
            self.storage[_sha256(data)], self.xet_hashes[_sha256(data)] = data, hashed.hash

    def start(self) -> None:
        """Answer requests in threads."""
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Answer no more, and give the addresses back."""
        for server in self._servers:
            server.shutdown()
            server.server_close()


@contextmanager
def running() -> Iterator[HubServer]:
    """A server that answers as long as the block runs."""
    server = HubServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def connected(server: HubServer, home: Path, *, token: str | None = TOKEN) -> Iterator[None]:
    """Make the client in this process use the server and an own cache.

    The client reads its environment when it is imported, which may have been long ago, so its constants are set.
    It does not wait before it tries again; the seconds that it would have waited are in `server.slept`.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils._http import close_session

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        clock = SimpleNamespace(**{**vars(time), "sleep": server.slept.append})
        for module in ("huggingface_hub.utils._http", "huggingface_hub.file_download"):
            patch.setattr(f"{module}.time", clock)
        patch.setattr("xmerge.hub.ranges.pause", lambda seconds, *_: server.slept.append(seconds))
        patch.setenv("NO_PROXY", "127.0.0.1")
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        if token:
            patch.setenv("HF_TOKEN", token)
        close_session()
        # What this process has read of another server is not to be taken for this one's.
        _read_remote.cache_clear()
        try:
            yield
        finally:
            close_session()


class _RefusedError(Exception):
    """The answer is a refusal."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        super().__init__()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], hub: HubServer) -> None:
        self.hub = hub
        super().__init__(address, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that hangs up early is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class names it so
        """Say nothing."""

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    @property
    def authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_GET(self) -> None:
        self._route("GET")

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def do_DELETE(self) -> None:
        self._route("DELETE")

    # --- answering

    def _route(self, method: str) -> None:
        self.fault: Fault | None = None
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        with self.hub.lock:
            self._take_fault(f"{method} {parts.path}")
        if self.fault and self.fault.status:
            self._send(self.fault.status, b"", self.fault.headers)
            return
        for wanted, pattern, answer in _ROUTES:
            found = re.fullmatch(pattern, parts.path)
            if found and method in wanted:
                with self.hub.lock:
                    reply = self._answer(answer, found.groupdict())
                self._send(*reply)
                return
        self._send(*_refusal(404, "NoSuchRoute", f"no route for {method} {parts.path}"))

    def _answer(self, answer: Callable[..., Reply], names: dict[str, str]) -> Reply:
        try:
            return answer(self, **{name: unquote(value) for name, value in names.items()})
        except _RefusedError as refused:
            return refused.reply

    def _take_fault(self, line: str) -> None:
        for fault in self.hub.faults:
            if fault.match in line and fault.times > 0:
                fault.times -= 1
                self.fault = fault
                if fault.act:
                    fault.act()
                return

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        fault = self.fault or Fault("")
        body = body[: len(body) - fault.cut] if fault.cut else body
        body = bytes([body[0] ^ 1]) + body[1:] if fault.garbled and body else body
        sent = b"" if self.command == "HEAD" else body[: len(body) // 2] if fault.reset else body
        # Recorded before the client can know of the answer, so that a test that counts afterwards sees it.
        with self.hub.lock:
            path = urlsplit(self.path).path
            self.hub.served.append(Served(self.command, path, status, len(sent), "Authorization" in self.headers))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)
        if fault.reset:
            # Lingering for zero seconds makes close() send a reset instead of an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

    # --- looking up

    def _find(self, repo: str, revision: str = "main") -> tuple[Repository, str]:
        found = self.hub.repositories.get(repo)
        if found is None or (found.private and not self.authorized):
            status = 404 if self.authorized else 401
            raise _RefusedError(_refusal(status, "RepoNotFound", "Repository not found"))
        commit = found.resolve(revision)
        if commit is None:
            raise _RefusedError(_refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}"))
        return found, commit

    # --- reading

    def info(self, repo: str, revision: str = "main") -> Reply:
        there, commit = self._find(repo, revision)
        return _json({"id": repo, "sha": commit, "private": there.private, "gated": there.gated})

    def tree(self, repo: str, revision: str) -> Reply:
        there, commit = self._find(repo, revision)
        return _json([_entry(name, data) for name, data in there.commits[commit].items()])

    def refs(self, repo: str) -> Reply:
        there, _ = self._find(repo)
        heads = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in there.branches.items()
        ]
        return _json({"branches": heads, "converts": [], "tags": []})

    def paths_info(self, repo: str, revision: str) -> Reply:
        there, commit = self._find(repo, revision)
        files = there.commits[commit]
        return _json([_entry(name, files[name]) for name in parse_qs(self.body.decode())["paths"] if name in files])

    def xet_token(self, repo: str, revision: str) -> Reply:
        self._find(repo, revision)
        if self.hub.xet_store is None:
            return _refusal(404, "NoSuchRoute", "no Xet storage here")
        if not self.authorized:
            return _refusal(401, None, "Invalid username or password.")
        # In the body for the store's own client, in headers for the Hub's.
        given = {
            "casUrl": f"local://{self.hub.xet_store}",
            "accessToken": "of-the-store",
            "exp": int(time.time()) + 3600,
        }
        names = {"casUrl": "X-Xet-Cas-Url", "accessToken": "X-Xet-Access-Token", "exp": "X-Xet-Token-Expiration"}
        status, body, headers = _json(given)
        return status, body, {**headers, **{names[key]: str(value) for key, value in given.items()}}

    def resolve(self, repo: str, revision: str, name: str) -> Reply:
        there, commit = self._find(repo, revision)
        if there.gated:
            return _refusal(403, "GatedRepo", f"Access to model {repo} is restricted")
        data = there.commits[commit].get(name)
        if data is None:
            return _refusal(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not name.endswith(_LFS_SUFFIXES):
            return self._content(data, {**headers, "ETag": f'"{_sha1(data)}"'})
        # Where they are stored is a secret that the signature opens.
        self.hub.storage[_sha256(data)] = data
        return (
            302,
            b"",
            {
                **headers,
                **self._xet_headers(repo, commit, data),
                "Location": f"{self.hub.storage_endpoint}/stored/{_sha256(data)}/{name}?X-Signature={SIGNATURE}",
                "X-Linked-Etag": f'"{_sha256(data)}"',
                "X-Linked-Size": str(len(data)),
            },
        )

    def _xet_headers(self, repo: str, commit: str, data: bytes) -> dict[str, str]:
        """What Xet's client needs beside the address that all others follow; nothing for a file in the LFS."""
        if _sha256(data) not in self.hub.xet_hashes:
            return {}
        return {
            "X-Xet-Hash": self.hub.xet_hashes[_sha256(data)],
            "X-Xet-Refresh-Route": f"{self.hub.endpoint}/api/models/{repo}/xet-read-token/{commit}",
        }

    def stored(self, oid: str, name: str = "") -> Reply:
        if self.query.get("X-Signature") != [SIGNATURE] or oid not in self.hub.storage:
            return 403, b"<Error>SignatureDoesNotMatch</Error>", {}
        return self._content(self.hub.storage[oid], {"ETag": f'"{oid}"'})

    def _content(self, data: bytes, headers: dict[str, str]) -> Reply:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked or self.command == "HEAD" or (self.fault and self.fault.whole):
            return 200, data, {**headers, "Content-Length": str(len(data))} if self.command == "HEAD" else headers
        start, stop = int(asked[1]), min(int(asked[2] or len(data) - 1) + 1, len(data))
        start += self.fault.shifted if self.fault else 0
        if start >= len(data):
            return 416, b"", {"Content-Range": f"bytes */{len(data)}"}
        return 206, data[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}

    # --- writing

    def create(self) -> Reply:
        asked = json.loads(self.body)
        if not self.authorized:
            return _refusal(401, None, "Invalid username or password.")
        repo = f"{asked.get('organization') or USER}/{asked['name']}"
        answer = {"url": f"{self.hub.endpoint}/{repo}", "name": repo}
        if repo in self.hub.repositories:
            return _json({**answer, "error": "You already created this model repo"}, 409)
        self.hub.add(repo, {".gitattributes": b""}, private=asked.get("visibility") == "private")
        return _json(answer)

    def branch(self, repo: str, branch: str) -> Reply:
        there, commit = self._find(repo, json.loads(self.body or b"{}").get("startingPoint") or "main")
        if self.command == "DELETE":
            return _json({}) if there.branches.pop(branch, None) else _refusal(404, None, f"no branch {branch}")
        if branch in there.branches:
            return _refusal(409, None, f"Reference already exists: {branch}")
        there.branches[branch] = commit
        return _json({})

    def validate_yaml(self) -> Reply:
        return _json({"errors": [], "warnings": []})

    def preupload(self, repo: str, revision: str) -> Reply:
        there, commit = self._find(repo, revision)
        present = there.commits[commit]
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(_LFS_SUFFIXES) else "regular",
                "shouldIgnore": file["path"] in self.hub.ignored,
                "oid": _oid(file["path"], present[file["path"]]) if file["path"] in present else None,
            }
            for file in json.loads(self.body)["files"]
        ]
        return _json({"files": files})

    def lfs_batch(self, repo: str) -> Reply:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            href = f"{self.hub.storage_endpoint}/stored/{wanted['oid']}?X-Signature={SIGNATURE}"
            stored = wanted["oid"] in self.hub.storage
            objects.append(wanted if stored else {**wanted, "actions": {"upload": {"href": href}}})
        return _json({"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> Reply:
        if self.query.get("X-Signature") != [SIGNATURE] or _sha256(self.body) != oid:
            return 403, b"<Error>SignatureDoesNotMatch</Error>", {}
        self.hub.storage[oid] = self.body
        return 200, b"", {}

    def commit(self, repo: str, revision: str) -> Reply:
        there, head = self._find(repo, revision)
        if not self.authorized:
            return _refusal(403, None, "Forbidden")
        changes: dict[str, bytes | None] = {}
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header" and value.get("parentCommit", head) != head:
                return _refusal(412, None, "A commit has happened since. Please refresh and try again.")
            if item["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            if item["key"] == "lfsFile":
                changes[value["path"]] = self.hub.storage[value["oid"]]
            if item["key"] == "deletedFile":
                changes[value["path"]] = None
        sha = there.commit(changes, revision)
        return _json({"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{sha}", "commitOid": sha})


_ROUTES: tuple[tuple[str, str, Callable[..., Reply]], ...] = (
    ("GET", rf"/api/models/{_REPO}", _Handler.info),
    ("GET", rf"/api/models/{_REPO}/revision/(?P<revision>[^/]+)", _Handler.info),
    ("GET", rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)", _Handler.tree),
    ("GET HEAD", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler.resolve),
    ("GET HEAD", r"/stored/(?P<oid>[0-9a-f]{64})/(?P<name>.+)", _Handler.stored),
    ("PUT", r"/stored/(?P<oid>[0-9a-f]{64})", _Handler.store),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("POST DELETE", rf"/api/models/{_REPO}/branch/(?P<branch>[^/]+)", _Handler.branch),
    ("GET", rf"/api/models/{_REPO}/refs", _Handler.refs),
    ("POST", rf"/api/models/{_REPO}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    ("GET", rf"/api/models/{_REPO}/xet-(?:read|write)-token/(?P<revision>[^/]+)", _Handler.xet_token),
    ("POST", rf"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", rf"/api/models/{_REPO}/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
)


def _json(value: object, status: int = 200) -> Reply:
    return status, json.dumps(value).encode(), {"Content-Type": "application/json"}


def _refusal(status: int, code: str | None, message: str) -> Reply:
    headers = {"X-Error-Message": quote(message, safe=" :./?&=,'")} | ({"X-Error-Code": code} if code else {})
    return status, json.dumps({"error": message}).encode(), headers


def _entry(name: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": _sha1(data)}
    if name.endswith(_LFS_SUFFIXES):
        entry["lfs"] = {"oid": _sha256(data), "size": len(data), "pointerSize": 134}
    return entry


def _oid(name: str, data: bytes) -> str:
    return _sha256(data) if name.endswith(_LFS_SUFFIXES) else _sha1(data)


def _sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324 -- as git names a blob


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
