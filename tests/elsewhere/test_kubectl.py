"""`tunejob wait` with the real kubectl, against a small API server that says what a real one said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.elsewhere.cluster import NAME, RUNNING, command, condition, ended, event, job, line, pod

TOOLS = Path(__file__).parents[2] / ".venv-k8s" / "bin"
MEMBER = f"{NAME}-node-0"
TRAINER = "trainer.kubeflow.org/v1alpha1"
RUN = "0" * 16
LOG = [line("start", run_id=RUN, output=""), line("train", done=1), line("published", run_id=RUN, output="")]
Json = dict[str, Any]


def resources(group: str, **kinds: str) -> Json:
    listed = [
        {"name": name, "singularName": "", "namespaced": True, "kind": kind, "verbs": ["get", "list"]}
        for name, kind in kinds.items()
    ]
    return {"kind": "APIResourceList", "groupVersion": group, "resources": listed}


def group(version: str) -> Json:
    named = {"groupVersion": version, "version": version.rpartition("/")[2]}
    return {"name": version.partition("/")[0], "versions": [named], "preferredVersion": named}


DISCOVERY = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group("batch/v1"), group(TRAINER)]},
    "/api/v1": resources("v1", pods="Pod", events="Event"),
    "/apis/batch/v1": resources("batch/v1", jobs="Job"),
    f"/apis/{TRAINER}": resources(TRAINER, trainjobs="TrainJob"),
}
FORBIDDEN = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403,
             "message": 'jobs.batch is forbidden: '
                        'User "ci" cannot list resource "jobs" in API group "batch"'}  # fmt: skip


def moment(look: int) -> tuple[list[Json] | None, list[Json]]:
    """Jobs (None: forbidden) and pods at the `look`th look: queued, refused at first, without a pod, at work, done."""
    names = {"job": MEMBER, "name": "node"}
    work = {"name": MEMBER, "container": "node"}
    if look == 1:
        return [], []
    if look in (2, 3):
        return None, []
    if look == 4:
        return [job(**work)], []
    done = look > 5
    one = pod(1, ended(0) if done else RUNNING, phase="Succeeded" if done else "Running", **names)  # type: ignore[arg-type]
    one["spec"] = {"containers": [{"name": "mesh"}, {"name": "node"}]}
    return [job(*([condition("Complete", "CompletionsReached", "all of them")] if done else []), **work)], [one]


class Server(BaseHTTPRequestHandler):
    looks = 0

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(asked.query).items()}
        last = asked.path.rpartition("/")[2]
        if asked.path in DISCOVERY:
            self.answer(200, DISCOVERY[asked.path])
        elif last == "jobs" and query["labelSelector"] == f"jobset.sigs.k8s.io/jobset-name={NAME}":
            Server.looks += 1
            found, _ = moment(Server.looks)
            self.answer(*((403, FORBIDDEN) if found is None else (200, self.listed("Job", found))))
        elif last == "pods" and query["labelSelector"].startswith("batch.kubernetes.io/job-name="):
            self.answer(200, self.listed("Pod", moment(Server.looks)[1]))
        elif last == "events":
            about = f"involvedObject.kind=Job,involvedObject.name={MEMBER},type=Warning"
            self.answer(200, self.listed("Event", [event("exceeded quota")] if query["fieldSelector"] == about else []))
        elif last == "log" and query["container"] == "node":
            assert (query["follow"], query["timestamps"]) == ("true", "true")
            said = "".join(f"2026-11-21T10:00:00.{i:09}Z {text}\n" for i, text in enumerate(LOG, 1))
            self.answer(200, said.encode(), "text/plain")
        elif last == f"{MEMBER}-1":
            self.answer(200, moment(Server.looks)[1][0])
        elif last == NAME:
            self.answer(
                200,
                {
                    "apiVersion": TRAINER,
                    "kind": "TrainJob",
                    "metadata": {"name": NAME},
                    "status": {"conditions": [condition("Suspended")]},
                },
            )
        else:
            self.answer(
                404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            )

    @staticmethod
    def listed(kind: str, items: list[Json]) -> Json:
        return {
            "kind": f"{kind}List",
            "apiVersion": "batch/v1" if kind == "Job" else "v1",
            "metadata": {},
            "items": items,
        }

    def answer(self, status: int, body: Json | bytes, kind: str = "application/json") -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[Path]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "x", "users": [{"name": "u", "user": {}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    }  # fmt: skip
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps(config))
    yield file
    server.shutdown()


@pytest.mark.skipif(not (TOOLS / "kubectl").exists(), reason="kubectl is in .venv-k8s (make k8s-test)")
def test_a_trainjob_from_its_queue_to_its_end(kubeconfig: Path, tmp_path: Path) -> None:
    variables = {
        **os.environ,
        "PATH": f"{TOOLS}:{os.environ['PATH']}",
        "KUBECONFIG": str(kubeconfig),
        "HOME": str(tmp_path),
    }
    arguments = command(tmp_path, f"trainjob.trainer.kubeflow.org/{NAME}", patience="60")
    done = subprocess.run(
        [sys.executable, "-m", "job", *arguments],
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    events = [json.loads(text) for text in done.stdout.splitlines()]
    assert [(e["event"], e.get("waiting_for", "")) for e in events] == [
        ("job", "queued: the Job is suspended"), ("job", "FailedCreate: exceeded quota"),
        ("start", ""), ("train", ""), ("published", ""), ("ended", ""),
    ]  # fmt: skip
    assert (done.returncode, events[-1]["exit_code"]) == (0, 0)
    assert "done" in (tmp_path / "summary.md").read_text()
