"""`tunejob wait` and `tunejob report`, as CI uses them: the exit code is the Job's, the summary says what happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from job.errors import TREE, Fault, GateError, Interrupted, SpecError, TransientError
from job.errors.facts import failure_facts
from job.spec.strict import load_schema
from tests.elsewhere.cluster import NAME, NOT_FOUND, RUNNING, Step, condition, ended, job, line, pod, wait

RUN = "b3401d8000c1359f"
COMPLETE = condition("Complete", "CompletionsReached", "Reached expected number of succeeded pods")


def store(folder: Path) -> str:
    """A finished run's output as far as a reader of its report needs it."""
    output = folder / "output"
    (output / "report").mkdir(parents=True)
    (output / "report" / "summary.md").write_text("# my-run\n\n| Held-out | base | tuned |\n|---|---|---|\n| loss | 2.1 | 0.4 |\n")
    return str(output)


def policy(exit_code: int) -> dict[str, str]:
    message = f"Container tunejob for pod tuning/{NAME}-1 failed with exit code {exit_code} matching FailJob rule at index 1"
    return condition("Failed", "PodFailurePolicy", message)


def test_a_run_that_succeeds(tmp_path: Path) -> None:
    output = store(tmp_path)
    first = [line("start", run_id=RUN, output=output), line("train", done=1, total=2)]
    whole = [*first, "Traceback of somebody else", line("published", run_id=RUN, output=output, files=4)]
    waiting = condition("PodScheduled", "Unschedulable", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.") | {"status": "False"}
    pulling = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}
    steps = [
        Step(job(condition("Suspended", "JobSuspended"))),
        Step(job(), [pod(1, {}, waiting, phase="Pending")]),
        Step(job(), [pod(1, pulling, phase="Pending")]),
        Step(job(), [pod(1, RUNNING)], {f"{NAME}-1": first}),
        Step(job(), [pod(1, RUNNING)], {f"{NAME}-1": whole}),
        Step(job(COMPLETE), [pod(1, ended(0), phase="Succeeded")], {f"{NAME}-1": whole}),
    ]
    done = wait(tmp_path, steps)
    assert done.exit_code == 0
    assert [text for text in done.lines if text in whole] == whole, "each line once, though the log was followed three times"
    assert [event["waiting_for"] for event in done.events if event["event"] == "job"] == [
        "queued: the Job is suspended",
        "Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
        "ImagePullBackOff: Back-off pulling image",
    ]
    assert done.events[-1] | {"time": ""} == {
        "time": "", "event": "ended", "name": NAME, "exit_code": 0,
        "reason": "CompletionsReached: Reached expected number of succeeded pods",
    }  # fmt: skip
    assert "| loss | 2.1 | 0.4 |" in done.summary
    assert ": done" in done.summary
    assert "failure" not in done.summary


@pytest.mark.parametrize("kind", [kind for kind in TREE if not kind.retryable], ids=lambda kind: kind.__name__)
def test_a_failure_that_no_retry_mends(kind: type, tmp_path: Path) -> None:
    facts = failure_facts(
        kind(
            Fault("unknown | key", where="/training/learing_rate", found="<b>0.0002</b>", expected="", hint='Did you mean "learning_rate"?')
        ),
        "data",
        RUN,
    )
    jsonschema.validate(facts, load_schema("failure"))
    log = [line("start", run_id=RUN, output="s3://nowhere/run"), line("failed", **facts)]
    steps = [
        Step(job(), [pod(1, RUNNING)], {f"{NAME}-1": log}),
        Step(job(policy(kind.exit_code)), [pod(1, ended(kind.exit_code, json.dumps(facts)), phase="Failed")], {f"{NAME}-1": log}),
    ]
    done = wait(
        tmp_path,
        steps,
        AWS_ACCESS_KEY_ID="x" * 8,
        AWS_SECRET_ACCESS_KEY="y" * 8,
        AWS_ENDPOINT_URL="http://127.0.0.1:9",
        AWS_MAX_ATTEMPTS="1",
    )
    assert done.exit_code == kind.exit_code
    assert f"failed with exit code {kind.exit_code}" in done.summary
    assert f"| what | {kind.__name__}, another try meets it again |" in done.summary
    assert "| message | unknown &#124; key |" in done.summary
    assert "| found | &#60;b&#62;0.0002&#60;/b&#62; |" in done.summary
    assert '| hint | Did you mean "learning&#95;rate"? |' in done.summary
    assert "it cannot be read from here" in done.summary, "the store does not answer: the address is told instead"


