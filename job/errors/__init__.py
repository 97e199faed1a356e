"""Every way a job can fail, each with its exit code and whether a retry can help.

    JobError                      1   unknown: anything nobody mapped
    ├── SpecError                10   not JSON, schema, cross-rule
    ├── InputError               11   missing or empty data, bad row, unknown revision, access denied
    ├── PolicyError              12   pickle weights, remote code, escaping key, refused template
    ├── CapacityError            13   will not fit GPU, RAM or disk
    ├── GateError                14   an artefact failed its acceptance test, or the evaluation gate said no
    ├── TransientError           20   store, Hub or network, after our own retries
    ├── DeviceError              21   Xid, ECC, lost device
    └── Interrupted              30   SIGTERM or SIGINT

The codes are the contract with `podFailurePolicy`, CI and scripts (README, "Exit codes"). `classify` turns any
exception of a vendor's library into one of these; `tests/contract/test_errors.py` reflects over the vendors.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar, Self

from job.errors.vendors import MEANINGS


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: where, what was found, what was expected, what to do.

    `where`: a JSON pointer into the spec, a row, a file, or a key at the output; in documents it is called pointer.
    """

    message: str
    _: KW_ONLY
    where: str = ""
    found: str = ""
    expected: str = ""
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        found = f" (found {self.found})" if self.found else ""
        expected = f"; expected {self.expected}" if self.expected else ""
        hint = f". {self.hint}" if self.hint else ""
        return f"{where}{self.message}{found}{expected}{hint}"


SHOWN_FAULTS = 100  # nobody reads more, and a line of log has to fit into a collector


class JobError(Exception):
    """A failure of the job; `faults` names every place, not only the first."""

    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = True
    stage: str = ""  # where and in which run it happened; the run fills these in
    run_id: str = ""
    printed: str = ""  # the last lines of a process that says nothing else of its end

    def __init__(
        self, *faults: Fault | str, where: str = "", found: str = "", expected: str = "", hint: str = ""
    ) -> None:
        """Of what is only a message, the rest of its `Fault` is given beside it."""
        rest = {"where": where, "found": found, "expected": expected, "hint": hint}
        self.faults = tuple(Fault(fault, **rest) if isinstance(fault, str) else fault for fault in faults)
        super().__init__("\n".join(self.lines()))

    def at(self, where: str) -> Self:
        """The same failure; `where` is the place of those faults that name none."""
        found = type(self)(*(replace(fault, where=fault.where or where) for fault in self.faults))
        found.printed = self.printed
        return found

    def lines(self) -> list[str]:
        """A line for each fault, up to `SHOWN_FAULTS`, and one that counts the others."""
        more = len(self.faults) - SHOWN_FAULTS
        return [*map(str, self.faults[:SHOWN_FAULTS]), *([f"and {more} more"] if more > 0 else [])]


class SpecError(JobError):
    exit_code = 10
    retryable = False


class InputError(JobError):
    exit_code = 11
    retryable = False


class PolicyError(JobError):
    exit_code = 12
    retryable = False


class CapacityError(JobError):
    exit_code = 13
    retryable = False


class GateError(JobError):
    exit_code = 14
    retryable = False


class TransientError(JobError):
    exit_code = 20


class DeviceError(JobError):
    exit_code = 21


class Interrupted(JobError):
    exit_code = 30


TREE: tuple[type[JobError], ...] = (
    JobError, SpecError, InputError, PolicyError, CapacityError, GateError, TransientError, DeviceError, Interrupted,
)  # fmt: skip
VENDOR: dict[str, type[JobError]] = {name: kind for kind in TREE for name in MEANINGS.get(kind.__name__, ())}

