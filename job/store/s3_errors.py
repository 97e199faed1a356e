"""What S3's client raises, in our words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from job.errors import JobError, TransientError
from job.store.base import translating_errors

# An upload that the store does not know: it was completed, though the answer was lost, or its name or its parts were
# damaged.
UPLOADING, UNKNOWN_CODES = {"UploadPart", "CompleteMultipartUpload"}, {"NoSuchUpload", "404", "InvalidRequest"}
# A new client reads the credentials anew.
EXPIRED_CODES = {
    "ExpiredToken",
    "ExpiredTokenException",
    "TokenRefreshRequired",
}

DENIED_CODES = {"AccessDenied", "AllAccessDisabled", "UnauthorizedAccess", "403"}
# The right that each operation needs, as policies call it.
RIGHTS = {
    "ListObjectsV2": "s3:ListBucket",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "DeleteObject": "s3:DeleteObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
}
RIGHTS_HINT = "k8s/README.md has a policy with the rights that a run needs"
# How servers refuse the checksum after a body, which boto3 sends over TLS unless a setting forbids it: Ceph up to 16
# misses the length, others say that they do not know it.
CHECKSUM_CODES, CHECKSUM_VARIABLE = {"MissingContentLength", "NotImplemented"}, "AWS_REQUEST_CHECKSUM_CALCULATION"
CHECKSUM_ADVICE = {
    "expected": f"{CHECKSUM_VARIABLE}=when_required in the job's environment",
    "hint": "This server does not take the checksums that boto3 sends by default",
}


CREDENTIALS_ADVICE = {
    "expected": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role",
    "hint": "Set them; plan and validate take rows that lie on this machine without them",
}


def advice(error: BaseException) -> dict[str, str]:
    """The right that is missing, or the setting that mends it."""
    from botocore.exceptions import ClientError, NoCredentialsError, PartialCredentialsError

    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return CREDENTIALS_ADVICE
    if not isinstance(error, ClientError):
        return {}
    code, operation = error.response["Error"].get("Code"), error.operation_name
    if code in DENIED_CODES and operation in RIGHTS:
        return {"expected": f"the right {RIGHTS[operation]}", "hint": RIGHTS_HINT}
    writes = RIGHTS.get(operation) == "s3:PutObject"
    off = os.environ.get(CHECKSUM_VARIABLE, "").lower() == "when_required"
    return CHECKSUM_ADVICE if writes and code in CHECKSUM_CODES and not off else {}


def is_expired(error: JobError) -> bool:
    """Whether the service said that the credentials have expired."""
    from botocore.exceptions import ClientError

    cause = error.__cause__
    return isinstance(cause, ClientError) and cause.response["Error"].get("Code") in EXPIRED_CODES


def is_mendable(error: JobError) -> bool:
    """Whether the operation as a whole may well succeed now, as where its bytes were damaged on the way."""
    from botocore.exceptions import ClientError, FlexibleChecksumError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import SSLError

    cause = error.__cause__
    if isinstance(cause, ClientError) and cause.operation_name in UPLOADING:
        return is_expired(error) or cause.response["Error"].get("Code") in UNKNOWN_CODES
    return is_expired(error) or isinstance(cause, FlexibleChecksumError | ResponseParserError | SSLError)


@contextmanager
def whole_answers() -> Iterator[None]:
    """One error for what a damaged answer does to botocore's parsers, and to us where a member of it is missing."""
    from botocore.parsers import ResponseParserError

    try:
        yield
    except (KeyError, ValueError) as error:
        raise ResponseParserError(f"the answer is damaged: {error!r}") from error


@contextmanager
def translating_s3_errors(address: str) -> Iterator[None]:
    from boto3.exceptions import Boto3Error, S3UploadFailedError
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from s3transfer.exceptions import RetriesExceededError
    from urllib3.exceptions import SSLError

    with translating_errors(
        address, OSError, BotoCoreError, ClientError, Boto3Error, RetriesExceededError, ResponseParserError,
        advice=advice,
    ):  # fmt: skip
        try:
            yield
        except S3UploadFailedError as error:  # hides why; the service's answer is its context
            raise error.__context__ or error from None
        except SSLError as error:  # of a body's bytes: certificates are looked at before
            raise TransientError(f"{address}: {error}") from error
