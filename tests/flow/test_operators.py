"""One run that everybody hears of who can: heartbeat, OpenMetrics, push gateway, Kubeflow, who waits for its end."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from job.spec.strict import StrictValidator, load_schema
from tests.attacks.test_canaries import leaks
from tests.flow.running import Result, fits_events, run_tiny, tunejob, valid_stats
from tests.hub_server import serving
from tests.servers import closed_port

pytestmark = pytest.mark.slow
COMPILED = "canary-compiled-key-0005-of-32-characters"
KEY, PASSWORD, PLACE, TOKEN = (
    "canary-notify-key-0001",
    "canary-gateway-0002",
    "canary0003hook0003",
    "canary-kubeflow-0004",
)
SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)+)\})? (-?[0-9.e+-]+)')


@dataclass
class Heard:
    """Requests of one path, in their order, and what is answered: the first statuses, then 200."""

    statuses: list[int]
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)


@contextmanager
def listening(*statuses: int) -> Iterator[tuple[str, Heard]]:
    heard = Heard(list(statuses))

    class Request(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            heard.requests.append((self.command, self.path, dict(self.headers), body))
            self.send_response(heard.statuses.pop(0) if heard.statuses else 200)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_PUT = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Request)
    with serving(server):
        yield f"127.0.0.1:{server.server_address[1]}", heard


def samples(text: str) -> dict[tuple[str, str], float]:
    """Of an OpenMetrics text, by name and labels; each line is of a kind, each family in one piece, its type first."""
    *lines, end = text.split("\n")[:-1]
    assert end == "# EOF"
    found, family, seen = {}, "", set()
    for line in lines:
        if line.startswith("# TYPE "):
            family = line.split()[2]
            assert line.split()[3] == "gauge"
            assert family not in seen
            seen.add(family)
        elif line.startswith("#"):
            assert line.split()[1] in ("HELP", "UNIT")
            assert line.split()[2] == family
        else:
            matched = SAMPLE.fullmatch(line)
            assert matched, line
            assert matched[1] == family
            found[matched[1], matched[2] or ""] = float(matched[3])
    return found


@dataclass(frozen=True)
class Watched:
    folder: Path
    result: Result
    gateway: Heard
    hook: Heard
    kubeflow: Heard

    @property
    def output(self) -> Path:
        return self.folder / "out"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    token = folder / "token"
    token.write_text(TOKEN)
    (folder / "triton").mkdir()
    (folder / "triton" / "kernel.cubin").write_bytes(b"a kernel, as an engine would have left it")
    with listening() as (gateway, pushed), listening(503, 429) as (hook, told), listening() as (kubeflow, progress):
        extra = {
            "TUNEJOB_HEARTBEAT": str(folder / "heartbeat"), "TUNEJOB_METRICS_FILE": str(folder / "metrics"),
            "TUNEJOB_PUSHGATEWAY": f"http://me:{PASSWORD}@{gateway}/",
            "TUNEJOB_NOTIFY_URL": f"http://{hook}/hooks/{PLACE}",
            "TUNEJOB_NOTIFY_KEY": KEY, "KUBEFLOW_TRAINER_SERVER_URL": f"http://{kubeflow}/status",
            "KUBEFLOW_TRAINER_SERVER_TOKEN": str(token),
            "TUNEJOB_COMPILED": str(folder / "compiled"), "TUNEJOB_COMPILED_KEY": COMPILED,
            "TRITON_CACHE_DIR": str(folder / "triton"),
        }  # fmt: skip
        result = run_tiny(folder, {"/evaluation/forgetting": {}, "/training/max_steps": 4}, extra)
        assert result.exit_code == 0, result.stdout[-3000:] + result.stderr[-2000:]
        yield Watched(folder, result, pushed, told, progress)


def test_every_event_of_its_log_is_one_of_the_schema(watched: Watched) -> None:
    assert len(watched.result.events) == len(watched.result.stdout.splitlines())
    assert fits_events(watched.result.events) == []
    assert fits_events([{"time": "2026-01-02T03:04:05Z", "event": "fetch", "files": 3, "rows": 3}]) == [
        "fetch: 'rows' is not one of ['time', 'event', 'files']"
    ]
    assert len(fits_events([{"time": "2026-01-02T03:04:05Z", "event": "fetched"}])) == 1


def test_what_was_compiled_is_looked_for_and_kept(watched: Watched) -> None:
    said = [event["text"] for event in watched.result.named("note") if event["text"].startswith("what was compiled")]
    assert [text.partition(": ")[2].partition(",")[0] for text in said] == [
        "none for this card and these versions yet",
        "kept",
    ]
    (archive,) = (watched.folder / "compiled").rglob("*.tar.gz")
    with tarfile.open(archive) as tar:
        assert tar.getnames() == ["triton/kernel.cubin"]


def test_the_heartbeat_is_of_the_last_stage_and_young(watched: Watched) -> None:
    path = watched.folder / "heartbeat"
    beat = json.loads(path.read_text())
    assert (beat["stage"], beat["run_id"]) == ("publish", watched.result.named("start")[0]["run_id"])
    assert time.time() - path.stat().st_mtime < 120
    assert not list(watched.folder.glob(".heartbeat*"))


def test_metrics_are_those_of_the_run_in_the_file_and_at_the_gateway(watched: Watched) -> None:
    text, stats = (watched.folder / "metrics").read_text(), valid_stats(watched.output / "stats.json")
    found = samples(text)
    run_id = stats["run_id"]
    assert found["tunejob_run_info", f'run_id="{run_id}",name="tiny"'] == 1
    assert (found["tunejob_finished", ""], found["tunejob_exit_code", ""], found["tunejob_train_step", ""]) == (1, 0, 4)
    assert found["tunejob_train_loss", ""] == pytest.approx(stats["training"]["final_loss"])
    for model in ("base", "trained"):
        for metric in ("held_out_loss", "general_loss"):
            assert (
                found["tunejob_evaluation", f'model="{model}",metric="{metric}"'] == stats["evaluation"][model][metric]
            )
    command, path, headers, body = watched.gateway.requests[-1]
    assert (command, path) == ("PUT", f"/metrics/job/tunejob/run_id/{run_id}")
    assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")).decode() == f"me:{PASSWORD}"
    assert samples(body.decode())["tunejob_finished", ""] == 1


def test_its_end_is_told_signed_and_after_two_refusals(watched: Watched) -> None:
    assert [request[1] for request in watched.hook.requests] == [f"/hooks/{PLACE}"] * 3
    _, _, headers, body = watched.hook.requests[-1]
    signed = hmac.new(KEY.encode(), f"{headers['X-Tunejob-Timestamp']}.".encode() + body, hashlib.sha256).hexdigest()
    assert headers["X-Tunejob-Signature"] == f"sha256={signed}"
    told, stats = json.loads(body), valid_stats(watched.output / "stats.json")
    StrictValidator(load_schema("notification")).validate(told)
    assert (told["run_id"], told["output"], told["exit_code"], told["failure"]) == (
        stats["run_id"],
        str(watched.output),
        0,
        None,
    )
    assert told["figures"]["trained"] == stats["evaluation"]["trained"]
    assert [(event["status"], event["tries"]) for event in watched.result.named("notified")] == [(200, 3)]


def test_kubeflow_hears_of_the_progress(watched: Watched) -> None:
    told = [json.loads(body)["trainerStatus"] for *_, body in watched.kubeflow.requests]
    assert (told[0]["progressPercentage"], told[-1]["progressPercentage"]) == (0, 100)
    assert "loss" in {metric["name"] for metric in told[-1]["metrics"]}
    assert {headers["Authorization"] for _, _, headers, _ in watched.kubeflow.requests} == {f"Bearer {TOKEN}"}


def test_none_of_their_secrets_is_printed_or_stored(watched: Watched) -> None:
    secrets = {"key": KEY, "password": PASSWORD, "place": PLACE, "token": TOKEN, "compiled": COMPILED}
    (watched.folder / "token").unlink()
    assert leaks(secrets, watched.result, watched.folder) == []
    assert not any(secret.encode() in body for secret in secrets.values() for *_, body in watched.hook.requests)


def failing(folder: Path, address: str) -> Result:
    (folder / "spec.json").write_text("{}")
    extra = {"TUNEJOB_NOTIFY_URL": address, "TUNEJOB_NOTIFY_KEY": KEY}
    return tunejob("run", str(folder / "spec.json"), scratch=folder / "scratch", extra=extra)


def test_a_failure_is_told_with_its_reason(tmp_path: Path) -> None:
    with listening() as (hook, heard):
        result = failing(tmp_path, f"http://{hook}/")
    assert result.exit_code == 10
    told = json.loads(heard.requests[0][3])
    StrictValidator(load_schema("notification")).validate(told)
    StrictValidator(load_schema("failure")).validate(told["failure"])
    assert (told["exit_code"], told["name"], told["failure"]["class"]) == (10, None, "SpecError")
    assert fits_events(result.events) == []
    assert result.failure["exit_code"] == 10


@pytest.mark.parametrize("answer", ["redirected", "closed"])
def test_a_run_ends_as_it_does_whoever_cannot_be_told(tmp_path: Path, answer: str) -> None:
    if answer == "closed":
        result = failing(tmp_path, f"http://127.0.0.1:{closed_port()}/{PLACE}")
    else:
        with listening(302) as (hook, heard):
            result = failing(tmp_path, f"http://{hook}/{PLACE}")
        assert len(heard.requests) == 1, "such an answer is final, and nothing goes elsewhere"
    (said,) = result.named("notified")
    assert said["note"] == "the message of the end could not be sent"
    assert (result.exit_code, result.failure["class"]) == (10, "SpecError")
    assert leaks({"place": PLACE, "key": KEY}, result) == []