# botocore says what happened only in a code; whatever is not named here may pass with time.
REFUSED_CODES = {
    "AccessDenied", "AllAccessDisabled", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "401", "403",
    "NoSuchBucket", "NoSuchKey", "NoSuchVersion", "NotFound", "404", "InvalidBucketName", "InvalidObjectState",
    "PermanentRedirect", "AuthorizationHeaderMalformed", "AuthorizationQueryParametersError",
    "IllegalLocationConstraintException", "RequestTimeTooSkewed",
    "MissingContentLength", "NotImplemented", "MethodNotAllowed",  # what this server never does
}  # fmt: skip
FULL_CODES = {"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"}  # Ceph, MinIO
PASSING_STATUS = {408, 409, 425, 429}  # client errors of HTTP that a later try may not meet
WRONG_PATH = {errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# The same from those who lose the number on the way: Rust, torch.save, numpy's tofile.
DISK_WORDS = re.compile(
    r"no space left on device|disk quota exceeded|file too large|the disk is full"
    r"|\bunexpected pos \d+ vs \d+|pytorchstreamwriter failed writing|iostream error|\d requested and \d+ written"
)
DISK_WRITERS = {
    "builtins.Exception",  # tokenizers has no class of its own
    "builtins.OSError",
    "builtins.RuntimeError",
    "safetensors.SafetensorError",
}
TRANSIENT_ERRNO = {errno.EIO, errno.ETIMEDOUT, errno.ECONNRESET, errno.EPIPE, errno.ESTALE}
MEMORY_WORDS = re.compile(r"out of memory|can't allocate memory|cannot allocate memory|cublas_status_alloc_failed")
# What the driver prints when the card, not the program, is at fault. A device-side assert is an index out of range:
# ours.
DEVICE_WORDS = re.compile(
    r"\bxid\b|\becc\b|uncorrectable|unspecified launch failure|illegal memory access|device lost|fallen off the bus"
    r"|gpu is lost|cuda error|cuda driver error|triton error \[cuda\]|cublas_status|cudnn_status|no cuda-capable device"
    r"|found no nvidia driver"
)
# Torch ends every CUDA error with advice on "device-side assertions"
PROGRAM_WORDS = re.compile(r"device-side assert triggered")


# Where classes are defined, against where their users know them.
PRIVATE_MODULES = ("._exceptions.", "._C.", "._safetensors_rust.")


def _public(cls: type) -> str:
    """The name under which users know a class."""
    name = f"{cls.__module__}.{cls.__qualname__}"
    for private in PRIVATE_MODULES:
        name = name.replace(private, ".")
    return name


def vendor_class(cls: type) -> type[JobError] | None:
    """The failure a vendor's exception class means, by the nearest base named in `VENDOR`; None if unmapped."""
    return next((VENDOR[name] for name in map(_public, cls.__mro__) if name in VENDOR), None)


def _client_error(error: BaseException) -> type[JobError] | None:
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return None
    code = str(response.get("Error", {}).get("Code", ""))
    return InputError if code in REFUSED_CODES else CapacityError if code in FULL_CODES else TransientError


def _http_status(error: BaseException) -> type[JobError] | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if not isinstance(status, int):
        return None
    return InputError if 400 <= status < 500 and status not in PASSING_STATUS else TransientError


def _os_error(error: BaseException) -> type[JobError] | None:
    if not isinstance(error, OSError):
        return None
    if error.errno in DISK_FULL or error.errno == errno.ENOMEM:
        return CapacityError
    if error.errno in WRONG_PATH:
        return InputError
    return TransientError if error.errno in TRANSIENT_ERRNO else None


def _full_disk(error: BaseException) -> type[JobError] | None:
    """By its words, of those that say it in no other way. A write that came short means a full disk."""
    return CapacityError if _public(type(error)) in DISK_WRITERS and DISK_WORDS.search(str(error).lower()) else None


def disk_is_full(error: JobError) -> bool:
    """Whether a full disk is what `error` says or came from: not a lack of memory, nor a plan that does not fit."""
    return isinstance(error, CapacityError) and any(DISK_WORDS.search(str(link).lower()) for link in _chain(error))


def _device(error: BaseException) -> type[JobError] | None:
    if not isinstance(error, RuntimeError):
        return None
    text = str(error).lower()
    if MEMORY_WORDS.search(text):
        return CapacityError
    if PROGRAM_WORDS.search(text):
        return JobError
    return DeviceError if DEVICE_WORDS.search(text) else None


RULES: tuple[Callable[[BaseException], type[JobError] | None], ...] = (
    _client_error,
    _http_status,
    _os_error,
    _full_disk,
    _device,
    lambda error: vendor_class(type(error)),
)


def classify(error: BaseException) -> JobError:
    """Any exception as a `JobError`: itself, its meaning, that of what caused it, or unknown (1); never a success."""
    for link in _chain(error):
        if isinstance(link, JobError):
            return link
        kind = next((kind for rule in RULES if (kind := rule(link))), None)
        if kind is not None:
            return _wrap(kind, error)
    return _wrap(JobError, error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error` and what led to it, as a traceback would show; each once, though causes may form a ring."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _wrap(kind: type[JobError], error: BaseException) -> JobError:
    wrapped = kind(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
