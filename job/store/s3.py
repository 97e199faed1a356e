"""A store in S3, or in anything that speaks it. Address, credentials and checksum mode come from the environment only.

botocore itself reads `AWS_ENDPOINT_URL[_S3]`, `AWS_CA_BUNDLE`, `AWS_REQUEST_CHECKSUM_CALCULATION`,
`AWS_RESPONSE_CHECKSUM_VALIDATION`, `AWS_MAX_ATTEMPTS` and the credential variables.
"""

from __future__ import annotations

import builtins
import hashlib
import io
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from job.errors import Fault, InputError
from job.store.base import TEMPORARY, Stored, check_size, safe_key, split_s3, told, within

if TYPE_CHECKING:
    from boto3.s3.transfer import TransferConfig
    from mypy_boto3_s3 import S3Client

PART_BYTES = 16 << 20
THREADS = 8
ATTEMPTS = 8
CONNECT_SECONDS, READ_SECONDS = 10, 60
ADDRESSING = ("path", "virtual", "auto")


class S3Store:
    """Objects below `uri` (`s3://bucket/prefix`). The bucket must exist; it is first asked when something is used."""

    def __init__(self, uri: str) -> None:
        self._bucket, self._prefix = split_s3(uri)
        self.uri = f"s3://{self._bucket}/{self._prefix}".rstrip("/")
        self._client = s3_client()

    def list(self, prefix: str = "") -> builtins.list[Stored]:
        root = f"{self._prefix}/" if self._prefix else ""
        found: dict[str, int] = {}
        with _told(self.uri):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=root + prefix)
            for item in (item for page in pages for item in page.get("Contents", [])):
                key = item["Key"].removeprefix(root)
                is_folder_mark = not item["Size"] and (not key or key.endswith("/"))
                if not is_folder_mark and within(key, prefix):
                    found[safe_key(key)] = item["Size"]
        return [Stored(key, found[key]) for key in sorted(found)]

    def read(self, key: str) -> bytes:
        buffer = io.BytesIO()
        with _told(f"{self.uri}/{key}"):
            self._client.download_fileobj(self._bucket, self._full(key), buffer, Config=_transfer())
        return buffer.getvalue()

    def write(self, key: str, data: bytes) -> None:
        with _told(f"{self.uri}/{key}"):
            self._client.put_object(Bucket=self._bucket, Key=self._full(key), Body=data)

    def upload(self, path: Path, key: str) -> None:
        with _told(f"{self.uri}/{key}"):
            self._client.upload_file(str(path), self._bucket, self._full(key), Config=_transfer())

    def download(self, key: str, path: Path) -> None:
        temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        try:
            with _told(f"{self.uri}/{key}"):
                path.parent.mkdir(parents=True, exist_ok=True)
                size = self._client.head_object(Bucket=self._bucket, Key=self._full(key))["ContentLength"]
                self._client.download_file(self._bucket, self._full(key), str(temporary), Config=_transfer())
                check_size(f"{self.uri}/{key}", temporary.stat().st_size, size)
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def sha256(self, key: str) -> str:
        sink = _HashSink()
        with _told(f"{self.uri}/{key}"):
            self._client.download_fileobj(self._bucket, self._full(key), sink, Config=_transfer())  # type: ignore[arg-type]
        return sink.digest.hexdigest()

    def delete(self, key: str) -> None:
        with _told(f"{self.uri}/{key}"):
            self._client.delete_object(Bucket=self._bucket, Key=self._full(key))

    def _full(self, key: str) -> str:
        return f"{self._prefix}/{safe_key(key)}" if self._prefix else safe_key(key)


class _HashSink:
    """Takes parts in order and keeps only their digest. It cannot seek, so s3transfer writes in order."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return len(data)


def s3_client() -> S3Client:
    """A client as the environment says; path-style addresses by default where an endpoint is named."""
    from boto3.session import Session
    from botocore.config import Config

    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    addressing = os.environ.get("TUNEJOB_S3_ADDRESSING") or ("path" if named else "auto")
    if addressing not in ADDRESSING:
        raise InputError(Fault("TUNEJOB_S3_ADDRESSING is not known", found=ascii(addressing), expected=", ".join(ADDRESSING)))
    retries: Any = {"mode": "standard"}
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = ATTEMPTS
    config = Config(
        retries=retries,
        s3={"addressing_style": cast("Any", addressing)},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=2 * THREADS,
    )
    try:
        with _told("S3"):
            return Session().client("s3", config=config)
    except ValueError as error:  # how botocore refuses an endpoint that is no address
        raise InputError(Fault(f"the S3 settings of the environment are wrong: {error}")) from error


def _transfer() -> TransferConfig:
    """Parallel parts. s3transfer aborts the multipart upload when a part fails and retries each part of a download."""
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=THREADS)


@contextmanager
def _told(address: str) -> Iterator[None]:
    from boto3.exceptions import Boto3Error, S3UploadFailedError
    from botocore.exceptions import BotoCoreError, ClientError
    from s3transfer.exceptions import RetriesExceededError

    with told(address, OSError, BotoCoreError, ClientError, Boto3Error, RetriesExceededError):
        try:
            yield
        except S3UploadFailedError as error:  # hides why; the service's answer is its context
            raise error.__context__ or error from None
