"""Faults on the wire between the store and a real S3 server: survived, or reported within a bound; never silent."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from job.errors import InputError, TransientError
from job.store import S3Store, Stored
from tests.faults.proxy import ENDLESS, Kind, Proxy, Trouble, bad_wire_to, proxy_to
from tests.servers import SMALLEST_PART, S3Server

PASSING = [
    Kind.SLOW_DOWN,
    Kind.RESET,
    Kind.LOST,
    Kind.TRUNCATE,
    Kind.EMPTY,
    Kind.HALF_HEAD,
    Kind.CORRUPT,
    Kind.CORRUPT_UP,
]
LIMITS = {"TUNEJOB_S3_PATIENCE_SECONDS": "1", "TUNEJOB_S3_READ_SECONDS": "1", "TUNEJOB_S3_REQUEST_SECONDS": "1.5"}
# Five tries of a request that takes 1.5 s and is found out within a tick, and the pauses between them; twice that for a
# machine that does other things.
BOUND_SECONDS = 30
LARGE = random.Random(1).randbytes(SMALLEST_PART + 100_000)
SMALL = random.Random(2).randbytes(20_000)


@pytest.fixture
def proxy(s3: S3Server, bucket: str, clean_environment: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with proxy_to(s3.http) as server:
        clean_environment.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


@pytest.fixture
def address(bucket: str) -> str:
    return f"s3://{bucket}/prefix"


@pytest.fixture
def large(tmp_path: Path, small_parts: None) -> Path:
    """Of two parts; of the size that ships: tests/unit/test_store.py."""
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    return path


def uses(store: S3Store, large: Path) -> dict[str, Callable[[], object]]:
    """Each operation on objects of its own, with what it must give."""
    down = large.with_name("down")

    def upload() -> str:
        store.upload(large, "up")
        return "stored"

    def write() -> str:
        store.write("written", SMALL)
        return "stored"

    def download() -> bytes:
        store.download("given/large", down)
        return down.read_bytes()

    def delete() -> str:
        store.delete("gone")
        return "stored"

    return {
        "list": lambda: store.list("given"),
        "read": lambda: store.read("given/small"),
        "sha256": lambda: store.sha256("given/large"),
        "download": download,
        "upload": upload,
        "write": write,
        "delete": delete,
    }


EXPECTED = {
    "list": [Stored("given/large", len(LARGE)), Stored("given/small", len(SMALL))],
    "read": SMALL,
    "sha256": hashlib.sha256(LARGE).hexdigest(),
    "download": LARGE,
    "upload": "stored",
    "write": "stored",
    "delete": "stored",
}


def given(store: S3Store, large: Path) -> None:
    store.write("given/small", SMALL)
    store.upload(large, "given/large")
    store.write("gone", b"x")


@pytest.mark.parametrize(
    ("kind", "mode"),
    [*((kind, "when_supported") for kind in PASSING), (Kind.RESET, "when_required"), (Kind.CORRUPT, "when_required")],
)
def test_four_faults_in_a_row_at_every_request_are_survived(
    proxy: Proxy, address: str, large: Path, kind: Kind, mode: str, clean_environment: pytest.MonkeyPatch
) -> None:
    """Each different request meets the fault four times: list, head, range, put, delete; create, part, complete."""
    clean_environment.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", mode)
    clean_environment.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", mode)
    given(S3Store(address), large)
    # An upload whose parts' answers were cut is begun anew, under another name, and so would meet the fault for ever.
    proxy.order(Trouble(kind, "(?!.*partNumber).*" if kind is Kind.HALF_HEAD else ".*", times=4, of_each=True))
    with ThreadPoolExecutor(7) as pool:
        started = {name: pool.submit(use) for name, use in uses(S3Store(address), large).items()}
    assert {name: use.result() for name, use in started.items()} == EXPECTED
    proxy.order()
    store = S3Store(address)
    assert [item.key for item in store.list()] == ["given/large", "given/small", "up", "written"]
    assert (store.sha256("up"), store.read("written")) == (EXPECTED["sha256"], SMALL)


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in (Kind.LOST, Kind.DENIED)])
def test_endless_faults_are_reported_within_a_bound(
    proxy: Proxy, address: str, large: Path, kind: Kind, clean_environment: pytest.MonkeyPatch
) -> None:
    """With the limits set short, every operation ends as transient, exit 20, in 30 s at most."""
    given(S3Store(address), large)
    for name, value in LIMITS.items():
        clean_environment.setenv(name, value)
    took: dict[str, float] = {}
    operation = uses(S3Store(address), large)

    def fail(name: str) -> int:
        begun = time.monotonic()
        with pytest.raises(TransientError) as failure:
            operation[name]()
        took[name] = time.monotonic() - begun
        return failure.value.exit_code

    if kind is Kind.CORRUPT_UP:
        touched, operations = "(PUT|POST) .*", ("upload", "write")
    elif kind is Kind.DRIP:  # of a deletion, the status is all there is to know
        touched, operations = ".*", ("list", "read", "sha256", "download", "upload", "write")
    elif kind is Kind.CORRUPT:  # of a listing, most bits are of no use to us
        touched, operations = "GET .*/given/.*", ("read", "sha256", "download")
    elif kind in (Kind.TRUNCATE, Kind.EMPTY, Kind.HALF_HEAD, Kind.STALL_BODY, Kind.DRIP_BODY):
        touched, operations = "GET .*", ("list", "read", "sha256", "download")
    else:
        touched, operations = ".*", tuple(EXPECTED)
    proxy.order(Trouble(kind, touched, ENDLESS))
    with ThreadPoolExecutor(7) as pool:
        assert set(pool.map(fail, operations)) == {20}
    print(kind.name, {name: round(seconds, 1) for name, seconds in took.items()})
    assert max(took.values()) < BOUND_SECONDS
    assert not large.with_name("down").exists()


def test_what_a_server_stored_damaged_is_stored_anew(
    proxy: Proxy, address: str, large: Path, clean_environment: pytest.MonkeyPatch
) -> None:
    """Without checksums in requests the server takes anything: its ETag shows that, four times in a row."""
    clean_environment.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    store = S3Store(address)
    part, small = (
        Trouble(Kind.CORRUPT_UP, "PUT .*partNumber=1.*", times=4),
        Trouble(Kind.CORRUPT_UP, "PUT .*/small", times=4),
    )
    proxy.order(part, small)
    store.upload(large, "large")
    store.write("small", SMALL)
    assert (part.met, small.met) == (4, 4)
    assert (store.sha256("large"), store.read("small")) == (EXPECTED["sha256"], SMALL)


@pytest.mark.parametrize("operation", list(EXPECTED))
def test_four_answers_that_credentials_have_expired_are_survived(
    proxy: Proxy, address: str, large: Path, operation: str
) -> None:
    given(S3Store(address), large)
    proxy.order(Trouble(Kind.EXPIRED, times=4))
    assert uses(S3Store(address), large)[operation]() == EXPECTED[operation]


def test_an_outage_longer_than_botocore_waits_is_survived(proxy: Proxy, address: str) -> None:
    """Every connection is reset for 8 s, as when a store is restarted."""
    store = S3Store(address)
    proxy.order(Trouble(Kind.RESET, times=ENDLESS))
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(store.write, "a", b"x")
        time.sleep(8)
        assert not written.done()
        proxy.order()
        written.result(30)
    assert store.read("a") == b"x"


def test_many_faulty_requests_use_up_no_budget(proxy: Proxy, address: str) -> None:
    """botocore's own budget of retries ends after 35 of these 160."""
    store = S3Store(address)
    proxy.order(Trouble(Kind.RESET, "PUT .*", times=4, of_each=True))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: store.write(f"many/{i}", b"x"), range(40)))
    assert proxy.asked("PUT .*") == 5 * 40
    assert len(store.list("many")) == 40


