"""Real servers on loopback for tests: SeaweedFS as S3 (HTTP and HTTPS at once), and a Hub that speaks its HTTP API."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import unquote, urlsplit
from xml.sax.saxutils import escape

ACCESS_KEY, SECRET_KEY = "tunejob-test-access", "tunejob-test-secret"
READY_SECONDS = 60
GRPC_OFFSET = 10_000  # SeaweedFS listens there too


# ------------------------------------------------------------------------------------------------------ S3


@dataclass(frozen=True)
class S3Server:
    http: str
    https: str
    ca: Path

    def environment(self, secure: bool = False, secret: str = SECRET_KEY) -> dict[str, str]:
        """What a job needs to reach the server."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_ENDPOINT_URL": self.https if secure else self.http,
            "AWS_CA_BUNDLE": str(self.ca),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self):
        return _client(self.http)

    def new_bucket(self) -> str:
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name

    def open_uploads(self, bucket: str) -> list[str]:
        """Keys of multipart uploads that were neither completed nor aborted."""
        return [item["Key"] for item in self.client().list_multipart_uploads(Bucket=bucket).get("Uploads", [])]


@cache
def _client(endpoint: str):
    from boto3.session import Session

    return Session(ACCESS_KEY, SECRET_KEY, region_name="us-east-1").client("s3", endpoint_url=endpoint)


def closed_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _free_ports(count: int) -> list[int]:
    """Ports that are free, with their gRPC twins."""
    found: list[int] = []
    while len(found) < count:
        port = random.randint(20_000, 50_000)
        if port not in found and not any(_answers(p) for p in (port, port + GRPC_OFFSET)):
            found.append(port)
    return found


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """SeaweedFS with its data in `folder`; stopped at the end."""
    import trustme

    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    keys = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    (folder / "s3.json").write_text(json.dumps({"identities": [{"name": "test", "credentials": keys, "actions": actions}]}))
    (folder / "data").mkdir()
    s3, s3_tls, master, volume, filer = _free_ports(5)
    ports = {"s3.port": s3, "s3.port.https": s3_tls, "master.port": master, "volume.port": volume, "filer.port": filer}
    settings = {
        "dir": folder / "data", "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "filer": "true", "s3": "true",
        "s3.config": folder / "s3.json", "s3.cert.file": folder / "cert.pem", "s3.key.file": folder / "key.pem",
        "s3.port.iceberg": 0, "s3.port.lance": 0, "s3.autoCreateBucket": "false",
        "master.volumeSizeLimitMB": 64, "volume.max": 5000, "master.telemetry": "false",
    }  # fmt: skip
    command = [str(Path(sys.executable).parent / "weed"), "server", *(f"-{k}={v}" for k, v in (settings | ports).items())]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        server = S3Server(f"http://127.0.0.1:{s3}", f"https://127.0.0.1:{s3_tls}", folder / "ca.pem")
        _wait_ready(server, process)
        yield server
    finally:
        process.kill()  # it takes half a minute to say goodbye, and its data goes with the folder
        process.wait()


def _wait_ready(server: S3Server, process: subprocess.Popen[bytes]) -> None:
    """Ready once both addresses answer and a bucket can take an object."""
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + READY_SECONDS
    trust = ssl.create_default_context(cafile=str(server.ca))
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(server.https, context=trust, timeout=2)
        except urllib.error.HTTPError:  # it answers, and wants a signature
            try:
                server.client().put_object(Bucket=server.new_bucket(), Key="ready", Body=b"ready")
            except (BotoCoreError, ClientError):
                time.sleep(0.2)
            else:
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"SeaweedFS did not start, exit status {process.poll()}")


