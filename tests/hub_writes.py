"""The half of the test Hub that takes pushes: repositories, branches, large files and commits, with faults to order."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from tests.hub_server import Hub, Repo

REFUSAL = "You don't have the rights to write under this namespace"


class Large(bytes):
    """Content that git knows only by a pointer."""


def git_blob(data: bytes) -> str:
    """The name git has for what it stores: a large file's pointer, any other file's content."""
    if isinstance(data, Large):
        oid, size = hashlib.sha256(data).hexdigest(), len(data)
        data = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def describe(path: str, data: bytes) -> dict[str, object]:
    """A file as a listing has it."""
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": git_blob(data)}
    if isinstance(data, Large):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


class Writes(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None: ...

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") in {f"Bearer {self.server.token}", f"Bearer {self.server.read_token}"}

    # -------------------------------------------------------------------------------- any request

    def begin(self) -> bool:
        """Reads the request; whether it came whole."""
        self.server.seen.append((self.command, self.path, self.headers.get("Authorization")))
        length = int(self.headers.get("Content-Length", 0))
        if self.command == "PUT" and self.server.cut_uploads:
            self.server.cut_uploads -= 1
            self.rfile.read(length // 2)
            self.close_connection = True
            return False
        self.body = self.rfile.read(length)
        return True

    def end(self, obey: Callable[[], None]) -> None:
        """Obeys the request, or answers it with the fault that was ordered."""
        if self.server.failures:
            self.server.failures -= 1
            return self.answer(503)
        asked = f"{self.command} {self.path}"
        for pattern in [pattern for pattern in self.server.before if re.fullmatch(pattern, asked)]:
            self.server.before.pop(pattern)()
        fault = next(
            (fault for fault in self.server.faults if fault.times and re.fullmatch(fault.request, asked)), None
        )
        if fault is None:
            return obey()
        fault.times -= 1
        if fault.done:
            self.silent = True
            obey()
            self.silent = False
        return self.answer(fault.status, message=fault.message)

    silent = False

    def json(self, value: object, headers: dict[str, str] | None = None) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def answer(
        self,
        status: int,
        data: bytes = b"",
        headers: dict[str, str] | None = None,
        error: str = "",
        sent: int | None = None,
        message: str = "",
    ) -> None:
        if self.silent:
            return
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if error:
            self.send_header("X-Error-Code", error)
        if error or message:
            self.send_header("X-Error-Message", message or error)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            if self.path.startswith("/cdn/") and self.server.stall_seconds:
                self.wfile.write(data[: len(data) // 2])
                self.server.stalled.wait(self.server.stall_seconds)
                return
            self.wfile.write(data[:sent])

    def refused(self, namespace: str) -> bool:
        """Answers and says so if this token may not write there."""
        if not self.known:
            self.answer(401, message="Invalid credentials in Authorization header")
        elif self.headers["Authorization"] != f"Bearer {self.server.token}" or namespace not in self.server.namespaces:
            self.answer(403, message=REFUSAL)
        else:
            return False
        return True

    # -------------------------------------------------------------------------------- writing

    def do_POST(self) -> None:
        if self.begin():
            self.end(self._write)

    do_PUT = do_DELETE = do_POST

    def _write(self) -> None:
        if not self.server.is_hub:
            return self.answer(200, b"<html>Sign in</html>", {"Content-Type": "text/html"})
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] == "storage":
            return self._store(*parts[1:])
        if parts == ["api", "validate-yaml"]:
            return self._validate(json.loads(self.body)["content"])
        if parts == ["api", "repos", "create"]:
            return self._create(json.loads(self.body))
        owner, short, *rest = parts[2:] if parts[0] == "api" else (parts[0], parts[1].removesuffix(".git"), *parts[2:])
        repo = self.server.repos.get(f"{owner}/{short}")
        if repo is None:
            return self.answer(404, error="RepoNotFound")
        if rest[0] == "paths-info":
            return self._paths(repo, rest[1])
        if self.refused(owner):
            return None
        if rest[0] == "branch":
            return self._branch(repo, rest[1])
        if rest == ["info", "lfs", "objects", "batch"]:
            return self._batch(repo, f"{owner}/{short}")
        if repo.resolve(rest[1]) is None:
            return self.answer(404, error="RevisionNotFound")
        return {"preupload": self._preupload, "commit": self._commit}[rest[0]](repo, rest[1])

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if self.refused(asked["organization"]):
            return None
        url = f"{self.server.endpoint}/{name}"
        if name in self.server.repos:
            return self.answer(409, json.dumps({"error": "You already created this model repo", "url": url}).encode())
        self.server.repo(name, private=asked.get("visibility") == "private").commit(
            {".gitattributes": b"*.gguf filter=lfs\n"}
        )
        return self.json({"url": url, "name": name, "id": name})

    def _validate(self, card: str) -> None:
        import yaml

        try:
            yaml.safe_load(card.split("---")[1] if card.startswith("---") else "")
        except yaml.YAMLError as error:
            return self.answer(400, json.dumps({"errors": [{"message": str(error)}]}).encode())
        return self.json({"errors": [], "warnings": []})

    def _branch(self, repo: Repo, name: str) -> None:
        if self.command == "DELETE":
            return self.answer(404, error="RevisionNotFound") if repo.refs.pop(name, None) is None else self.answer(200)
        if name in repo.refs:
            return self.answer(409, message="Reference already exists")
        repo.refs[name] = repo.refs["main"]
        return self.answer(200)

    def _preupload(self, repo: Repo, revision: str) -> None:
        asked, files = json.loads(self.body), repo.files(revision)
        ignored = asked.get("gitIgnore", files.get(".gitignore", b"").decode()).split()
        answers = []
        for file in asked["files"]:
            held = files.get(file["path"])
            oid = (
                None
                if held is None
                else hashlib.sha256(held).hexdigest()
                if isinstance(held, Large)
                else git_blob(held)
            )
            answers.append({
                "path": file["path"], "uploadMode": "lfs" if file["size"] >= self.server.large_bytes else "regular",
                "shouldIgnore": any(fnmatch(file["path"], pattern) for pattern in ignored), "oid": oid,
            })  # fmt: skip
        self.json({"files": answers})

    def _batch(self, repo: Repo, name: str) -> None:
        objects = []
        for item in json.loads(self.body)["objects"]:
            oid, size = item["oid"], item["size"]
            if hashlib.sha256(repo.storage.get(oid, b"")).hexdigest() != oid:
                href = f"{self.server.storage}/storage/{name}/{oid}"
                upload: dict[str, Any] = {"href": f"{href}?X-Amz-Signature=signed"}
                if size > self.server.part_bytes:
                    parts = -(-size // self.server.part_bytes)
                    urls = {f"{part:05}": f"{href}/{part}?X-Amz-Signature=signed" for part in range(1, parts + 1)}
                    upload = {
                        "href": f"{href}/all?X-Amz-Signature=signed",
                        "header": {"chunk_size": str(self.server.part_bytes), **urls},
                    }
                item["actions"] = {"upload": upload}
            objects.append(item)
        self.json({"transfer": "basic", "objects": objects})

    def _store(self, owner: str, short: str, oid: str, part: str = "") -> None:
        if self.headers.get("Authorization") or "X-Amz-Signature=signed" not in self.path:
            return self.answer(400, b"only a signature is taken here")
        storage = self.server.repos[f"{owner}/{short}"].storage
        if part == "all":
            parts = [item["partNumber"] for item in json.loads(self.body)["parts"]]
            self.body = b"".join(storage.pop(f"{oid}/{number}") for number in parts)
            part = ""
        if self.server.short_uploads:
            self.server.short_uploads -= 1
            self.body = self.body[: len(self.body) // 2]
        storage[f"{oid}/{part}" if part else oid] = self.body
        return self.answer(200, headers={"ETag": hashlib.md5(self.body).hexdigest()})

    def _paths(self, repo: Repo, revision: str) -> None:
        if repo.private and not self.known:
            return self.answer(401, error="RepoNotFound")
        wanted = parse_qs(self.body.decode())["paths"]
        files = repo.files(revision)
        return self.json([describe(path, files[path]) for path in wanted if path in files])

    def _commit(self, repo: Repo, branch: str) -> None:
        header, *operations = (json.loads(line) for line in self.body.splitlines())
        if header["value"].get("parentCommit", repo.refs[branch]) != repo.refs[branch]:
            return self.answer(412, message="A commit has happened since. Please refresh and try again.")
        try:
            files = _applied(repo, repo.files(branch), operations)
        except KeyError as error:
            return self.answer(400, message=f"A file or its content does not exist: {error}")
        commit = repo.commit(files, branch)
        repo.pushes.append((branch, header["value"]["summary"]))
        return self.json(
            {
                "commitUrl": f"{self.server.endpoint}/{'/'.join(self.path.split('/')[3:5])}/commit/{commit}",
                "commitOid": commit,
            }
        )


def _applied(repo: Repo, files: dict[str, bytes], operations: list[dict[str, Any]]) -> dict[str, bytes]:
    """The files of `repo` after the operations of a commit. Raises `KeyError` for what is not there."""
    files = dict(files)
    for operation in operations:
        kind, value = operation["key"], operation["value"]
        if kind == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif kind == "lfsFile":
            files[value["path"]] = Large(repo.storage[value["oid"]])
        else:
            del files[value["path"]]
    return files
