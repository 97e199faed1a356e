"""The tree of failures is total: every exception of the libraries has a meaning, and none of them is success."""

from __future__ import annotations

import importlib
import json
import pickle
import re
import subprocess
import sys

import pytest

from job import errors
from job.errors import TREE, VENDOR, Fault, InputError, JobError, SpecError
from job.errors.facts import failure_facts

CODES = {"JobError": 1, "SpecError": 10, "InputError": 11, "PolicyError": 12, "CapacityError": 13, "GateError": 14,
         "TransientError": 20, "DeviceError": 21, "Interrupted": 30}  # fmt: skip


def subclasses(cls: type) -> set[type]:
    below = set(cls.__subclasses__())
    return below.union(*(subclasses(sub) for sub in below))


# ---------------------------------------------------------------------------------------------- the tree


def test_exit_codes_are_the_contract() -> None:
    assert {kind.__name__: kind.exit_code for kind in TREE} == CODES
    assert set(TREE) == {JobError} | {kind for kind in subclasses(JobError) if kind.__module__ == "job.errors"}


def test_only_what_a_retry_can_help_is_retried() -> None:
    assert {kind.exit_code for kind in TREE if not kind.retryable} == {10, 11, 12, 13, 14}


def test_the_drawn_tree_is_the_classes() -> None:
    drawn = re.findall(r"(\w+) +(\d+) +\S", errors.__doc__ or "")
    assert {name: int(code) for name, code in drawn} == CODES


def test_each_failure_survives_a_process_boundary() -> None:
    """Workers raise them; their parents must still know every place."""
    for kind in TREE:
        again = pickle.loads(pickle.dumps(kind(Fault("wrong", where="/a", found="1", expected="2", hint="Do"), "too")))
        assert (type(again), again.faults) == (
            kind,
            (Fault("wrong", where="/a", found="1", expected="2", hint="Do"), Fault("too")),
        )


def test_a_fault_in_words() -> None:
    fault = Fault("too small", where="/lora/r", found="0", expected="at least 1", hint="Write 16")
    assert str(fault) == "/lora/r: too small (found 0); expected at least 1. Write 16"
    assert str(JobError("a", Fault("b", where="/c"))) == "a\n/c: b"
    beside = JobError("too small", where="/lora/r", found="0", expected="at least 1", hint="Write 16")
    assert beside.faults == (fault,)


# ------------------------------------------------------------------------------------------- reflection

LIBRARIES = ("botocore", "boto3", "s3transfer", "huggingface_hub", "httpx", "httpcore", "requests", "urllib3",
             "safetensors", "pyarrow", "datasets", "jinja2", "jsonschema")  # fmt: skip
# What their users' code can meet is defined in these modules, or in some module that they import.
MODULES = (
    "botocore.exceptions", "botocore.session", "botocore.eventstream", "boto3.exceptions", "boto3.s3.transfer",
    "s3transfer.manager", "huggingface_hub", "huggingface_hub.errors", "httpx", "requests.exceptions", "requests",
    "urllib3.exceptions", "urllib3", "safetensors", "pyarrow.lib", "pyarrow.parquet", "datasets", "datasets.exceptions",
    "datasets.inspect", "jinja2.sandbox", "jsonschema.exceptions",
)  # fmt: skip


# Decided to stay unknown (exit 1): only a bug of ours can raise them.
OURS = re.compile(
    r"botocore\.(model\.|exceptions\.(UndefinedModelAttributeError|MissingServiceIdError)$)"
    r"|s3transfer\.(QueueShutdownError|bandwidth\.|exceptions\.InvalidSubscriberMethodError|utils\.)"
    r"|huggingface_hub\.errors\.(CLI|Confirmation|Cache|DDUF|DeviceCode|DryRun|FileDuplication|Inference|OIDC|OfflineMode|Sandbox|StrictDataclass)"
    r"|jinja2\.(compiler|nodes)\.|datasets\.(arrow_dataset|packaged_modules|search)\."
    r"|jsonschema\.exceptions\.(?!ValidationError)"
)