@contextmanager
def listing_server(objects: dict[str, bytes]) -> Iterator[str]:
    """The address of an S3 server that lists and gives `objects` under keys no honest server would take."""

    class Request(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            items = "".join(f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size></Contents>" for key, data in objects.items())
            listing = f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>".encode()
            data = listing if "list-type=2" in url.query else objects[unquote(url.path).split("/", 2)[2]]
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Request)
    with _serving(server):
        yield f"http://127.0.0.1:{server.server_port}"


# ------------------------------------------------------------------------------------------------------ Hub


@dataclass
class Repo:
    """A repository: commits by hash, and names of some of them. `card` is its card's metadata."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    card: dict[str, object] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """A new commit that holds just `files`; `branch` moves to it."""
        name = hashlib.sha1(repr((sorted(files.items()), branch, len(self.commits))).encode()).hexdigest()
        self.commits[name] = files
        self.refs[branch] = name
        return name

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


class Hub(ThreadingHTTPServer):
    """The part of the Hub's HTTP API that its client uses to read, over repositories kept in memory.

    Files of `large_bytes` or more are answered with a redirect to another host name, as the real Hub does.
    """

    daemon_threads = True
    token = "hf_" + "test" * 8
    large_bytes = 4096
    page = 20

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _HubRequest)
        self.repos: dict[str, Repo] = {}
        self.seen: list[tuple[str, str, str | None]] = []  # method, path, authorization
        self.failures = 0  # so many of the next answers are 503
        self.cuts = 0  # so many of the next large files break off half way
        self.stall_seconds = 0.0  # large files wait so long half way
        self.stalled = Event()  # set at the end, so that nobody waits for a stalled answer
        self.is_hub = True  # otherwise every answer is a page of HTML, as a proxy's

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def repo(self, name: str, **settings: object) -> Repo:
        """`org/name`, or `datasets/org/name`."""
        self.repos[name] = Repo(**settings)
        return self.repos[name]


class _HubRequest(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.seen.append((self.command, self.path, self.headers.get("Authorization")))
        if self.server.failures:
            self.server.failures -= 1
            return self._answer(503)
        if not self.server.is_hub:
            return self._answer(200, b"<html>Sign in</html>", {"Content-Type": "text/html"})
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
        allowed = self.headers.get("Authorization") == f"Bearer {self.server.token}"
        if repo is None or (repo.private and not allowed):
            return self._answer(404 if allowed else 401, error="RepoNotFound")
        verb, revision = (*parts[2:4], "revision", "main")[:2] if len(parts) > 3 else ("revision", "main")
        commit = repo.resolve(revision)
        if commit is None:
            return self._answer(404, error="RevisionNotFound")
        if verb == "revision":
            return self._json({"id": name.removeprefix("datasets/"), "sha": commit, "private": repo.private, "gated": "manual" if repo.gated
                               else False, "tags": [], "siblings": [], "cardData": repo.card or None})  # fmt: skip
        if verb == "tree":
            return self._tree(repo.commits[commit])
        if repo.gated and not allowed:
            return self._answer(403 if self.headers.get("Authorization") else 401, error="GatedRepo")
        return self._resolve(name, repo, commit, "/".join(parts[4:]))

    def _tree(self, files: dict[str, bytes]) -> None:
        query = urlsplit(self.path).query
        start = int(query.rpartition("cursor=")[2]) if "cursor=" in query else 0
        listed = [{"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()} for path, data in files.items()]
        after = start + self.server.page
        more = f'<{self.server.endpoint}{urlsplit(self.path).path}?recursive=true&cursor={after}>; rel="next"'
        self._json(listed[start:after], {"Link": more} if after < len(listed) else {})

    def _resolve(self, name: str, repo: Repo, commit: str, path: str) -> None:
        data = repo.commits[commit].get(path)
        if data is None:
            return self._answer(404, error="EntryNotFound", headers={"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        if len(data) < self.server.large_bytes:
            return self._data(data, headers)
        linked = {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
        kind, owner, short = ("models", *name.split("/"))[-3:]
        elsewhere = f"http://localhost:{self.server.server_port}/cdn/{kind}-{owner}/{short}/{commit}/{path}"
        return self._answer(302, headers={"X-Repo-Commit": commit, "Location": elsewhere, **linked})

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
        self._answer(status, data, headers, sent=len(data) // 2 if breaks else len(data))
        if breaks:
            self.server.cuts -= 1
            self.close_connection = True

    def _json(self, value: object, headers: dict[str, str] | None = None) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _answer(
        self, status: int, data: bytes = b"", headers: dict[str, str] | None = None, error: str = "", sent: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if error:
            self.send_header("X-Error-Code", error)
            self.send_header("X-Error-Message", error)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            if self.path.startswith("/cdn/") and self.server.stall_seconds:
                self.wfile.write(data[: len(data) // 2])
                self.server.stalled.wait(self.server.stall_seconds)
                return
            self.wfile.write(data[:sent])


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()
    with _serving(hub):
        yield hub
        hub.stalled.set()


@contextmanager
def _serving(server: ThreadingHTTPServer) -> Iterator[None]:
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
