"""Real servers on loopback for tests: SeaweedFS as S3 (HTTP and HTTPS at once); the Hub is in `tests/hub_server.py`."""

from __future__ import annotations

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
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.sax.saxutils import escape

from tests.hub_server import Hub, Repo, hub_server, serving

__all__ = ["Hub", "Repo", "S3Server", "closed_port", "hub_server", "listing_server", "s3_server"]

ACCESS_KEY, SECRET_KEY = "tunejob-test-access", "tunejob-test-secret"
# Identities with the policy of k8s/README.md, and with that but for one right.
LIMITED_BUCKET, LIMITED, WITHOUT_DELETE = "my-bucket", "tunejob-test-limited", "tunejob-test-without-delete"
SMALLEST_PART = 5 << 20  # bytes; S3 takes no smaller ones, but for the last
READY_SECONDS = 60
STARTS = 3
GRPC_OFFSET = 10_000  # SeaweedFS listens there too


@dataclass(frozen=True)
class S3Server:
    http: str
    https: str
    ca: Path

    def addresses(self) -> dict[str, str]:
        """As another process gets it, which makes it again by `at`."""
        return {"http": self.http, "https": self.https, "ca": str(self.ca)}

    @classmethod
    def at(cls, http: str, https: str, ca: str) -> S3Server:
        return cls(http, https, Path(ca))

    def environment(self, secure: bool = False, secret: str = SECRET_KEY, access: str = ACCESS_KEY) -> dict[str, str]:
        """What a job needs to reach the server, by the identity that `access` is the key of."""
        return {
            "AWS_ACCESS_KEY_ID": access,
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
        port = random.randint(10_000, 22_000)  # with its twin below those that the system gives to clients
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
    (folder / "s3.json").write_text(json.dumps(_identities()))
    (folder / "data").mkdir()
    server, process = _started(folder)
    try:
        yield server
    finally:
        process.kill()  # it takes half a minute to end, and its data goes with the folder
        process.wait()


def _identities() -> dict[str, list[dict[str, object]]]:
    """Who may do what: one identity everything, the others what a policy says."""

    def identity(access: str, **allowed: list[str]) -> dict[str, object]:
        return {"name": access, "credentials": [{"accessKey": access, "secretKey": SECRET_KEY}], **allowed}

    policy = run_policy()
    return {
        "identities": [
            identity(ACCESS_KEY, actions=["Admin", "Read", "Write", "List", "Tagging"]),
            identity(LIMITED, policyNames=["run"]),
            identity(WITHOUT_DELETE, policyNames=["run-without-delete"]),
        ],
        "policies": [
            {"name": "run", "content": policy},
            {"name": "run-without-delete", "content": policy.replace('"s3:DeleteObject", ', "")},
        ],
    }


def run_policy() -> str:
    """The rights of a run at `LIMITED_BUCKET`/runs, as k8s/README.md gives them to users."""
    text = (Path(__file__).parents[1] / "k8s" / "README.md").read_text("utf-8")
    policy = text.partition("<!-- rights -->\n```json\n")[2].partition("```\n<!-- /rights -->")[0]
    assert json.loads(policy)["Version"] == "2012-10-17"
    return policy


def _started(folder: Path) -> tuple[S3Server, subprocess.Popen[bytes]]:
    """The server, ready; begun anew where something else took one of its ports meanwhile."""
    for _ in range(STARTS):
        s3, s3_tls, master, volume, filer = _free_ports(5)
        ports = {
            "s3.port": s3,
            "s3.port.https": s3_tls,
            "master.port": master,
            "volume.port": volume,
            "filer.port": filer,
        }
        settings = {
            "dir": folder / "data", "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "filer": "true", "s3": "true",
            "s3.config": folder / "s3.json", "s3.cert.file": folder / "cert.pem", "s3.key.file": folder / "key.pem",
            "s3.port.iceberg": 0, "s3.port.lance": 0, "s3.autoCreateBucket": "false",
            "master.volumeSizeLimitMB": 64, "volume.max": 5000, "master.telemetry": "false",
        }  # fmt: skip
        command = [
            str(Path(sys.executable).parent / "weed"),
            "server",
            *(f"-{k}={v}" for k, v in (settings | ports).items()),
        ]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        server = S3Server(f"http://127.0.0.1:{s3}", f"https://127.0.0.1:{s3_tls}", folder / "ca.pem")
        if _is_ready(server, process):
            server.client().create_bucket(Bucket=LIMITED_BUCKET)
            return server, process
        process.kill()
        process.wait()
    raise RuntimeError(f"SeaweedFS did not start, exit status {process.poll()}")


def _is_ready(server: S3Server, process: subprocess.Popen[bytes]) -> bool:
    """Waits until both addresses answer and a bucket can take an object."""
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
                return True
        except OSError:
            time.sleep(0.2)
    return False


@contextmanager
def listing_server(objects: dict[str, bytes]) -> Iterator[str]:
    """The address of an S3 server that lists and gives `objects` under keys no honest server would take."""

    class Request(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            items = "".join(
                f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size></Contents>"
                for key, data in objects.items()
            )
            listing = f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>".encode()
            data = listing if "list-type=2" in url.query else objects[unquote(url.path).split("/", 2)[2]]
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Request)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}"