@pytest.mark.parametrize("mode", ["when_supported", "when_required"])
def test_a_hundred_corruptions_each_way_are_all_caught(
    proxy: Proxy, address: str, mode: str, clean_environment: pytest.MonkeyPatch
) -> None:
    """One bit at random, once per operation, fifty in each mode: writes, reads and listings are right in the end."""
    clean_environment.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", mode)
    clean_environment.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", mode)
    store = S3Store(address)
    store.write("a/listed", b"x")
    for seed in range(50):
        data = random.Random(seed).randbytes(5000)
        up, down = Trouble(Kind.CORRUPT_UP, "PUT .*"), Trouble(Kind.CORRUPT, "GET .*/b/file")
        listing = Trouble(Kind.CORRUPT, "GET .*list-type.*prefix%2Fa.*")
        proxy.order(up, down, listing)
        store.write("b/file", data)
        assert store.read("b/file") == data
        assert store.list("a") == [Stored("a/listed", 1)]
        assert (up.met, down.met, listing.met) == (1, 1, 1)
        assert hashlib.sha256(data).hexdigest() == store.sha256("b/file")


def test_an_etag_that_proves_nothing_is_replaced_by_a_second_reading(
    proxy: Proxy, address: str, bucket: str, s3: S3Server, tmp_path: Path, clean_environment: pytest.MonkeyPatch
) -> None:
    """Parts of different sizes: nobody can compute the ETag from the file."""
    clean_environment.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    client, key = s3.client(), "prefix/file"
    data = random.Random(3).randbytes(13 << 20)
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    parts = []
    for number, part in ((1, data[: 5 << 20]), (2, data[5 << 20 : 12 << 20]), (3, data[12 << 20 :])):
        stored = client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=part)
        parts.append({"PartNumber": number, "ETag": stored["ETag"]})
    client.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})
    for damaged, readings in ((0, 2), (1, 3), (4, 6)):
        proxy.order(Trouble(Kind.CORRUPT, "GET .*/file", times=damaged))
        S3Store(address).download("file", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == data
        assert proxy.asked("GET .*/file") == readings


@pytest.mark.parametrize("kind", [Kind.CORRUPT, Kind.DRIP])
def test_bad_bytes_and_dripping_under_tls_are_survived(
    s3: S3Server, bucket: str, large: Path, kind: Kind, clean_environment: pytest.MonkeyPatch
) -> None:
    clean_environment.setenv("TUNEJOB_S3_REQUEST_SECONDS", "2")
    S3Store(f"s3://{bucket}/prefix").upload(large, "file")
    with bad_wire_to(s3.https, kind, times=4, after_bytes=500_000) as wire:
        clean_environment.setenv("AWS_ENDPOINT_URL", wire.url)
        store = S3Store(f"s3://{bucket}/prefix")
        store.download("file", large.with_name("down"))
        assert wire.times == 0
    assert large.with_name("down").read_bytes() == LARGE


# -------------------------------------------------------------------------------------- credentials


def test_expired_credentials_are_read_anew_from_a_file(
    proxy: Proxy, address: str, s3: S3Server, tmp_path: Path, clean_environment: pytest.MonkeyPatch
) -> None:
    """The old key is unknown to the server; only with what the file says later can the write succeed."""
    known = s3.environment()
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = old\naws_secret_access_key = old\naws_session_token = old\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        clean_environment.delenv(name)
    clean_environment.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    store = S3Store(address)
    with pytest.raises(InputError, match="InvalidAccessKeyId"):
        store.write("a", b"x")
    key, secret = known["AWS_ACCESS_KEY_ID"], known["AWS_SECRET_ACCESS_KEY"]
    file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    proxy.order(Trouble(Kind.EXPIRED))
    store.write("a", b"x")
    assert store.read("a") == b"x"


def test_expired_credentials_of_the_environment_are_transient(proxy: Proxy, address: str) -> None:
    """A new pod gets what the Secret then holds, so exit 20, at once rather than after minutes of patience."""
    proxy.order(Trouble(Kind.EXPIRED, times=ENDLESS))
    begun = time.monotonic()
    with pytest.raises(TransientError, match="ExpiredToken"):
        S3Store(address).write("a", b"x")
    assert time.monotonic() - begun < 20


# ------------------------------------------------------------------------------------ open uploads


def test_a_failed_upload_aborts_its_own_parts(
    proxy: Proxy, s3: S3Server, bucket: str, address: str, large: Path, clean_environment: pytest.MonkeyPatch
) -> None:
    for name, value in LIMITS.items():
        clean_environment.setenv(name, value)
    proxy.order(Trouble(Kind.RESET, "PUT .*partNumber=2.*", times=ENDLESS))
    with pytest.raises(TransientError, match="partNumber=2"):
        S3Store(address).upload(large, "file")
    assert proxy.asked("DELETE .*uploadId.*") == 1
    assert s3.open_uploads(bucket) == []


UPLOAD = """
import sys
from pathlib import Path
from job.store import open_store, s3
s3.PART_BYTES = int(sys.argv[3])
open_store(sys.argv[1]).upload(Path(sys.argv[2]), "k/file")
"""


def test_what_a_killed_upload_left_is_aborted_by_the_rerun_and_nothing_else(
    proxy: Proxy, s3: S3Server, bucket: str, address: str, large: Path
) -> None:
    foreign = ["prefix-old/file", "prefix.file", "other/prefix/file"]
    for key in foreign:
        s3.client().create_multipart_upload(Bucket=bucket, Key=key)
    proxy.order(Trouble(Kind.STALL, "PUT .*partNumber=2.*"))
    process = subprocess.Popen([sys.executable, "-c", UPLOAD, address, str(large), str(SMALLEST_PART)])
    deadline = time.monotonic() + 30
    while (
        not (proxy.asked("PUT .*partNumber=2.*") and proxy.asked("PUT .*partNumber=1.*"))
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "prefix/k/file" in s3.open_uploads(bucket)
    store = S3Store(address)
    assert store.list() == []
    assert store.abort_stale_uploads("other") == 0
    assert store.abort_stale_uploads() == 1
    assert sorted(s3.open_uploads(bucket)) == sorted(foreign)
    assert store.abort_stale_uploads() == 0


def test_limits_must_be_numbers(bucket: str, clean_environment: pytest.MonkeyPatch) -> None:
    for value in ("0", "-1", "soon", "nan", "inf"):
        clean_environment.setenv("TUNEJOB_S3_PATIENCE_SECONDS", value)
        with pytest.raises(InputError, match="TUNEJOB_S3_PATIENCE_SECONDS"):
            S3Store(f"s3://{bucket}")
    assert os.environ["TUNEJOB_S3_PATIENCE_SECONDS"] == "inf"
