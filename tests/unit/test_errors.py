"""Errors as they come, and what each means for exit code and retry."""

from __future__ import annotations

import errno
import json
import urllib.error
from collections.abc import Callable
from typing import Any

import botocore.exceptions
import httpx
import huggingface_hub.errors
import jinja2
import jsonschema
import pytest
import torch
from safetensors import SafetensorError

from job.errors import (
    CapacityError,
    DeviceError,
    Fault,
    InputError,
    Interrupted,
    JobError,
    PolicyError,
    SpecError,
    TransientError,
    classify,
    disk_is_full,
)
from job.errors.facts import failure_facts


def client_error(code: str, status: int) -> botocore.exceptions.ClientError:
    response: Any = {"Error": {"Code": code, "Message": "said so"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return botocore.exceptions.ClientError(response, "GetObject")


def hub_error(status: int, kind: Any = huggingface_hub.errors.HfHubHTTPError) -> Exception:
    request = httpx.Request("GET", "https://hub.invalid/org/name")
    error: Exception = kind("said so", response=httpx.Response(status, request=request))
    return error


# How torch ends what it says of a CUDA error.
ADVICE = (
    "CUDA kernel errors might be asynchronously reported at some other API call, "
    "so the stacktrace below might be incorrect.\n"
    "For debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
    "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)


MET: list[tuple[BaseException, type[JobError]]] = [
    (client_error("403", 403), InputError),
    (client_error("QuotaExceeded", 403), CapacityError),
    (client_error("XMinioStorageFull", 507), CapacityError),
    (client_error("AccessDenied", 403), InputError),
    (client_error("SignatureDoesNotMatch", 403), InputError),
    (client_error("InvalidAccessKeyId", 403), InputError),
    (client_error("404", 404), InputError),
    (client_error("NoSuchKey", 404), InputError),
    (client_error("NoSuchBucket", 404), InputError),
    (client_error("PermanentRedirect", 301), InputError),
    (client_error("MissingContentLength", 411), InputError),
    (client_error("NotImplemented", 501), InputError),
    (client_error("MethodNotAllowed", 405), InputError),
    (client_error("SlowDown", 503), TransientError),
    (client_error("InternalError", 500), TransientError),
    (client_error("RequestTimeout", 400), TransientError),
    (client_error("BadDigest", 400), TransientError),
    (client_error("ExpiredToken", 400), TransientError),
    (botocore.exceptions.NoCredentialsError(), InputError),
    (botocore.exceptions.EndpointConnectionError(endpoint_url="http://store.invalid"), TransientError),
    (botocore.exceptions.ReadTimeoutError(endpoint_url="http://store.invalid"), TransientError),
    (botocore.exceptions.SSLError(endpoint_url="http://store.invalid", error="certificate verify failed"), InputError),
    (botocore.exceptions.ParamValidationError(report="Invalid bucket name"), InputError),
    (hub_error(401), InputError),
    (hub_error(403), InputError),
    (hub_error(404), InputError),
    (hub_error(404, huggingface_hub.errors.RepositoryNotFoundError), InputError),
    (hub_error(403, huggingface_hub.errors.GatedRepoError), InputError),
    (hub_error(404, huggingface_hub.errors.RevisionNotFoundError), InputError),
    (hub_error(408), TransientError),
    (hub_error(429), TransientError),
    (hub_error(500), TransientError),
    (hub_error(503), TransientError),
    (huggingface_hub.errors.LocalEntryNotFoundError("no network, not in the cache"), TransientError),
    (huggingface_hub.errors.HFValidationError("a/b/c"), InputError),
    (httpx.ConnectError("refused"), TransientError),
    (httpx.ReadTimeout("slow"), TransientError),
    (urllib.error.URLError(ConnectionRefusedError(errno.ECONNREFUSED, "refused")), JobError),
    (OSError(errno.ENOSPC, "No space left on device"), CapacityError),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), CapacityError),
    (OSError("1048576 requested and 131072 written"), CapacityError),
    (OSError("Unable to load weights: not a checkpoint"), JobError),
    (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), CapacityError),
    (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), CapacityError),
    (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), CapacityError),
    (SafetensorError("Error while deserializing header: header too small"), InputError),
    (OSError(errno.EFBIG, "File too large"), CapacityError),
    (ValueError("row 3: No space left on device"), JobError),
    (OSError(errno.EIO, "Input/output error"), TransientError),
    (OSError(errno.EBADF, "Bad file descriptor"), JobError),
    (FileNotFoundError(errno.ENOENT, "No such file", "rows.jsonl"), InputError),
    (PermissionError(errno.EACCES, "Permission denied", "rows.jsonl"), InputError),
    (ConnectionResetError(errno.ECONNRESET, "reset"), TransientError),
    (TimeoutError("slow"), TransientError),
    (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"), CapacityError),
    (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), CapacityError),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), CapacityError),
    (RuntimeError("CUDA error: uncorrectable ECC error encountered"), DeviceError),
    (RuntimeError("CUDA error: unspecified launch failure"), DeviceError),
    (RuntimeError(f"CUDA error: uncorrectable ECC error encountered\n{ADVICE}"), DeviceError),
    (
        RuntimeError(f"CUDA error: unspecified launch failure\nSearch for `cudaErrorLaunchFailure'\n{ADVICE}"),
        DeviceError,
    ),
    (RuntimeError(f"CUDA error: an illegal memory access was encountered\n{ADVICE}"), DeviceError),
    (RuntimeError(f"CUDA error: device-side assert triggered\n{ADVICE}"), JobError),
    (RuntimeError(f"CUDA error: out of memory\n{ADVICE}"), CapacityError),
    (torch.AcceleratorError(f"CUDA error: uncorrectable ECC error encountered\n{ADVICE}"), DeviceError),
    (torch.AcceleratorError(f"CUDA error: device-side assert triggered\n{ADVICE}"), JobError),
    (torch.AcceleratorError(f"CUDA error: out of memory\n{ADVICE}"), CapacityError),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), CapacityError),
    (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), DeviceError),
    (RuntimeError("Triton Error [CUDA]: out of memory"), CapacityError),
    (
        RuntimeError("Unable to determine the device handle for GPU 0000:3B:00.0: GPU is lost. Reboot the system"),
        DeviceError,
    ),
    (RuntimeError("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus."), DeviceError),
    (RuntimeError("No CUDA-capable device is detected"), DeviceError),
    (RuntimeError("CUDA error: device-side assert triggered"), JobError),
    (RuntimeError("bad taxid in the spec error list"), JobError),
    (RuntimeError("expected scalar type Float but found Half"), JobError),
    (MemoryError(), CapacityError),
    (KeyboardInterrupt(), Interrupted),
    (SystemExit(0), JobError),
    (ValueError("bad"), JobError),
    (KeyError("missing"), JobError),
    (TypeError("no"), JobError),
    (AttributeError("no"), JobError),
    (IndexError("no"), JobError),
    (AssertionError(), JobError),
    (ZeroDivisionError(), JobError),
    (NotImplementedError(), JobError),
    (ImportError("no"), JobError),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), JobError),
    (StopIteration(), JobError),
]


