"""Canary secrets: whatever a run does, well or badly, none of them is printed or stored, in any common form."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.flow.running import DEMO, Result, tiny, tunejob, write_spec
from tests.servers import ACCESS_KEY, SECRET_KEY, Hub, S3Server, closed_port, hub_server
from tests.tiny import broken_narrow_dir, tiny_dir

CANARIES = {
    "AWS_ACCESS_KEY_ID": "CANARYACCESSKEY0001X",
    "AWS_SECRET_ACCESS_KEY": "canary/secret+key=0002%&",
    "AWS_SESSION_TOKEN": "canary-session//token++0003==",
    "HF_TOKEN": "hf_canary0004canary0004canary0004",
    "HUGGING_FACE_HUB_TOKEN": "hf_canary0005canary0005canary0005",
    "TUNEJOB_JUDGE_KEY": "sk-canary0007judge0007canary0007judge0007",
    "WANDB_API_KEY": "canary0006wandb0006canary0006wandb0006canary",
}
LOUD = ("HF_HUB_VERBOSITY", "TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY")
NOISY = {"PYTHONWARNINGS": "always", "HF_DEBUG": "1"} | dict.fromkeys(LOUD, "debug")


def forms(secret: str) -> set[bytes]:
    """A secret as it is, its first and last part, URL-coded, in JSON, and in base64, as if after a user's name."""
    plain = (secret, quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1], json.dumps(repr(secret))[2:-2])
    parts = (secret.split()[0], secret.split()[-1], secret[: len(secret) // 2], secret[-len(secret) // 2 :])
    coded = (
        base64.b64encode(b"u" * before + secret.encode()).decode()[4 if before else 0 :].rstrip("=")[:-2]
        for before in range(3)
    )
    return {text.encode() for text in (*plain, *parts, *coded)}


def leaks(secrets: dict[str, str], result: Result, *folders: Path) -> list[str]:
    """Where a secret can be read; every byte of output and of every file counts."""
    places = {
        "stdout": result.stdout.encode(),
        "stderr": result.stderr.encode(),
        "termination message": result.last_words.encode(),
    }
    for folder in folders:
        places |= {
            str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()
        }
    found = []
    for name, value in secrets.items():
        found += [f"{name} in {place}" for place, data in places.items() if any(form in data for form in forms(value))]
    return found


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server() as server:
        yield server


def run(folder: Path, changes: dict[str, object], extra: dict[str, str], forked: bool = True) -> Result:
    spec = write_spec(folder / "spec.json", tiny(folder / "out", changes))
    return tunejob(
        "run", spec, "--workdir", str(folder / "work"), scratch=folder / "scratch", extra=extra, forked=forked
    )


def test_the_search_finds_a_leak(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x" + quote(CANARIES["AWS_SECRET_ACCESS_KEY"], safe="") + "y")
    quiet = Result(0, [], base64.b64encode(b"hf_canary0004canary0004canary0004").decode(), "", 0.0, "")
    assert len(leaks(CANARIES, quiet, tmp_path)) == 2


def test_a_run_that_uses_its_secrets_prints_none(s3: S3Server, hub: Hub, tmp_path: Path) -> None:
    """A private model with the token, output and data with the keys: all of them in use, all loggers at debug."""
    bucket = s3.new_bucket()
    s3.client().upload_file(str(DEMO / "train.jsonl"), bucket, "train.jsonl")
    hub.repo("org/private", private=True).commit({path.name: path.read_bytes() for path in tiny_dir().iterdir()})
    secrets = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "HF_TOKEN": hub.token}
    pasted = {name: f" {value}\r\n" for name, value in secrets.items()}  # as editors and files leave them
    extra = CANARIES | NOISY | s3.environment() | {"HF_ENDPOINT": f"{hub.endpoint}\n"} | pasted
    del extra["AWS_SESSION_TOKEN"]
    changes = {
        "/model/source": "hf://org/private",
        "/data/train/0": {"source": f"s3://{bucket}/train.jsonl", "format": "messages", "split": "train[:32]"},
        "/output/uri": f"s3://{bucket}/run",
        "/tracking": ["tensorboard"],
    }
    result = run(tmp_path, changes, extra, forked=False)  # imports and their loggers included
    assert result.exit_code == 0, result.stdout + result.stderr
    stored = tmp_path / "stored"
    for item in s3.client().list_objects_v2(Bucket=bucket, Prefix="run/")["Contents"]:
        target = stored / item["Key"]
        target.parent.mkdir(parents=True, exist_ok=True)
        s3.client().download_file(bucket, item["Key"], str(target))
    assert leaks(CANARIES | secrets, result, tmp_path) == []
    assert any(authorization == f"Bearer {hub.token}" for _, _, authorization in hub.seen), "the token was in use"


FAILURES: dict[str, tuple[int, dict[str, object]]] = {
    "s3 refuses the keys": (11, {"/output/uri": "s3://somewhere/run"}),
    "s3 model": (11, {"/model/source": "s3://somewhere/model"}),
    "s3 data": (11, {"/data/train/0/source": "s3://somewhere/rows.jsonl"}),
    "hub refuses the token": (11, {"/model/source": "hf://org/private"}),
    "hub has no such model": (11, {"/model/source": "hf://org/none"}),
    "hub has no such revision": (11, {"/model/source": "hf://org/open@v9"}),
    "hub has no such data": (11, {"/data/train/0/source": "hf://datasets/org/none"}),
    "a pickled model": (12, {"/model/source": "hf://org/pickled"}),
    "no such file": (11, {"/data/train/0/source": "nowhere.jsonl"}),
    "no tracker": (11, {"/tracking": ["wandb"]}),
    "no such model folder": (11, {"/model/source": "nowhere"}),
    "a secret in the spec": (10, {"/evaluation/prompts": [f"my key is {CANARIES['HF_TOKEN']}"]}),
    "a wrong value": (10, {"/training/learning_rate": CANARIES["AWS_SECRET_ACCESS_KEY"]}),
    "a secret as a key": (10, {f"/training/{CANARIES['WANDB_API_KEY']}": 1}),
    "weights that are not numbers": (14, {"/model/source": "broken"}),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_prints_no_secret(name: str, s3: S3Server, hub: Hub, tmp_path: Path) -> None:
    exit_code, changes = FAILURES[name]
    if changes.get("/model/source") == "broken":
        changes = {"/model/source": str(broken_narrow_dir())}
    hub.repo("org/private", private=True).commit({"config.json": b"{}"})
    hub.repo("org/open").commit({"config.json": b"{}"})
    hub.repo("org/pickled").commit({"config.json": b"{}", "pytorch_model.bin": b"x"})
    result = run(tmp_path, changes, s3.environment() | {"HF_ENDPOINT": hub.endpoint} | CANARIES | NOISY)
    assert result.exit_code == exit_code, result.stdout + result.stderr
    (tmp_path / "spec.json").unlink()  # ours, and it may name one on purpose
    assert leaks(CANARIES, result, tmp_path) == []


@pytest.mark.parametrize(
    ("name", "inside"), [("HF_TOKEN", "\n"), ("AWS_SECRET_ACCESS_KEY", " ")]
)  # all names: test_redact.py
def test_a_credential_that_cannot_be_sent_is_named_and_not_shown(
    name: str, inside: str, s3: S3Server, hub: Hub, tmp_path: Path
) -> None:
    value = CANARIES[name][:12] + inside + CANARIES[name][12:]
    changes = {"/model/source": "hf://org/private", "/output/uri": "s3://somewhere/run"}
    result = run(tmp_path, changes, s3.environment() | {"HF_ENDPOINT": hub.endpoint} | CANARIES | NOISY | {name: value})
    assert (result.exit_code, result.failure["pointer"]) == (11, name)
    assert json.loads(result.last_words)["pointer"] == name
    assert leaks(CANARIES | {name: value}, result, tmp_path) == []
    assert hub.seen == []


def test_servers_that_are_down_are_sent_no_secret(tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{closed_port()}"
    quick = {"AWS_MAX_ATTEMPTS": "1", "TUNEJOB_HUB_PAUSE_SECONDS": "0.05"}
    extra = CANARIES | NOISY | quick | {"AWS_ENDPOINT_URL": nowhere, "HF_ENDPOINT": nowhere}
    for index, changes in enumerate([{"/output/uri": "s3://bucket/run"}, {"/model/source": "hf://org/model"}]):
        folder = tmp_path / str(index)
        result = run(folder, changes, extra)
        assert result.exit_code == 20, result.stdout + result.stderr
        assert result.failure["retryable"]
        assert leaks(CANARIES, result, folder) == []