def kinds_of(libraries: tuple[str, ...], modules: tuple[str, ...]) -> dict[str, str | None]:
    """Every exception of `libraries` with its meaning, in a process of its own, without what other tests imported."""
    program = (
        "import importlib, json, sys\n"
        "from job.errors import vendor_class\n"
        f"for module in {modules!r}: importlib.import_module(module)\n"
        "def below(cls): return set(cls.__subclasses__()).union(*map(below, cls.__subclasses__()))\n"
        f"met = [c for c in below(BaseException) if c.__module__.split('.')[0] in {libraries!r}"
        " and not issubclass(c, Warning)]\n"
        "kinds = {f'{c.__module__}.{c.__qualname__}': vendor_class(c) for c in met if 'vendored' not in c.__module__}\n"
        "print(json.dumps({name: kind and kind.__name__ for name, kind in kinds.items()}))\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, check=True, text=True)
    kinds: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return kinds


def test_every_exception_of_the_libraries_is_mapped() -> None:
    kinds = kinds_of(LIBRARIES, MODULES)
    assert {name.split(".")[0] for name in kinds} == set(LIBRARIES)
    assert len(kinds) > 250
    assert [name for name, kind in kinds.items() if kind is None] == []
    assert [name for name, kind in kinds.items() if kind == "JobError" and not OURS.match(name)] == []


def test_every_name_in_the_table_exists() -> None:
    """A library that renames a class must not leave a dead entry."""
    for name in VENDOR:
        if not name.startswith("torch."):
            module, _, attribute = name.rpartition(".")
            assert issubclass(getattr(importlib.import_module(module), attribute), BaseException), name


# Faults of programs that use torch's compiler, tracer, packager or test tools; the job has none of them as a stage.
TORCH_PROGRAM = re.compile(
    r"torch\.(_\w+\.|_C\._LinAlgError|FatalError|autograd\.gradcheck|fx\.|jit\.|mtia\.|multiprocessing\.spawn\."
    r"|package\.|testing\.|utils\.checkpoint|export\.|onnx\.|sparse\.|nn\.|distributed\.\w+\.)"
)


def test_every_exception_of_torch_is_mapped_or_a_programs() -> None:
    kinds = kinds_of(("torch",), ("torch", "torch.distributed"))
    assert kinds["torch.OutOfMemoryError"] == "CapacityError"
    assert kinds["torch.AcceleratorError"] == "DeviceError"
    assert kinds["torch.distributed.DistBackendError"] == "DeviceError"
    assert kinds["torch.distributed.DistNetworkError"] == "TransientError"
    assert [name for name, kind in kinds.items() if kind is None and not TORCH_PROGRAM.match(name)] == []


# ----------------------------------------------------------------------------------- termination message


@pytest.mark.parametrize("text", ["a", '"', "\\", "é", "\x00", "\U0001f600", "\n", "\ud800"], ids=ascii)
def test_a_termination_message_never_passes_1024_bytes(text: str) -> None:
    long = text * 5000
    facts = failure_facts(
        SpecError(Fault(long, where=long, found=long, expected=long, hint=long)), "validate", "0123456789abcdef"
    )
    assert len(json.dumps(facts, ensure_ascii=False).encode()) <= 1024


def test_a_failure_is_reported_in_the_letters_of_its_text() -> None:
    fault = Fault(
        "Zeile 3 ist kein JSON: größer",
        where="/data/train/0/source",
        found="données/学習.jsonl",
        hint="a\x1b[31mb\u2028c\ud800d",
    )
    facts = failure_facts(InputError(fault), "data")
    assert (facts["message"], facts["found"]) == ("Zeile 3 ist kein JSON: größer", "données/学習.jsonl")
    assert facts["hint"] == "a [31mb c d"
