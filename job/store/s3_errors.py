"""What S3's client raises, in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from job.errors import Fault, JobError, TransientError
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
        address, OSError, BotoCoreError, ClientError, Boto3Error, RetriesExceededError, ResponseParserError
    ):
        try:
            yield
        except S3UploadFailedError as error:  # hides why; the service's answer is its context
            raise error.__context__ or error from None
        except SSLError as error:  # of a body's bytes: certificates are looked at before
            raise TransientError(Fault(f"{address}: {error}")) from error
