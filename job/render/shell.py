"""What the files for other places than Kubernetes share: which variables go in, and how the spec gets there."""

from __future__ import annotations

from job.errors import SpecError
from job.render.rendering import Rendering
from job.render.text import word
from job.spec import JobSpec
from job.spec.sections import judges
from job.tracking import TRACKERS
from job.training.methods.rewards import ALLOWED

COMMAND = "/opt/tunejob/bin/tunejob"
SPEC_PATH = "/tmp/spec.json"  # noqa: S108 (the container's, which has nothing else to write)
S3_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
SECRETS = (*S3_SECRETS, "AWS_SESSION_TOKEN", "HF_TOKEN")
SETTINGS = (
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "TUNEJOB_S3_ADDRESSING",
    "TUNEJOB_CHECKPOINTS",
    "HF_ENDPOINT",
)
JUDGE = ("TUNEJOB_JUDGE_URL", "TUNEJOB_JUDGE_KEY")
SHELLCHECK = "shellcheck disable=SC2016"  # a spec in single quotes is meant to stay as it is
# Linux takes no longer string in the environment or the arguments of a program.
STRING_BYTES = 128 << 10


def variables(spec: JobSpec) -> list[str]:
    """Names of variables that are passed on where they are set; no file ever holds their values."""
    return [*SECRETS, *SETTINGS, *asked_for(spec)]


def asked_for(spec: JobSpec) -> list[str]:
    """Names of those that this spec's trackers, its judge and rewards of its own need."""
    trackers = [name for tracker in spec.tracking for name in TRACKERS[tracker].variables]
    leave = (ALLOWED,) if spec.training.grpo and spec.training.grpo.files else ()
    return [*trackers, *(JUDGE if judges(spec) else ()), *leave]


def needed_secrets(spec: JobSpec) -> list[str]:
    """Names of those without which the job cannot work, unless the machine has an identity of its own."""
    s3 = S3_SECRETS if "s3://" in spec.output.uri else ()
    hub = ("HF_TOKEN",) if spec.output.hub else ()
    return [*s3, *hub]


def environment_words(spec: JobSpec) -> list[str]:
    """For the head of a file: which variables the run takes from the shell that starts it."""
    others = [name for name in SECRETS if name not in S3_SECRETS]
    others += asked_for(spec)
    return [
        f"Credentials are taken from the environment: {', '.join(S3_SECRETS)} for S3, and where they are set",
        f"{', '.join(others)}; so are AWS_REGION, AWS_ENDPOINT_URL and HF_ENDPOINT.",
    ]


def write_spec(task: Rendering) -> str:
    """A shell command that writes the spec, byte for byte. Raises `SpecError` for one that no argument can hold."""
    text = word(task.text)
    if len(text.encode()) >= STRING_BYTES:
        hint = "Put it into a bucket and run s3://bucket/spec.json, or use --to docker or job"
        raise SpecError(
            "the spec is too large for this target",
            found=f"{len(text.encode())} bytes once it is quoted",
            expected=f"less than {STRING_BYTES}",
            hint=hint,
        )
    return f"printf %s {text} > {SPEC_PATH}"
