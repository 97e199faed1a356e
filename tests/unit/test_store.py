"""The same promises for every store: a directory, S3 over HTTP, S3 over HTTPS."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from job.errors import InputError, PolicyError, TransientError
from job.store import DirectoryStore, S3Store, Store, Stored, open_store, split_s3
from job.store.s3 import PART_BYTES
from tests.servers import SMALLEST_PART, S3Server, closed_port

MIB = 1 << 20


@pytest.fixture(params=["directory", "http", "https"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "directory":
        return open_store(str(tmp_path / "store"))
    bucket: str = request.getfixturevalue("bucket")
    if request.param == "https":
        server: S3Server = request.getfixturevalue("s3")
        request.getfixturevalue("clean_environment").setenv("AWS_ENDPOINT_URL", server.https)
    return open_store(f"s3://{bucket}/some/prefix")


@pytest.fixture
def s3_store(bucket: str) -> S3Store:
    return S3Store(f"s3://{bucket}/prefix")


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def test_what_is_written_is_read(store: Store) -> None:
    for key, data in {"a": b"", "b/c": b"two", "b/ü ö+&%25": noise(10_000)}.items():
        store.write(key, data)
        assert store.read(key) == data
        assert store.sha256(key) == hashlib.sha256(data).hexdigest()
    assert store.list() == [Stored("a", 0), Stored("b/c", 3), Stored("b/ü ö+&%25", 10_000)]
    store.write("a", b"anew")
    assert store.read("a") == b"anew"


@pytest.mark.parametrize("size", [0, 1, SMALLEST_PART - 1, SMALLEST_PART, SMALLEST_PART + 1, 2 * SMALLEST_PART + 1])
def test_files_around_the_part_edge_come_back_whole(store: Store, small_parts: None, tmp_path: Path, size: int) -> None:
    data = noise(size, seed=size)
    (tmp_path / "up").write_bytes(data)
    store.upload(tmp_path / "up", "weights/file")
    assert store.list() == [Stored("weights/file", size)]
    store.download("weights/file", tmp_path / "new folder" / "down")
    assert (tmp_path / "new folder" / "down").read_bytes() == data
    assert [p.name for p in (tmp_path / "new folder").iterdir()] == ["down"]
    assert store.sha256("weights/file") == hashlib.sha256(data).hexdigest()


def test_a_prefix_is_a_folder_not_the_start_of_a_name(store: Store) -> None:
    for key in ("train/1", "train/2/3", "train-old/1", "train.json", "trai"):
        store.write(key, b"x")
    assert [s.key for s in store.list("train")] == ["train/1", "train/2/3"]
    assert [s.key for s in store.list("train/2")] == ["train/2/3"]
    assert [s.key for s in store.list("train.json")] == ["train.json"]
    assert store.list("nothing") == []


def test_deleting_twice_is_not_an_error(store: Store) -> None:
    store.write("a/b", b"x")
    store.delete("a/b")
    store.delete("a/b")
    assert store.list() == []


def test_what_is_missing_is_an_input_error_that_names_it(store: Store, tmp_path: Path) -> None:
    for use in (
        lambda: store.read("not/there"),
        lambda: store.sha256("not/there"),
        lambda: store.download("not/there", tmp_path / "x"),
    ):
        with pytest.raises(InputError, match="not/there") as failure:
            use()
        assert store.uri in str(failure.value)
    with pytest.raises(InputError):
        store.upload(tmp_path / "absent", "key")
    assert not [p for p in tmp_path.iterdir() if p.is_file()]
    assert store.list() == []


# ------------------------------------------------------------------------------------------------ directory


def test_a_relative_directory_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("out")
    monkeypatch.chdir("/")
    store.write("a", b"x")
    assert store.uri == str(tmp_path.resolve() / "out")
    assert (tmp_path / "out" / "a").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0, 0o644, 0o755)]
)
def test_modes_come_from_the_umask_not_from_the_source(
    tmp_path: Path, umask: int, file_mode: int, folder_mode: int
) -> None:
    private = tmp_path / "model.safetensors"
    private.write_bytes(b"x")
    private.chmod(0o600)
    before = os.umask(umask)
    try:
        DirectoryStore(tmp_path / "out").upload(private, "a/b/file")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / "out" / part).stat().st_mode) for part in ("a/b/file", "a/b", "a", ".")]
    assert modes == [file_mode, folder_mode, folder_mode, folder_mode]


def test_leftovers_of_a_killed_write_are_never_listed(tmp_path: Path) -> None:
    """A process killed in mid-upload leaves nothing under the key, and the next one does not see what it left."""
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(4 << 30)
    code = "import sys; from pathlib import Path; from job.store import open_store\n"
    code += "open_store(sys.argv[1]).upload(Path(sys.argv[2]), 'a/k')"
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out"), str(big)])
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("out/a/.tunejob-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    writer.kill()
    writer.wait()
    left = list((tmp_path / "out" / "a").iterdir())
    assert [p.name.startswith(".tunejob-") for p in left] == [True]
    assert DirectoryStore(tmp_path / "out").list() == []


def test_links_out_of_the_directory_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    out = tmp_path / "out"
    out.mkdir()
    (out / "file").symlink_to(tmp_path / "secret")
    (out / "folder").symlink_to(tmp_path)
    store = DirectoryStore(out)
    for key in ("file", "folder/secret"):
        for use in (store.read, store.sha256, lambda k: store.download(k, tmp_path / "copy")):
            with pytest.raises(PolicyError, match="leads out"):
                use(key)
    for use in (
        lambda: store.write("folder/new", b"x"),
        lambda: store.upload(tmp_path / "secret", "folder/x/y"),
        lambda: store.delete("folder/secret"),
    ):
        with pytest.raises(PolicyError, match="leads out"):
            use()
    store.write("file", b"own")  # replaces the link itself
    assert (tmp_path / "secret").read_bytes() == b"secret"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "secret"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    """A write that hits the file size limit of the process is an error, and no part of it stays."""
    code = (
        "import resource, signal, sys; from job.store import open_store\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "open_store(sys.argv[1]).write('k', b'x' * 5000)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------- S3


def test_addresses(tmp_path: Path) -> None:
    assert split_s3("s3://bucket") == ("bucket", "")
    assert split_s3("s3://bucket/a/b/") == ("bucket", "a/b")
    for bad in ("s3://", "s3:///key", "bucket/key"):
        with pytest.raises(InputError):
            split_s3(bad)
    with pytest.raises(PolicyError):
        split_s3("s3://bucket/a/../b")


def test_more_than_one_page_of_keys(s3_store: S3Store, s3: S3Server) -> None:
    from concurrent.futures import ThreadPoolExecutor

    keys = [f"many/{i:04}" for i in range(1050)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: s3_store.write(key, b"x"), keys))
    assert [s.key for s in s3_store.list("many")] == keys


def test_folder_marks_are_not_objects(s3_store: S3Store, s3: S3Server) -> None:
    bucket = split_s3(s3_store.uri)[0]
    for key in ("prefix/", "prefix/folder/"):
        s3.client().put_object(Bucket=bucket, Key=key, Body=b"")
    s3_store.write("folder/a", b"x")
    assert s3_store.list() == [Stored("folder/a", 1)]


def test_wrong_credentials_and_a_missing_bucket_are_input_errors(
    s3_store: S3Store, s3: S3Server, clean_environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "small").write_bytes(b"x")
    (tmp_path / "large").write_bytes(bytes(PART_BYTES + 1))
    clean_environment.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    denied, missing = S3Store(s3_store.uri), None
    clean_environment.setenv("AWS_SECRET_ACCESS_KEY", s3.environment()["AWS_SECRET_ACCESS_KEY"])
    missing = S3Store("s3://no-such-bucket/prefix")
    for store in (denied, missing):
        for use in (
            store.list,
            lambda s=store: s.read("a"),
            lambda s=store: s.write("a", b"x"),
            lambda s=store: s.sha256("a"),
            lambda s=store: s.upload(tmp_path / "small", "a"),
            lambda s=store: s.upload(tmp_path / "large", "a"),
            lambda s=store: s.download("a", tmp_path / "down"),
        ):
            with pytest.raises(InputError, match=store.uri):
                use()
    clean_environment.delenv("AWS_ACCESS_KEY_ID")
    clean_environment.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(
        InputError, match=r"Unable to locate credentials.*expected AWS_ACCESS_KEY_ID.*plan and validate take rows"
    ):
        S3Store(s3_store.uri).list()


def test_a_closed_port_is_transient_and_soon_said(
    bucket: str, clean_environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clean_environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port()}")
    clean_environment.setenv("AWS_MAX_ATTEMPTS", "2")
    (tmp_path / "large").write_bytes(bytes(PART_BYTES + 1))
    store = S3Store(f"s3://{bucket}")
    start = time.monotonic()
    for use in (
        store.list,
        lambda: store.read("a"),
        lambda: store.write("a", b""),
        lambda: store.upload(tmp_path / "large", "a"),
    ):
        with pytest.raises(TransientError, match="Could not connect"):
            use()
    assert time.monotonic() - start < 20


def test_https_needs_the_right_authority(s3: S3Server, bucket: str, clean_environment: pytest.MonkeyPatch) -> None:
    """`AWS_CA_BUNDLE` is honoured: the same call fails without it."""
    clean_environment.setenv("AWS_ENDPOINT_URL", s3.https)
    clean_environment.setenv("AWS_MAX_ATTEMPTS", "1")
    S3Store(f"s3://{bucket}").write("a", b"x")
    clean_environment.delenv("AWS_CA_BUNDLE")
    with pytest.raises(InputError, match="CERTIFICATE_VERIFY_FAILED"):
        S3Store(f"s3://{bucket}").write("a", b"x")


def test_wrong_settings_are_input_errors(bucket: str, clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setenv("TUNEJOB_S3_ADDRESSING", "pth")
    with pytest.raises(InputError, match="path, virtual, auto"):
        S3Store(f"s3://{bucket}")
    clean_environment.delenv("TUNEJOB_S3_ADDRESSING")
    clean_environment.setenv("AWS_MAX_ATTEMPTS", "often")
    with pytest.raises(InputError, match="often"):
        S3Store(f"s3://{bucket}")
    clean_environment.delenv("AWS_MAX_ATTEMPTS")
    clean_environment.setenv("AWS_ENDPOINT_URL", "no address")
    with pytest.raises(InputError, match="no address"):
        S3Store(f"s3://{bucket}")


def test_nobodys_home_is_not_a_directory() -> None:
    with pytest.raises(InputError, match="no such path"):
        open_store("~nobody-of-this-name/out")


def test_the_endpoint_for_s3_wins_over_the_general_one(
    s3: S3Server, bucket: str, clean_environment: pytest.MonkeyPatch
) -> None:
    clean_environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port()}")
    clean_environment.setenv("AWS_ENDPOINT_URL_S3", s3.http)
    store = S3Store(f"s3://{bucket}")
    store.write("a", b"x")
    assert store.read("a") == b"x"


@pytest.mark.parametrize(
    ("addressing", "host"), [("path", "127.0.0.1"), ("virtual", "{bucket}.127.0.0.1"), (None, "127.0.0.1")]
)
def test_addressing_style(
    bucket: str, clean_environment: pytest.MonkeyPatch, addressing: str | None, host: str
) -> None:
    from urllib.parse import urlsplit

    from job.store.s3 import s3_client

    if addressing:
        clean_environment.setenv("TUNEJOB_S3_ADDRESSING", addressing)
    clean_environment.setenv(
        "AWS_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL"].replace("127.0.0.1", "127.0.0.1.nip.example")
    )
    url = urlsplit(s3_client().generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"}))
    assert url.hostname == host.format(bucket=bucket) + ".nip.example"
    assert url.path == ("/k" if addressing == "virtual" else f"/{bucket}/k")


@pytest.mark.parametrize("mode", ["when_supported", "when_required"])
def test_the_checksum_mode_of_the_environment_reaches_the_wire(
    bucket: str, s3: S3Server, clean_environment: pytest.MonkeyPatch, tmp_path: Path, mode: str
) -> None:
    clean_environment.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", mode)
    clean_environment.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", mode)
    store = S3Store(f"s3://{bucket}")
    sent: list[str] = []
    store._client.meta.events.register(
        "before-send.s3", lambda request, **_: sent.extend(map(str.lower, request.headers))
    )
    (tmp_path / "large").write_bytes(noise(PART_BYTES + 1))
    store.write("a", b"x")
    store.upload(tmp_path / "large", "b")
    assert store.sha256("b") == hashlib.sha256(noise(PART_BYTES + 1)).hexdigest()
    with_checksum = [h for h in sent if h.startswith("x-amz-checksum-crc") or h == "x-amz-trailer"]
    assert bool(with_checksum) == (mode == "when_supported")


def test_a_failed_upload_leaves_no_object_and_no_open_parts(bucket: str, s3: S3Server, tmp_path: Path) -> None:
    """The second part is answered with an error for good: the multipart upload is aborted."""
    from botocore.awsrequest import AWSResponse

    store = S3Store(f"s3://{bucket}/prefix")

    def refuse(request: object, **_: object) -> AWSResponse | None:
        url = str(getattr(request, "url", ""))
        return (
            AWSResponse(url, 403, {}, _Body(b"<Error><Code>AccessDenied</Code></Error>"))
            if "partNumber=2" in url
            else None
        )

    store._client.meta.events.register("before-send.s3.UploadPart", refuse)
    (tmp_path / "large").write_bytes(bytes(3 * PART_BYTES))
    with pytest.raises(InputError, match="AccessDenied"):
        store.upload(tmp_path / "large", "k")
    assert store.list() == []
    assert s3.open_uploads(bucket) == []


class _Body:
    """The raw response that botocore expects below an `AWSResponse`."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def stream(self, **_: object) -> list[bytes]:
        return [self._data]
