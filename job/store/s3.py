"""A store in S3, or in anything that speaks it. Address, credentials and checksum mode come from the environment only.

botocore itself reads `AWS_ENDPOINT_URL[_S3]`, `AWS_CA_BUNDLE`, `AWS_REQUEST_CHECKSUM_CALCULATION`,
`AWS_RESPONSE_CHECKSUM_VALIDATION` and the credential variables; `job.store.patience` reads the time limits.

TLS proves what comes over it. Over plain HTTP every read is compared with the object's ETag or, where that is not an
MD5, with a second reading, and every write with what the store then has.
"""

from __future__ import annotations

import builtins
import io
import os
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from job.errors import InputError, JobError, TransientError
from job.host.proxies import require_certificates, require_proxies
from job.host.time_limits import limit
from job.store.base import TEMPORARY, Stored, safe_key, split_s3, within
from job.store.etag import Each, Etag, Sha256, Taker
from job.store.patience import ATTEMPTS, be_patient
from job.store.s3_errors import is_expired, is_mendable, translating_s3_errors, whole_answers
from job.store.s3_secrets import keep_secret

if TYPE_CHECKING:
    from boto3.s3.transfer import TransferConfig
    from boto3.session import Session
    from botocore.loaders import Loader
    from mypy_boto3_s3 import S3Client

PART_BYTES = 16 << 20
THREADS = 8
COPIED_BYTES = 1 << 20  # at a time
READINGS = ATTEMPTS + 1  # four that were damaged, and two that agree
CONNECT_SECONDS = 10
ADDRESSING = ("path", "virtual", "auto")
Value = TypeVar("Value")


class S3Store:
    """Objects below `uri` (`s3://bucket/prefix`). The bucket must exist; it is first asked when something is used."""

    def __init__(self, uri: str) -> None:
        self._bucket, self._prefix = split_s3(uri)
        self._root = f"{self._prefix}/" if self._prefix else ""
        self.uri = f"s3://{self._bucket}/{self._prefix}".rstrip("/")
        self._client = s3_client()
        self._proven_by_tls = self._client.meta.endpoint_url.startswith("https://")

    def list(self, prefix: str = "") -> builtins.list[Stored]:
        found = self._settled(self.uri, lambda: (self._proven_by_tls, self._listing(prefix)))
        return [Stored(safe_key(key), found[key]) for key in sorted(found)]

    def read(self, key: str) -> bytes:
        def once() -> tuple[bool, bytes]:
            etag, found, buffer = *self._expected(key), io.BytesIO()
            self._pass_by(key, buffer, found)
            return self._proves(etag, found), buffer.getvalue()

        return self._settled(f"{self.uri}/{key}", once)

    def write(self, key: str, data: bytes) -> None:
        found, sha256 = Etag(), Sha256()
        Each(found, sha256).write(data)

        def once() -> bool:
            stored = self._client.put_object(Bucket=self._bucket, Key=self._full(key), Body=data)
            return self._proves(stored.get("ETag", ""), found) or self.sha256(key) == sha256.value

        self._stored(f"{self.uri}/{key}", once)

    def upload(self, path: Path, key: str) -> None:
        def once() -> bool:
            self._client.upload_file(str(path), self._bucket, self._full(key), Config=_transfer())
            if self._proven_by_tls:
                return True
            found, sha256 = Etag(PART_BYTES if path.stat().st_size >= PART_BYTES else 0), Sha256()
            with path.open("rb") as file:
                shutil.copyfileobj(file, Each(found, sha256), COPIED_BYTES)
            return self._proves(self._expected(key)[0], found) or self.sha256(key) == sha256.value

        self._stored(f"{self.uri}/{key}", once)

    def download(self, key: str, path: Path) -> None:
        temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")

        def once() -> tuple[bool, str]:
            etag, found = self._expected(key)
            if self._proven_by_tls:  # parts are written as they come
                self._client.download_file(self._bucket, self._full(key), str(temporary), Config=_transfer())
            else:
                with temporary.open("wb") as file:
                    self._pass_by(key, file, found)
            return self._proves(etag, found), found.value

        try:
            with translating_s3_errors(f"{self.uri}/{key}"):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._settled(f"{self.uri}/{key}", once)
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def sha256(self, key: str) -> str:
        def once() -> tuple[bool, str]:
            etag, found, sha256 = *self._expected(key), Sha256()
            self._pass_by(key, sha256, found)
            return self._proves(etag, found), sha256.value

        return self._settled(f"{self.uri}/{key}", once)

    def delete(self, key: str) -> None:
        self._persist(f"{self.uri}/{key}", lambda: self._client.delete_object(Bucket=self._bucket, Key=self._full(key)))

    def abort_stale_uploads(self, prefix: str = "") -> int:
        return self._persist(self.uri, lambda: self._abort_uploads(prefix))

    def begin_upload(self, key: str) -> str:
        return self._persist(f"{self.uri}/{key}", lambda: self._begin(self._full(key)))

    def abort_upload(self, key: str, upload_id: str) -> None:
        self._persist(f"{self.uri}/{key}", lambda: self._abort(self._full(key), upload_id))

    # ------------------------------------------------------------------------------------------ one try

    def _pass_by(self, key: str, taker: Taker, found: Etag) -> None:
        """An object's bytes in order to a taker, and to `found` where nothing else proves them."""
        takers = Each(taker) if self._proven_by_tls else Each(taker, found)
        self._client.download_fileobj(self._bucket, self._full(key), cast("Any", takers), Config=_transfer())

    def _listing(self, prefix: str) -> dict[str, int]:
        found: dict[str, int] = {}
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._root + prefix)
        for item in (item for page in pages for item in page.get("Contents", [])):
            key = item["Key"].removeprefix(self._root)
            is_folder_mark = not item["Size"] and (not key or key.endswith("/"))
            if not is_folder_mark and within(key, prefix):
                found[key] = item["Size"]
        return found

    def _abort_uploads(self, prefix: str) -> int:
        aborted = 0
        pages = self._client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self._bucket, Prefix=self._root + prefix
        )
        for upload in [upload for page in pages for upload in page.get("Uploads", [])]:
            if within(upload["Key"].removeprefix(self._root), prefix):
                aborted += self._abort(upload["Key"], upload["UploadId"])
        return aborted

    def _begin(self, full_key: str) -> str:
        return self._client.create_multipart_upload(Bucket=self._bucket, Key=full_key)["UploadId"]

    def _abort(self, full_key: str, upload_id: str) -> bool:
        """Whether there was something to abort: it may have ended meanwhile, or an answer was lost."""
        try:
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=full_key, UploadId=upload_id)
        except self._client.exceptions.NoSuchUpload:
            return False
        return True

    def _expected(self, key: str) -> tuple[str, Etag]:
        """The ETag of an object, empty if there is none, and one that will be it, for the parts it was stored in.

        Asked before anything else: unlike an answer to HEAD, that to a listing says which credentials have expired.
        """
        from botocore.parsers import ResponseParserError

        for _ in range(ATTEMPTS - 1):
            with suppress(ResponseParserError):
                return self._facts(self._full(key))
        return self._facts(self._full(key))

    def _facts(self, key: str) -> tuple[str, Etag]:
        with whole_answers():
            found = self._client.list_objects_v2(Bucket=self._bucket, Prefix=key, MaxKeys=1).get("Contents", [])
            if not found or found[0]["Key"] != key:
                return "", Etag()
            etag = found[0]["ETag"]
        if self._proven_by_tls or "-" not in etag:
            return etag, Etag()
        return etag, Etag(self._client.head_object(Bucket=self._bucket, Key=key, PartNumber=1)["ContentLength"])

    def _proves(self, etag: str, found: Etag) -> bool:
        return self._proven_by_tls or etag.strip('"') == found.value

    # --------------------------------------------------------------------------------------- many tries

    def _settled(self, address: str, read: Callable[[], tuple[bool, Value]]) -> Value:
        """What `read` gives, once it is proven or comes twice in a row."""

        def readings() -> Value:
            before: Value | None = None
            for _ in range(READINGS):
                proven, value = read()
                if proven or value == before:
                    return value
                before = value
            raise TransientError(f"{address}: it comes otherwise each time it is read", found=f"{READINGS} readings")

        return self._persist(address, readings)

    def _stored(self, address: str, write: Callable[[], bool]) -> None:
        """Writes until what is stored is what was sent."""

        def tries() -> None:
            if not any(write() for _ in range(ATTEMPTS)):
                raise TransientError(f"{address}: what is stored is not what was sent", found=f"{ATTEMPTS} tries")

        self._persist(address, tries)

    def _persist(self, address: str, operation: Callable[[], Value]) -> Value:
        for attempt in range(1, ATTEMPTS):
            try:
                with translating_s3_errors(address), whole_answers():
                    return operation()
            except JobError as error:
                if not is_mendable(error):
                    raise
                expired = is_expired(error)
            time.sleep(0.05 * 2**attempt)
            if expired:
                self._client = s3_client()
        with translating_s3_errors(address), whole_answers():
            return operation()

    def _full(self, key: str) -> str:
        return self._root + safe_key(key)


