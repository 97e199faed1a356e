"""A Hub on loopback that speaks the HTTP API of the real one, as far as its client needs it to read and to push."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from threading import Event, Thread
from urllib.parse import unquote, urlsplit

from tests.hub_writes import Writes, describe, git_blob


@dataclass
class Repo:
    """A repository: commits by hash, and names of some of them. `card` is its card's metadata."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    card: dict[str, object] = field(default_factory=dict)
    storage: dict[str, bytes] = field(default_factory=dict)  # large files by the sha256 they were announced with
    pushes: list[tuple[str, str]] = field(default_factory=list)  # branch and message of each commit over HTTP

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """A new commit that holds just `files`; `branch` moves to it."""
        tree = sorted((path, git_blob(data)) for path, data in files.items())
        name = hashlib.sha1(repr((tree, branch, len(self.commits))).encode()).hexdigest()
        self.commits[name] = files
        self.refs[branch] = name
        return name

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.resolve(revision) or ""]


@dataclass
class HubFault:
    """What the next requests that match are answered with; `done` if the server has obeyed all the same."""

    request: str  # a pattern of method and path, such as "POST .*/commit/main"
    status: int
    times: int = 1
    done: bool = False
    message: str = ""


class Hub(ThreadingHTTPServer):
    """The part of the Hub's HTTP API that its client uses, over repositories kept in memory.

    Files of `large_bytes` or more are answered with a redirect to another host name, as the real Hub does, and taken
    there, too: in parts of `part_bytes` where they are larger than that.
    """

    daemon_threads = True
    token = "hf_" + "test" * 8  # may write in `namespaces`
    read_token = "hf_" + "read" * 8
    namespaces = frozenset({"org"})
    large_bytes = 4096
    part_bytes = 1 << 20
    page = 20

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _HubRequest)
        self.repos: dict[str, Repo] = {}
        self.seen: list[tuple[str, str, str | None]] = []  # method, path, authorization
        self.failures = 0  # so many of the next answers are 503
        self.faults: list[HubFault] = []
        self.before: dict[str, Callable[[], object]] = {}  # done once, when a request matches
        self.cuts = 0  # so many of the next large files break off half way
        self.cut_uploads = 0  # the same for large files on their way in
        self.short_uploads = 0  # so many of the next ones are taken with half of their bytes, and no complaint
        self.stall_seconds = 0.0  # large files wait so long half way
        self.stalled = Event()  # set at the end, so that nobody waits for a stalled answer
        self.is_hub = True  # otherwise every answer is a page of HTML, as a proxy's

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def storage(self) -> str:
        """Where large files are: another host, to which no token may go."""
        return f"http://localhost:{self.server_port}"

    def repo(self, name: str, **settings: object) -> Repo:
        """`org/name`, or `datasets/org/name`."""
        self.repos[name] = Repo(**settings)
        return self.repos[name]

    def asked(self, request: str) -> int:
        """How many requests matched a pattern of method and path."""
        return sum(bool(re.fullmatch(request, f"{method} {path}")) for method, path, _ in self.seen)


class _HubRequest(Writes):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.begin():
            self.end(self._read)

    def _read(self) -> None:
        if not self.server.is_hub:
            return self.answer(200, b"<html>Sign in</html>", {"Content-Type": "text/html"})
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] == "cdn":
            return self._file(*parts[1:4], "/".join(parts[4:]))
        if parts[0] == "api":
            kind, parts = parts[1], parts[2:]
        else:
            kind = "datasets" if parts[0] == "datasets" else "models"
            parts = parts[1:] if kind == "datasets" else parts
        name = f"{'datasets/' if kind == 'datasets' else ''}{parts[0]}/{parts[1]}"
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and not self.known):
            return self.answer(404 if self.known else 401, error="RepoNotFound")
        if parts[2:] == ["refs"]:
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
                for name, commit in repo.refs.items()
            ]
            return self.json({"branches": branches, "tags": [], "converts": []})
        verb, revision = (*parts[2:4], "revision", "main")[:2] if len(parts) > 3 else ("revision", "main")
        commit = repo.resolve(revision)
        if commit is None:
            return self.answer(404, error="RevisionNotFound")
        if verb == "revision":
            return self.json({"id": name.removeprefix("datasets/"), "sha": commit, "private": repo.private,
                              "gated": "manual" if repo.gated
                              else False, "tags": [], "siblings": [], "cardData": repo.card or None})  # fmt: skip
        if verb == "tree":
            return self._tree(repo.commits[commit])
        if repo.gated and not self.known:
            return self.answer(403 if self.headers.get("Authorization") else 401, error="GatedRepo")
        return self._resolve(name, repo, commit, "/".join(parts[4:]))

    def _tree(self, files: dict[str, bytes]) -> None:
        query = urlsplit(self.path).query
        start = int(query.rpartition("cursor=")[2]) if "cursor=" in query else 0
        listed = [describe(path, data) for path, data in files.items()]
        after = start + self.server.page
        more = f'<{self.server.endpoint}{urlsplit(self.path).path}?recursive=true&cursor={after}>; rel="next"'
        self.json(listed[start:after], {"Link": more} if after < len(listed) else {})

    def _resolve(self, name: str, repo: Repo, commit: str, path: str) -> None:
        data = repo.commits[commit].get(path)
        if data is None:
            return self.answer(404, error="EntryNotFound", headers={"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        if len(data) < self.server.large_bytes:
            return self._data(data, headers)
        linked = {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
        kind, owner, short = ("models", *name.split("/"))[-3:]
        elsewhere = f"{self.server.storage}/cdn/{kind}-{owner}/{short}/{commit}/{path}"
        return self.answer(302, headers={"X-Repo-Commit": commit, "Location": elsewhere, **linked})

    def _file(self, owner: str, short: str, commit: str, path: str) -> None:
        kind, _, owner = owner.partition("-")
        name = f"{'datasets/' if kind == 'datasets' else ''}{owner}/{short}"
        self._data(self.server.repos[name].commits[commit][path], {}, cut=self.command == "GET")

    def _data(self, data: bytes, headers: dict[str, str], cut: bool = False) -> None:
        status, wanted = 200, self.headers.get("Range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            headers["Content-Range"] = f"bytes {first}-{last or len(data) - 1}/{len(data)}"
            status, data = 206, data[int(first) : int(last) + 1 if last else None]
        breaks = cut and self.server.cuts > 0
        self.answer(status, data, headers, sent=len(data) // 2 if breaks else len(data))
        if breaks:
            self.server.cuts -= 1
            self.close_connection = True


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()
    with serving(hub):
        yield hub
        hub.stalled.set()


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[None]:
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