def test_a_gate_that_says_no_shows_the_report_all_the_same(tmp_path: Path) -> None:
    output = store(tmp_path)
    facts = failure_facts(
        GateError(Fault("held-out loss above its gate", where="/evaluation/gates/0/at_most", found="0.4", expected="at most 0.3")),
        "train",
        RUN,
    )
    log = [line("start", run_id=RUN, output=output), line("failed", **facts)]
    done = wait(tmp_path, [Step(job(policy(14)), [pod(1, ended(14, json.dumps(facts)), phase="Failed")], {f"{NAME}-1": log})])
    assert done.exit_code == 14
    assert "| stage | train |" in done.summary
    assert "| expected | at most 0.3 |" in done.summary
    assert "| loss | 2.1 | 0.4 |" in done.summary


def test_a_failure_that_passes(tmp_path: Path) -> None:
    """20, counted by Kubernetes; the second pod finishes the run."""
    output = store(tmp_path)
    facts = failure_facts(TransientError(Fault("SlowDown")), "fetch", RUN)
    failed = [line("start", run_id=RUN, output=output), line("failed", **facts)]
    second = [line("start", run_id=RUN, output=output), line("published", run_id=RUN, output=output)]
    one = pod(1, ended(20, json.dumps(facts)), phase="Failed")
    steps = [
        Step(job(), [pod(1, RUNNING)], {f"{NAME}-1": failed}),
        Step(job(), [one], {f"{NAME}-1": failed}),
        Step(job(), [pod(2, RUNNING), one], {f"{NAME}-1": failed, f"{NAME}-2": second}),
        Step(job(COMPLETE), [pod(2, ended(0), phase="Succeeded"), one], {f"{NAME}-1": failed, f"{NAME}-2": second}),
    ]
    done = wait(tmp_path, steps)
    assert done.exit_code == 0
    assert f"| {NAME}-1 | 20 | Error |" in done.summary
    assert f"| {NAME}-2 | 0 | Completed |" in done.summary
    assert "| failure |" not in done.summary
    assert sum(command.startswith("--namespace tuning logs") for command in done.commands) == 6