def s3_client() -> S3Client:
    """A client as the environment says; path-style addresses by default where an endpoint is named."""
    from botocore.config import Config

    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    addressing = os.environ.get("TUNEJOB_S3_ADDRESSING") or ("path" if named else "auto")
    if addressing not in ADDRESSING:
        raise InputError("TUNEJOB_S3_ADDRESSING is not known", found=ascii(addressing), expected=", ".join(ADDRESSING))
    if not (named or "").startswith("http://"):
        require_certificates("AWS_CA_BUNDLE")
    require_proxies("http" if (named or "").startswith("http://") else "https")
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1},  # `be_patient` repeats instead
        s3={"addressing_style": cast("Any", addressing)},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=limit("TUNEJOB_S3_READ_SECONDS"),
        max_pool_connections=2 * THREADS,
    )
    try:
        with translating_s3_errors("S3"):
            session = _session()
            client = session.client("s3", config=config)
        keep_secret(client, session)
        be_patient(client)
    except (
        ValueError
    ) as error:  # how botocore refuses an endpoint that is not an address, and a count of tries that is not a number
        raise InputError(f"the S3 settings of the environment are wrong: {error}") from error
    return client


def _session() -> Session:
    """Credentials and region as the environment says. The descriptions of S3, a tenth of a second, are read once."""
    from boto3.session import Session
    from botocore.session import get_session

    plain = get_session()
    plain.register_component("data_loader", _descriptions(plain.get_config_variable("data_path")))
    return Session(botocore_session=plain)


@cache
def _descriptions(folders: str | None) -> Loader:
    from botocore.loaders import create_loader

    return create_loader(folders)


def _transfer() -> TransferConfig:
    """Parallel parts. s3transfer aborts the multipart upload when a part fails and retries each part of a download."""
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=THREADS)
