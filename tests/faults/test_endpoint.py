"""The store's contract at any S3 endpoint: `make store-test` with TUNEJOB_TEST_S3_URI and the AWS_* variables of a job.

Everything is written below a new folder of that address, and removed at the end.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from io import StringIO
from pathlib import Path

import pytest

from job.host.log import Log
from job.ledger.rights import require_rights
from job.store import S3Store, Store, Stored, split_s3
from job.store.s3 import PART_BYTES
from tests.unit.test_store import (  # noqa: F401 - pytest runs what it finds here, on the store of this module
    noise,
    test_a_prefix_is_a_folder_not_the_start_of_a_name,
    test_deleting_twice_is_not_an_error,
    test_files_around_the_part_edge_come_back_whole,
    test_what_is_missing_is_an_input_error_that_names_it,
    test_what_is_written_is_read,
)

ADDRESS = os.environ.get("TUNEJOB_TEST_S3_URI", "")
pytestmark = pytest.mark.skipif(not ADDRESS, reason="needs an endpoint: TUNEJOB_TEST_S3_URI")


@pytest.fixture(params=["when_supported", "when_required"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", request.param)
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", request.param)
    place = S3Store(f"{ADDRESS.rstrip('/')}/tunejob-test-{uuid.uuid4().hex[:12]}")
    yield place
    for item in place.list():
        place.delete(item.key)


def test_a_killed_uploads_parts_are_aborted_and_a_neighbours_are_not(store: S3Store) -> None:
    bucket, prefix = split_s3(store.uri)
    keys = {"ours": f"{prefix}/k/file", "neighbours": f"{prefix}-old/file"}
    uploads = {
        whose: store._client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"] for whose, key in keys.items()
    }
    try:
        assert store.abort_stale_uploads() == 1
        left = store._client.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads", [])
        assert [item["UploadId"] for item in left] == [uploads["neighbours"]]
    finally:
        for whose in ("ours", "neighbours"):
            with suppress(store._client.exceptions.NoSuchUpload):
                store._client.abort_multipart_upload(Bucket=bucket, Key=keys[whose], UploadId=uploads[whose])


def test_the_keys_have_every_right_that_a_run_needs(store: Store) -> None:
    said = StringIO()
    require_rights(store, "0123456789abcdef", "/output/uri", Log(said))
    assert (said.getvalue(), store.list()) == ("", [])


def test_a_listing_of_several_pages_is_whole(store: Store) -> None:
    from concurrent.futures import ThreadPoolExecutor

    keys = [f"many/{number:04}" for number in range(1050)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: store.write(key, b"x"), keys))
        assert [item.key for item in store.list("many")] == keys
        list(pool.map(store.delete, keys))
    assert store.list() == []


def test_a_file_replaced_is_the_new_one_at_once(store: Store, tmp_path: Path) -> None:
    for size in (PART_BYTES + 5, 10, PART_BYTES + 7):
        (tmp_path / "up").write_bytes(noise(size, seed=size))
        begun = time.monotonic()
        store.upload(tmp_path / "up", "file")
        store.download("file", tmp_path / "down")
        assert (tmp_path / "down").read_bytes() == noise(size, seed=size)
        assert store.list() == [Stored("file", size)]
        print(f"{size} bytes up and down in {time.monotonic() - begun:.1f} s")