def test_retries_that_are_used_up(tmp_path: Path) -> None:
    facts = json.dumps(failure_facts(TransientError("the store does not answer"), "fetch", RUN))
    pods = [pod(number, ended(20, facts), phase="Failed") for number in (1, 2, 3)]
    limit = condition("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
    done = wait(tmp_path, [Step(job(limit), pods)])
    assert done.exit_code == 20
    assert "BackoffLimitExceeded" in done.summary
    assert "may pass with another try" in done.summary
    assert done.summary.count("| 20 | Error |") == 3


def test_the_deadline(tmp_path: Path) -> None:
    """Kubernetes deletes the pod; what it said last is known from its log only if it was quick enough to say it."""
    over = condition("Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
    log = [line("start", run_id=RUN, output="s3://b/r")]
    silent = wait(tmp_path, [Step(job(), [pod(1, RUNNING)], {f"{NAME}-1": log}), Step(job(over))])
    assert silent.exit_code == Interrupted.exit_code
    assert "DeadlineExceeded: Job was active longer than specified deadline." in silent.summary
    last = failure_facts(Interrupted("stopped by a signal"), "train", RUN)
    (tmp_path / "step").unlink()
    (tmp_path / "summary.md").unlink()
    told = wait(tmp_path, [Step(job(), [pod(1, RUNNING)], {f"{NAME}-1": [*log, line("failed", **last)]}), Step(job(over))])
    assert told.exit_code == Interrupted.exit_code
    assert "| stage | train |" in told.summary


def test_an_evicted_pod_is_replaced(tmp_path: Path) -> None:
    disrupted = condition("DisruptionTarget", "TerminationByKubelet", "The node was low on resource: ephemeral-storage.")
    evicted = pod(1, {}, disrupted, phase="Failed", reason="Evicted")
    second = [line("published", run_id=RUN, output="")]
    steps = [
        Step(job(), [pod(1, RUNNING)], {f"{NAME}-1": []}),
        Step(job(), [evicted, pod(2, RUNNING)], {f"{NAME}-2": second}),
        Step(job(COMPLETE), [evicted, pod(2, ended(0), phase="Succeeded")], {f"{NAME}-2": second}),
    ]
    done = wait(tmp_path, steps)
    assert done.exit_code == 0
    assert f"| {NAME}-1 | – | TerminationByKubelet: The node was low on resource: ephemeral-storage. |" in done.summary


def test_a_pod_killed_for_want_of_memory(tmp_path: Path) -> None:
    limit = condition("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
    done = wait(tmp_path, [Step(job(limit), [pod(1, ended(137, reason="OOMKilled"), phase="Failed")])])
    assert done.exit_code == 137
    assert "| what | killed by SIGKILL, mostly for want of memory |" in done.summary


@pytest.mark.parametrize(("last", "exit_code"), [("published", 0), ("train", 30)])
def test_a_job_that_is_deleted(last: str, exit_code: int, tmp_path: Path) -> None:
    log = [line("start", run_id=RUN, output=""), line(last, run_id=RUN)]
    done = wait(tmp_path, [Step(job(), [pod(1, RUNNING)], {f"{NAME}-1": log}), Step(NOT_FOUND)])
    assert done.exit_code == exit_code
    assert "the Job was deleted" in done.summary


def test_a_job_that_is_deleted_before_it_has_a_pod(tmp_path: Path) -> None:
    done = wait(tmp_path, [Step(job()), Step(NOT_FOUND)])
    assert done.exit_code == 30
    assert "before it had finished" in done.summary


def test_a_log_that_cannot_be_read_is_told_once_and_fails_nothing(tmp_path: Path) -> None:
    refusal = 'Error from server (Forbidden): pods "x" is forbidden: User "ci" cannot get resource "pods/log"'
    cut = "error: net/http: request canceled (Client.Timeout or context cancellation while reading body)"
    running = [pod(1, RUNNING)]
    steps = [Step(job(), running, {}, text) for text in (refusal, refusal, cut)]
    done = wait(tmp_path, [*steps, Step(job(COMPLETE), [pod(1, ended(0), phase="Succeeded")])])
    assert done.exit_code == 0
    assert [event["reason"] for event in done.events if event["event"] == "job"] == [refusal]


def test_a_job_that_never_was(tmp_path: Path) -> None:
    done = wait(tmp_path, [Step(NOT_FOUND)])
    assert done.exit_code == 11
    assert done.events[-1]["message"] == "there is no such Job"


def test_a_cluster_that_refuses(tmp_path: Path) -> None:
    refusal = 'Error from server (Forbidden): jobs.batch is forbidden: User "ci" cannot get resource "jobs"'
    done = wait(tmp_path, [Step(refusal)])
    assert done.exit_code == 11
    assert "Forbidden" in done.events[-1]["found"]
    assert len(done.commands) == 1


def test_a_cluster_that_is_away_for_a_while(tmp_path: Path) -> None:
    lost = "Unable to connect to the server: net/http: TLS handshake timeout"
    back = Step(job(COMPLETE), [pod(1, ended(0), phase="Succeeded")])
    assert wait(tmp_path, [*[Step(lost)] * 11, back]).exit_code == 0
    (tmp_path / "step").unlink()
    gone = wait(tmp_path, [Step(lost)])
    assert gone.exit_code == 20
    assert gone.events[-1]["message"] == "the cluster did not answer 12 times"


def test_kubectl_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "job", "wait", NAME]
    done = subprocess.run(command, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 11
    assert "kubectl is not installed" in done.stdout


def from_log(text: str, folder: Path) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "job", "wait", "-", "--summary", str(folder / "summary.md")]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, (folder / "summary.md").read_text()


def test_the_log_of_a_rented_machine(tmp_path: Path) -> None:
    """SkyPilot puts a coloured name before each line and leaves with 100 whatever the job's own code was."""
    facts = failure_facts(SpecError(Fault("unknown key", where="/model/sorce")), "validate", "")
    lines = [f"\x1b[36m(tunejob, pid=2345)\x1b[0m {text}\x1b[0m" for text in ("Setting up", line("failed", **facts))]
    code, said, summary = from_log("\n".join([*lines, "Managed job finished: 1 (status: FAILED)."]) + "\n", tmp_path)
    assert code == 10
    assert lines[1] in said
    assert "| pointer | /model/sorce |" in summary


def test_a_log_whose_last_try_succeeds(tmp_path: Path) -> None:
    facts = failure_facts(TransientError("SlowDown"), "fetch", RUN)
    output = store(tmp_path)
    text = [line("failed", **facts), line("start", run_id=RUN, output=output), line("published", run_id=RUN, output=output)]
    code, _, summary = from_log("\n".join(text), tmp_path)
    assert code == 0
    assert "| loss | 2.1 | 0.4 |" in summary


@pytest.mark.parametrize(
    "text", ["", "{", '{"event": "failed"}', '{"event": "failed", "exit_code": "0"}', line("start", run_id=RUN), "[" * 9999 + "{"]
)
def test_a_log_without_an_end_is_no_success(text: str, tmp_path: Path) -> None:
    assert from_log(text, tmp_path)[0] == 1


def test_the_report_of_a_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "job", "report"]
    done = subprocess.run([*command, store(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("# my-run\n")
    missing = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert missing.returncode == 11