@pytest.mark.parametrize(("error", "kind"), MET, ids=[f"{type(error).__name__} {error}"[:60] for error, _ in MET])
def test_an_error_gets_its_meaning(error: BaseException, kind: type[JobError]) -> None:
    failure = classify(error)
    assert type(failure) is kind
    assert failure.exit_code != 0
    assert failure.__cause__ is error
    assert failure.faults[0].message.startswith(type(error).__name__)


def raised(program: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:
        program()
    return caught.value


def explicit() -> None:
    try:
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    except OSError as error:
        raise RuntimeError("could not load the rows") from error


def implicit() -> None:
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError:
        raise RuntimeError("could not write")  # noqa: B904 - as libraries do


def suppressed() -> None:
    try:
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    except OSError:
        raise ValueError("not a number") from None


def wrapped() -> None:
    try:
        raise InputError(Fault("row 7 has no answer", where="/data/train/0"))
    except InputError as error:
        raise RuntimeError("a worker failed") from error


def test_a_wrapper_means_what_caused_it() -> None:
    assert type(classify(raised(explicit))) is TransientError
    assert type(classify(raised(implicit))) is CapacityError
    assert type(classify(raised(suppressed))) is JobError
    assert classify(raised(wrapped)).faults == (Fault("row 7 has no answer", where="/data/train/0"),)


def test_a_ring_of_causes_ends() -> None:
    first, second = ValueError("a"), KeyError("b")
    first.__cause__, second.__cause__ = second, first
    assert type(classify(first)) is JobError


def test_a_full_disk_is_known_from_a_full_memory() -> None:
    assert disk_is_full(classify(raised(implicit)))
    assert disk_is_full(CapacityError("merge: OSError: [Errno 28] No space left on device")), "as a child reports it"
    assert not disk_is_full(classify(MemoryError()))
    assert not disk_is_full(
        CapacityError(Fault("not enough disk for the weights", where="", found="5 bytes free", expected="6 bytes"))
    )
    assert not disk_is_full(InputError("row 3: no space left on device"))


def test_a_failure_of_ours_stays_itself() -> None:
    failure = SpecError("bad")
    assert classify(failure) is failure


def test_jinja_and_schemas_have_their_meaning() -> None:
    assert type(classify(jinja2.exceptions.SecurityError("no"))) is PolicyError
    assert type(classify(jinja2.exceptions.UndefinedError("no"))) is InputError
    assert type(classify(jsonschema.ValidationError("no"))) is SpecError


def test_only_the_termination_message_is_cut() -> None:
    """The last line of the log has it whole, with as many bytes as any message needs."""
    error = InputError("it is wrong " * 40, where="/data" * 40, found="f" * 300, expected="e" * 300, hint="h" * 300)
    cut, whole = failure_facts(error, "fetch"), failure_facts(error, "fetch", whole=True)
    assert len(json.dumps(cut).encode()) <= 1024
    assert cut["hint"] == "h" * 93 + "..."
    (fault,) = error.faults
    assert (whole["message"], whole["pointer"]) == (fault.message.strip(), fault.where)
    assert (whole["found"], whole["expected"], whole["hint"]) == (fault.found, fault.expected, fault.hint)
    assert cut.keys() == whole.keys()
