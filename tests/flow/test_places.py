"""Runs whose spec, model, data and output are elsewhere: S3 over HTTPS, and the Hub."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.flow.running import DEMO, Result, document, tiny, tunejob, write_spec
from tests.servers import LIMITED, LIMITED_BUCKET, WITHOUT_DELETE, Hub, S3Server, hub_server
from tests.tiny import tiny_dir

FOLDER = "runs/places"  # where the policy of k8s/README.md allows something


@dataclass(frozen=True)
class S3Job:
    server: S3Server
    bucket: str
    folder: Path
    first: Result

    def environment(self, **changes: str) -> dict[str, str]:
        return self.server.environment(secure=True, access=LIMITED) | changes

    def run(self, *arguments: str, **changes: str) -> Result:
        return tunejob(*arguments, scratch=self.folder / "again", extra=self.environment(**changes))

    @property
    def spec(self) -> str:
        return f"s3://{self.bucket}/{FOLDER}/specs/job.json"

    def stored(self) -> dict[str, tuple[str, str]]:
        """Key -> (digest, time of change) of every object of the run."""
        found = self.server.client().list_objects_v2(Bucket=self.bucket, Prefix=f"{FOLDER}/run/")["Contents"]
        return {item["Key"].removeprefix(f"{FOLDER}/run/"): (item["ETag"], str(item["LastModified"])) for item in found}


@pytest.fixture(scope="module")
def s3_job(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> S3Job:
    """By an identity that has the policy of k8s/README.md."""
    bucket, folder, client = LIMITED_BUCKET, tmp_path_factory.mktemp("s3"), s3.client()
    for path in tiny_dir().iterdir():
        client.upload_file(str(path), bucket, f"{FOLDER}/base/tiny-llama/{path.name}")
    client.upload_file(str(DEMO / "train.jsonl"), bucket, f"{FOLDER}/data/train.jsonl")
    rows = {"source": f"s3://{bucket}/{FOLDER}/data/train.jsonl", "format": "messages"}
    changes = {
        "/model/source": f"s3://{bucket}/{FOLDER}/base/tiny-llama",
        "/data/train/0": {**rows, "split": "train[:32]"},
        "/data/held_out/sources": [{**rows, "split": "train[-8:]"}],
    }
    spec = tiny(f"s3://{bucket}/{FOLDER}/run", changes)
    client.put_object(Bucket=bucket, Key=f"{FOLDER}/specs/job.json", Body=json.dumps(spec).encode())
    environment = s3.environment(secure=True, access=LIMITED)
    first = tunejob(
        "run", f"s3://{bucket}/{FOLDER}/specs/job.json", scratch=folder / "scratch", extra=environment, forked=True
    )
    return S3Job(s3, bucket, folder, first)


def test_everything_over_s3_and_https(s3_job: S3Job) -> None:
    assert s3_job.first.exit_code == 0, s3_job.first.stdout + s3_job.first.stderr
    stored = s3_job.stored()
    some = {"manifest.json", "spec.json", "stats.json", "adapter/adapter_model.safetensors", "report/losses.jsonl"}
    assert some <= stored.keys()
    manifest = json.loads(
        s3_job.server.client().get_object(Bucket=s3_job.bucket, Key=f"{FOLDER}/run/manifest.json")["Body"].read()
    )
    assert manifest["base"]["public_id"] == f"s3://{s3_job.bucket}/{FOLDER}/base/tiny-llama"
    assert {file["key"] for file in manifest["files"]} == stored.keys() - {"manifest.json"}
    assert s3_job.server.open_uploads(s3_job.bucket) == []
    assert not s3_job.first.named("rights") + s3_job.first.named("leftovers"), "the policy of the docs is enough"


def test_without_the_right_to_delete_a_run_works_and_says_what_it_leaves(s3: S3Server, tmp_path: Path) -> None:
    """Seven checkpoints, of which two would be kept; three in a row that could not be stored would end the training."""
    uri, extra = f"s3://{LIMITED_BUCKET}/{FOLDER}/kept", s3.environment(access=WITHOUT_DELETE)
    settings = {"every_minutes": 60, "every_steps": 1, "keep": 2, "max_failures": 3}
    rows = shutil.copy(DEMO / "train.jsonl", tmp_path)
    changes = {"/training/max_steps": 8, "/output/checkpoints": settings, "/data/train/0/source": str(rows)}
    spec = write_spec(tmp_path / "spec.json", tiny(uri, changes))
    result = tunejob("run", spec, scratch=tmp_path / "scratch", extra=extra)
    assert result.exit_code == 0, result.stdout + result.stderr
    (said,) = result.named("rights")
    assert "s3:DeleteObject" in said["reason"]
    assert [(event["step"], event["note"]) for event in result.named("checkpoint")] == [
        (step, "stored") for step in range(1, 8)
    ]
    listed = s3.client().list_objects_v2(Bucket=LIMITED_BUCKET, Prefix=f"{FOLDER}/kept/checkpoints/")["Contents"]
    assert max(event["objects"] for event in result.named("leftovers")) == sum(
        "/step-" in item["Key"] for item in listed
    )
    assert tunejob("verify", uri, scratch=tmp_path, extra=extra).exit_code == 0
    Path(rows).unlink()  # a finished run needs them no more
    again = tunejob("run", spec, scratch=tmp_path / "scratch", extra=extra)
    assert (again.exit_code, again.named("done")[0]["note"][:17]) == (0, "already published")


def test_again_writes_nothing(s3_job: S3Job) -> None:
    before = s3_job.stored()
    again = s3_job.run("run", s3_job.spec)
    assert again.exit_code == 0
    assert [event["event"] for event in again.events] == ["done"]
    assert s3_job.stored() == before


def test_what_is_in_s3_is_asked_and_damage_is_noticed(s3_job: S3Job) -> None:
    """The adapter and its base come from there, each file with its hash. No object is changed for good."""
    output, key = f"s3://{s3_job.bucket}/{FOLDER}/run", f"{FOLDER}/run/adapter/adapter_model.safetensors"
    client, asked = s3_job.server.client(), ("chat", output, "--prompt", "Turn on the lamp.")
    stored = json.loads(client.get_object(Bucket=s3_job.bucket, Key=f"{FOLDER}/run/report/answers.json")["Body"].read())
    said = tunejob(*asked, scratch=s3_job.folder / "chat", extra=s3_job.environment(), forked=True)
    assert (said.exit_code, said.stdout) == (0, stored[0]["trained"] + "\n"), said.stderr
    weights = client.get_object(Bucket=s3_job.bucket, Key=key)["Body"].read()
    client.put_object(Bucket=s3_job.bucket, Key=key, Body=weights[:-1] + bytes([weights[-1] ^ 1]))
    damaged = tunejob(*asked, scratch=s3_job.folder / "chat", extra=s3_job.environment(), forked=True)
    client.put_object(Bucket=s3_job.bucket, Key=key, Body=weights)
    assert damaged.exit_code == 14
    assert json.loads(damaged.stderr)["pointer"] == "adapter/adapter_model.safetensors"


def test_verify_reads_it_all_again(s3_job: S3Job) -> None:
    result = s3_job.run("verify", f"s3://{s3_job.bucket}/{FOLDER}/run")
    assert result.exit_code == 0
    assert result.events[-1]["files"] == len(s3_job.stored()) - 1


@dataclass(frozen=True)
class HubJob:
    folder: Path
    result: Result
    model_commit: str
    data_commit: str
    requests_until: list[float]  # seconds after the epoch


@pytest.fixture(scope="module")
def hub_job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubJob]:
    folder = tmp_path_factory.mktemp("hub")
    with hub_server() as hub:
        arrivals = watch(hub)
        old = {path.name: path.read_bytes() for path in tiny_dir().iterdir()}
        model = hub.repo("org/tiny-llama")
        commit = model.commit(old)
        model.commit({"README.md": b"nothing to load"})  # where main points now
        data = hub.repo("datasets/org/rooms").commit({"data/train.jsonl": (DEMO / "train.jsonl").read_bytes()})
        changes = {
            "/model/source": f"hf://org/tiny-llama@{commit}",
            "/data/train/0": {"source": "hf://datasets/org/rooms", "format": "messages", "split": "train[:32]"},
            "/training/max_steps": 60,
        }
        spec = write_spec(folder / "spec.json", tiny(folder / "out", changes))
        result = tunejob("run", spec, scratch=folder / "scratch", extra={"HF_ENDPOINT": hub.endpoint})
        yield HubJob(folder, result, commit, data, list(arrivals))


def watch(hub: Hub) -> list[float]:
    """The time of each request from now on, by the server's own log."""

    class Seen(list[tuple[str, str, str | None]]):
        def append(self, item: tuple[str, str, str | None]) -> None:
            arrivals.append(time.time())
            super().append(item)

    arrivals: list[float] = []
    hub.seen = Seen()
    return arrivals


def test_a_model_and_rows_of_the_hub_at_their_commits(hub_job: HubJob) -> None:
    assert hub_job.result.exit_code == 0, hub_job.result.stdout + hub_job.result.stderr
    manifest = document(hub_job.folder / "out" / "manifest.json")
    assert manifest["base"]["revision"] == hub_job.model_commit
    assert manifest["base"]["public_id"] == "org/tiny-llama"
    assert manifest["data"][0]["revision"] == hub_job.data_commit
    config = document(hub_job.folder / "out" / "adapter" / "adapter_config.json")
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny-llama", hub_job.model_commit)


def test_after_the_fetch_the_hub_is_left_alone(hub_job: HubJob) -> None:
    phases = document(hub_job.folder / "out" / "stats.json")["phases"]
    names = [phase["name"] for phase in phases]
    weights = names.index("weights")
    remaining_seconds = sum(phase["wall_seconds"] for phase in phases[weights + 1 :])
    assert len(hub_job.requests_until) >= 10
    last = max(hub_job.requests_until)
    ended = (hub_job.folder / "out" / "manifest.json").stat().st_mtime
    assert ended - last >= remaining_seconds * 0.95
    assert remaining_seconds > 2
