"""Stores that allow a run less than all: what is missing is named before it costs, a run may do without deletion."""

from __future__ import annotations

import json
import os
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import trustme

from job.errors import Fault, InputError
from job.host import child
from job.host.log import Log
from job.ledger.checkpoints import Checkpoints, TrainingOrigin
from job.ledger.lease import KEY, Lease
from job.ledger.manifest import store_file, verify
from job.ledger.receipts import Receipts
from job.ledger.replace import carry_out, plan_replacement
from job.ledger.rights import require_rights
from job.run import run_job
from job.spec import CheckpointsSpec, parse_spec
from job.store import S3Store, open_store
from tests.faults.proxy import ENDLESS, Kind, Proxy, Trouble, proxy_to
from tests.flow.running import tiny
from tests.servers import LIMITED, LIMITED_BUCKET, WITHOUT_DELETE, S3Server
from tests.unit.test_manifest import a_spec, finished

RUN = "0123456789abcdef"
ORIGIN = TrainingOrigin(RUN, "hf://org/base@main", "d" * 64)


@pytest.fixture
def proxy(s3: S3Server, bucket: str, clean_environment: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with proxy_to(s3.http) as server:
        clean_environment.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


def tried(address: str) -> tuple[list[Fault], list[dict[str, Any]]]:
    """What is said to be missing, and what the log says."""
    said = StringIO()
    try:
        require_rights(open_store(address), RUN, "/output/uri", Log(said, json_lines=True))
    except InputError as refusal:
        return list(refusal.faults), []
    return [], [json.loads(line) for line in said.getvalue().splitlines()]


def test_rights_are_tried_in_seven_requests_that_leave_nothing(proxy: Proxy, s3: S3Server, bucket: str) -> None:
    assert tried(f"s3://{bucket}/runs") == ([], [])
    assert [asked.split()[0] for asked in proxy.seen] == ["PUT", "GET", "HEAD", "GET", "POST", "DELETE", "DELETE"]
    assert (S3Store(f"s3://{bucket}/runs").list(), s3.open_uploads(bucket)) == ([], [])


@pytest.mark.parametrize(
    ("denied", "named"),
    [
        ("PUT .*", ["s3:PutObject"]),
        ("GET .*/rights", ["s3:GetObject"]),
        ("GET .*list-type.*", ["s3:ListBucket"]),
        ("POST .*uploads.*", ["s3:PutObject"]),
        ("(GET .*/rights|POST .*)", ["s3:GetObject", "s3:PutObject"]),
        (".*", ["s3:PutObject", "s3:PutObject"]),
    ],
)
def test_every_missing_right_is_named(proxy: Proxy, s3: S3Server, bucket: str, denied: str, named: list[str]) -> None:
    proxy.order(Trouble(Kind.DENIED, denied, ENDLESS))
    missing = tried(f"s3://{bucket}/runs")[0]
    assert [fault.expected for fault in missing] == [f"the right {right}" for right in named]
    assert all(fault.where == "/output/uri" and "k8s/README.md" in fault.hint for fault in missing)
    proxy.order()
    assert (S3Store(f"s3://{bucket}/runs").list(), s3.open_uploads(bucket)) == ([], []), "what was tried is removed"


def test_a_right_to_abort_that_is_missing_is_said(proxy: Proxy, bucket: str) -> None:
    proxy.order(Trouble(Kind.DENIED, "DELETE .*uploadId.*", ENDLESS))
    missing, said = tried(f"s3://{bucket}/runs")
    assert (missing, len(said)) == ([], 1)
    assert said[0]["note"] == f"uploads that are cut short will stay at s3://{bucket}/runs"
    assert "s3:AbortMultipartUpload" in str(said[0]["reason"])


def test_what_may_not_be_written_is_reported_at_the_claim(proxy: Proxy, bucket: str, tmp_path: Path) -> None:
    """By the run itself, with its place in the spec, before an engine is imported."""
    proxy.order(Trouble(Kind.DENIED, "PUT .*", ENDLESS))
    spec = parse_spec(json.dumps(tiny(f"s3://{bucket}/runs")).encode())
    with patch.dict(os.environ), pytest.raises(InputError) as refusal:  # a run prepares the environment for its engine
        run_job(spec, tmp_path, Log(StringIO()))
    child._SERVERS.pop().close()
    (fault,) = refusal.value.faults
    assert (fault.where, fault.expected) == ("/output/uri", "the right s3:PutObject")


def test_a_lease_that_may_not_be_written_is_reported_with_its_place(proxy: Proxy, bucket: str) -> None:
    proxy.order(Trouble(Kind.DENIED, "PUT .*", ENDLESS))
    with pytest.raises(InputError) as refusal, Lease(S3Store(f"s3://{bucket}/runs"), Log(StringIO())):
        pass
    (fault,) = refusal.value.faults
    assert (fault.where, fault.expected) == ("/output/uri", "the right s3:PutObject")


# ---------------------------------------------------------------------------------------- the policy of k8s/README.md


def test_the_policy_of_the_docs_is_enough_and_no_more_than_that(
    s3: S3Server, clean_environment: pytest.MonkeyPatch
) -> None:
    """A whole run with it is in tests/flow/test_places.py."""
    for name, value in s3.environment(access=LIMITED).items():
        clean_environment.setenv(name, value)
    assert tried(f"s3://{LIMITED_BUCKET}/runs/a") == ([], [])
    assert [fault.expected for fault in tried(f"s3://{LIMITED_BUCKET}/other")[0]] == ["the right s3:PutObject"] * 2
    assert S3Store(f"s3://{LIMITED_BUCKET}/runs/a").abort_stale_uploads() == 0


def test_a_right_to_delete_that_is_missing_is_said(without_delete: S3Store) -> None:
    missing, said = tried(without_delete.uri)
    assert (missing, len(said)) == ([], 1)
    assert "checkpoints, receipts and the lease" in said[0]["note"]
    assert "s3:DeleteObject" in said[0]["reason"]


@pytest.fixture
def without_delete(s3: S3Server, clean_environment: pytest.MonkeyPatch, tmp_path: Path) -> S3Store:
    for name, value in s3.environment(access=WITHOUT_DELETE).items():
        clean_environment.setenv(name, value)
    return S3Store(f"s3://{LIMITED_BUCKET}/runs/{tmp_path.name}")


def test_a_failure_to_prune_is_not_a_failure_to_store(without_delete: S3Store, tmp_path: Path) -> None:
    said = StringIO()
    settings = CheckpointsSpec(uri=None, every_minutes=10, every_steps=None, keep=1, max_failures=1)
    mine = Checkpoints(without_delete, ORIGIN, settings, Log(said, json_lines=True), {}, claim=lambda: None)
    for step in (5, 10, 15):
        folder = tmp_path / f"made-{step}"
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(b"x")
        mine.send(step, folder)
    mine.remove()
    assert mine.stored == 3
    events = [json.loads(line) for line in said.getvalue().splitlines()]
    assert [event["objects"] for event in events if event["event"] == "leftovers"] == [2, 4, 6]


def test_receipts_and_lease_need_no_deletion(without_delete: S3Store, tmp_path: Path) -> None:
    log = Log(StringIO())
    (tmp_path / "file").write_bytes(b"x")
    receipts = Receipts(without_delete, RUN, log)
    receipts.add("gguf-q8_0", [store_file(without_delete, tmp_path / "file", "gguf/file")], {})
    receipts.clear()
    begun = time.monotonic()
    for _ in range(2):  # the second holder waits for nobody: the lease was given back
        with Lease(without_delete, log):
            assert without_delete.read(KEY)
        assert without_delete.read(KEY) == b""
    assert time.monotonic() - begun < 20


def test_what_may_not_be_deleted_is_not_replaced(without_delete: S3Store, tmp_path: Path) -> None:
    """The right is named, and the result stays as it was."""
    manifest = finished(without_delete, a_spec(), tmp_path, {})
    log = Log(StringIO())
    with Lease(without_delete, log) as lease, pytest.raises(InputError) as refusal:
        carry_out(plan_replacement(without_delete), without_delete, lease, log)
    assert refusal.value.faults[0].expected == "the right s3:DeleteObject"
    assert verify(without_delete).encode() == manifest.encode()


# ---------------------------------------------------------------------------------------- servers without checksums


@contextmanager
def old_server(folder: Path) -> Iterator[str]:
    """Over TLS, and like Ceph 16: a body of no announced length, as boto3 sends it before a checksum, is refused."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "old-ca.pem")

    class Request(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_PUT(self) -> None:
            known = "Content-Length" in self.headers
            if known:
                self.rfile.read(int(self.headers["Content-Length"]))
            else:  # to its end, or the client sees a connection that breaks instead of the answer
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    self.rfile.read(size + 2)
                while self.rfile.readline().strip():
                    pass
            body = b"" if known else b"<Error><Code>MissingContentLength</Code></Error>"
            self.send_response(200 if known else 411)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Request)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_without_trailing_checksums_is_reported_with_the_cure(
    s3: S3Server, tmp_path: Path, clean_environment: pytest.MonkeyPatch
) -> None:
    with old_server(tmp_path) as endpoint:
        for name, value in {
            **s3.environment(),
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_CA_BUNDLE": str(tmp_path / "old-ca.pem"),
        }.items():
            clean_environment.setenv(name, value)
        with pytest.raises(InputError, match="MissingContentLength") as failure:
            S3Store("s3://bucket/run").write("a", b"x")
        assert "AWS_REQUEST_CHECKSUM_CALCULATION=when_required" in failure.value.faults[0].expected
        clean_environment.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        S3Store("s3://bucket/run").write("a", b"x")


@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_those_who_try_at_once_do_not_take_each_others_trial_for_a_missing_right(
    kind: str, bucket: str, tmp_path: Path
) -> None:
    """Of two runs of one spec that began together, one removed what the other had just written: 11 for good."""
    address = str(tmp_path / "out") if kind == "directory" else f"s3://{bucket}/runs"

    def try_often() -> list[list[Fault]]:
        return [missing for missing, _ in (tried(address) for _ in range(10)) if missing]

    with ThreadPoolExecutor(2) as both:
        assert [found.result() for found in [both.submit(try_often), both.submit(try_often)]] == [[], []]
