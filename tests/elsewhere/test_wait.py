"""`tunejob wait` and `tunejob report`, as CI uses them: the exit code is the Job's, the summary says what happened."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import jsonschema
import pytest

from job.arguments import parser
from job.commands import command_wait
from job.errors import TREE, Fault, GateError, Interrupted, PolicyError, SpecError, TransientError
from job.errors.facts import failure_facts
from job.follow.outcome import outcome_of_log
from job.follow.pods import waiting_for
from job.host.log import Log
from job.spec.strict import load_schema
from tests.elsewhere.cluster import (
    NAME,
    NOT_FOUND,
    RUNNING,
    Step,
    command,
    condition,
    ended,
    event,
    job,
    line,
    pod,
    replay,
    wait,
)

RUN = "b3401d8000c1359f"
COMPLETE = condition("Complete", "CompletionsReached", "Reached expected number of succeeded pods")


def store(folder: Path) -> str:
    """A finished run's output as far as a reader of its report needs it."""
    output = folder / "output"
    (output / "report").mkdir(parents=True)
    (output / "report" / "summary.md").write_text(
        "# my-run\n\n| Held-out | base | tuned |\n|---|---|---|\n| loss | 2.1 | 0.4 |\n"
    )
    return str(output)


def policy(exit_code: int) -> dict[str, str]:
    message = (
        f"Container tunejob for pod tuning/{NAME}-1 failed with exit code {exit_code} matching FailJob rule at index 1"
    )
    return condition("Failed", "PodFailurePolicy", message)


def machine(number: int, index: int, *more: Any, **named: Any) -> Any:
    """A pod of a Job on several machines, the first of which runs it."""
    found = pod(number, *more, **named)
    found["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": str(index)}
    return found


def test_of_several_machines_the_first_is_followed(tmp_path: Path) -> None:
    """And where another one's end was the end of the Job, its code is the Job's: the first was only stopped."""
    first, other = [line("start", run_id=RUN, output="s3://o")], [line("start", machine=1)]
    steps = [
        Step(job(), [machine(1, 0, RUNNING), machine(2, 1, RUNNING)], {f"{NAME}-1": first, f"{NAME}-2": other}),
        Step(job(policy(13)), [machine(1, 0, ended(30), phase="Failed"), machine(2, 1, ended(13), phase="Failed")],
             {f"{NAME}-1": first, f"{NAME}-2": other}),
    ]  # fmt: skip
    done = wait(tmp_path, steps)
    assert done.exit_code == 13
    assert first[0] in done.lines
    assert other[0] not in done.lines


def test_a_run_that_succeeds(tmp_path: Path) -> None:
    output = store(tmp_path)
    first = [line("start", run_id=RUN, output=output), line("train", done=1, total=2)]
    whole = [*first, "Traceback of somebody else", line("published", run_id=RUN, output=output, files=4)]
    waiting = condition("PodScheduled", "Unschedulable", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.") | {
        "status": "False"
    }
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
    assert [text for text in done.lines if text in whole] == whole, (
        "each line once, though the log was followed three times"
    )
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
            Fault(
                "unknown | key",
                where="/training/learing_rate",
                found="<b>0.0002</b>",
                expected="",
                hint='Did you mean "learning_rate"?',
            )
        ),
        "data",
        RUN,
    )
    jsonschema.validate(facts, load_schema("failure"))
    log = [line("start", run_id=RUN, output="s3://nowhere/run"), line("failed", **facts)]
    steps = [
        Step(job(), [pod(1, RUNNING)], {f"{NAME}-1": log}),
        Step(
            job(policy(kind.exit_code)),
            [pod(1, ended(kind.exit_code, json.dumps(facts)), phase="Failed")],
            {f"{NAME}-1": log},
        ),
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
    assert "it cannot be read from here" in done.summary, "the store does not answer: the address is given instead"


def test_a_gate_that_says_no_shows_the_report_all_the_same(tmp_path: Path) -> None:
    output = store(tmp_path)
    facts = failure_facts(
        GateError(
            Fault(
                "held-out loss above its gate", where="/evaluation/gates/0/at_most", found="0.4", expected="at most 0.3"
            )
        ),
        "train",
        RUN,
    )
    log = [line("start", run_id=RUN, output=output), line("failed", **facts)]
    done = wait(
        tmp_path, [Step(job(policy(14)), [pod(1, ended(14, json.dumps(facts)), phase="Failed")], {f"{NAME}-1": log})]
    )
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
    (tmp_path / "again").mkdir()
    again = wait(
        tmp_path / "again",
        [Step(job(), [pod(1, RUNNING)], {f"{NAME}-1": [*log, line("failed", **last)]}), Step(job(over))],
    )
    assert again.exit_code == Interrupted.exit_code
    assert "| stage | train |" in again.summary


def test_an_evicted_pod_is_replaced(tmp_path: Path) -> None:
    disrupted = condition(
        "DisruptionTarget", "TerminationByKubelet", "The node was low on resource: ephemeral-storage."
    )
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
    assert "| what | killed by SIGKILL, mostly for lack of memory |" in done.summary


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


def test_a_log_that_cannot_be_read_is_reported_once_and_fails_nothing(tmp_path: Path) -> None:
    noise = "E1128 10:00:00.000000 7 memcache.go:265] couldn't get current server API group list\n"
    refusal = 'Error from server (Forbidden): pods "x" is forbidden: User "ci" cannot get resource "pods/log"'
    steps = [Step(job(), [pod(1, RUNNING)], {}, noise + refusal)] * 5
    done = wait(tmp_path, [*steps, Step(job(COMPLETE), [pod(1, ended(0), phase="Succeeded")], {}, noise + refusal)])
    assert done.exit_code == 0
    assert [event["reason"] for event in done.events if event["event"] == "job"] == [refusal]


@pytest.mark.parametrize(
    "cut", ["context deadline exceeded", "Client.Timeout or context cancellation while reading body"]
)
def test_a_log_whose_connection_was_cut_is_read_on(cut: str, tmp_path: Path) -> None:
    """As kubectl says it when the time for one request is over."""
    log = [line("published", run_id=RUN, output="")]
    steps = [Step(job(), [pod(1, RUNNING)], {}, f"error: {cut}")] * 3
    done = wait(tmp_path, [*steps, Step(job(COMPLETE), [pod(1, ended(0), phase="Succeeded")], {f"{NAME}-1": log})])
    assert [event["event"] for event in done.events] == ["published", "ended"]


def test_a_job_that_never_was(tmp_path: Path) -> None:
    done = wait(tmp_path, [Step(NOT_FOUND)])
    assert done.exit_code == 11
    assert done.events[-1]["message"] == "there is no such job"


FORBIDDEN = 'Error from server (Forbidden): jobs.batch is forbidden: User "ci" cannot get resource "jobs"'
LOGGED_OUT = "error: You must be logged in to the server (Unauthorized)"


@pytest.mark.parametrize("refusal", [FORBIDDEN, LOGGED_OUT])
def test_a_cluster_that_refuses(refusal: str, tmp_path: Path) -> None:
    done = wait(tmp_path, [Step(refusal)])
    assert done.exit_code == 11
    assert done.events[-1]["message"] == f"the cluster refuses: {refusal}"
    assert len(done.commands) == 1


@pytest.mark.parametrize("refusal", [FORBIDDEN, LOGGED_OUT])
def test_a_refusal_after_an_answer_is_that_of_a_starting_api_server(refusal: str, tmp_path: Path) -> None:
    back = Step(job(COMPLETE), [pod(1, ended(0), phase="Succeeded")])
    assert wait(tmp_path, [Step(job()), *[Step(refusal)] * 8, back], patience="60").exit_code == 0
    (tmp_path / "stays").mkdir()
    stays = wait(
        tmp_path / "stays", [Step(job(), [pod(1, RUNNING)], {f"{NAME}-1": [line("start", run_id=RUN)]}), Step(refusal)]
    )
    assert stays.exit_code == 11
    assert "the cluster refused for 0.3 s" in stays.events[-1]["reason"]
    assert "the waiting ended with exit code 11" in stays.summary, (
        "the Job was seen: its summary is written all the same"
    )


def test_a_cluster_that_is_away_for_a_while(tmp_path: Path) -> None:
    noise = "E1128 10:00:00.000000 7 memcache.go:265] couldn't get current server API group list\n" * 5
    lost = "The connection to the server 10.0.0.1:6443 was refused - did you specify the right host or port?"
    back = Step(job(COMPLETE), [pod(1, ended(0), phase="Succeeded")])
    assert wait(tmp_path, [*[Step(noise + lost)] * 11, back], patience="60").exit_code == 0
    (tmp_path / "gone").mkdir()
    gone = wait(tmp_path / "gone", [Step(noise + lost)])
    assert gone.exit_code == 20
    assert gone.events[-1]["message"] == f"the cluster did not answer for 0.3 s: {lost}"


# ------------------------------------------------------------------------------------------ why nothing runs


QUOTA = 'Error creating: pods "x" is forbidden: exceeded quota: gpus, requested: nvidia.com/gpu=1, used: 4, limited: 4'


def test_pods_that_cannot_be_made_are_reported_with_the_reason(tmp_path: Path) -> None:
    """A quota, a LimitRange, PodSecurity, no ServiceAccount: only events say so."""
    steps = [
        Step(job(), events=[event("older", at="2026-11-21T10:00:01Z"), event(QUOTA)]),
        Step(job(), events="Forbidden"),
    ]
    done = wait(tmp_path, [*steps, Step(job(COMPLETE), [pod(1, ended(0), phase="Succeeded")])])
    assert (done.exit_code, done.waiting_for()) == (0, [f"FailedCreate: {QUOTA}"])


def test_a_set_whose_job_cannot_be_made_says_so() -> None:
    made = event("quota for jobs", reason="JobCreationFailed")
    assert (
        waiting_for({"kind": "JobSet"}, [], [event("else", reason="Other"), made])
        == "JobCreationFailed: quota for jobs"
    )


def test_the_pause_after_a_failed_pod_is_reported(tmp_path: Path) -> None:
    failed = pod(1, ended(20), phase="Failed")
    old = event(QUOTA, at="2026-11-21T09:59:00Z")  # of before that pod was made
    back = [failed, pod(2, ended(0), phase="Succeeded")]
    done = wait(tmp_path, [Step(job(), [failed], events=[old]), Step(job(), [failed]), Step(job(COMPLETE), back)])
    (reason,) = done.waiting_for()
    assert reason.startswith("a pause before the next try")


def test_a_node_that_is_gone_is_reported_and_holds_up_nothing(tmp_path: Path) -> None:
    """Its log hangs; the next pod's is passed on beside it."""
    lost = (condition("ContainersReady"), condition("Ready") | {"status": "False"})
    dead = pod(1, RUNNING, *lost, node="gpu-7")
    one, two = [line("start", run_id=RUN)], [line("published", run_id=RUN, output="")]
    hangs = (f"{NAME}-1",)
    steps = [
        Step(job(), [pod(1, RUNNING, condition("ContainersReady"), condition("Ready"))], {f"{NAME}-1": one}),
        *[Step(job(), [dead], hangs=hangs)] * 2,
        *[Step(job(), [dead, pod(2, RUNNING)], {f"{NAME}-2": two}, hangs=hangs)] * 2,
        Step(job(COMPLETE), [dead, pod(2, ended(0), phase="Succeeded")], {f"{NAME}-2": two}, hangs=hangs),
    ]
    began = time.monotonic()
    done = wait(tmp_path, steps)
    assert time.monotonic() - began < 20
    assert done.exit_code == 0
    assert two[0] in done.lines
    assert [reason.partition(";")[0] for reason in done.waiting_for()] == ["node gpu-7 does not answer"]


def test_nothing_is_waited_for_while_a_pod_is_at_work() -> None:
    lost = (condition("ContainersReady"), condition("Ready") | {"status": "False"})
    dead, works = pod(1, RUNNING, *lost, node="gpu-7"), pod(2, RUNNING, *(c | {"status": "True"} for c in lost))
    assert waiting_for(job(), [dead, works], []) == ""
    assert waiting_for(job(), [dead], [])


def test_a_pod_that_its_node_never_starts_is_reported(tmp_path: Path) -> None:
    bound = pod(1, {}, phase="Pending", node="gpu-7")
    done = wait(tmp_path, [Step(job(), [bound]), Step(job(COMPLETE), [pod(1, ended(0), phase="Succeeded")])])
    assert done.waiting_for() == ["node gpu-7 has not started the pod yet"]


# -------------------------------------------------------------------------------------------- sets of Jobs


@pytest.mark.parametrize(("kind", "member", "container"), [
    ("jobset.jobset.x-k8s.io", "tune-0", "tunejob"),
    ("trainjob.trainer.kubeflow.org", "node-0", "node"), ("trainjob", "node-0", "node"),
])  # fmt: skip
def test_the_job_of_a_set_is_found_and_followed(kind: str, member: str, container: str, tmp_path: Path) -> None:
    inner = f"{NAME}-{member}"
    facts = failure_facts(PolicyError(Fault("pickles")), "fetch", RUN)
    log = [line("start", run_id=RUN), line("failed", **facts)]
    over = condition("Failed", "PodFailurePolicy", "failed with exit code 12 matching FailJob rule")
    running, dead = (
        pod(1, state, phase=phase, job=inner, name=container)
        for state, phase in ((RUNNING, "Running"), (ended(12, json.dumps(facts)), "Failed"))
    )
    steps = [
        Step({}, owner={"metadata": {"name": inner}, "status": {"conditions": [condition("Suspended")]}}),
        Step(job(name=inner, container=container), [running], {f"{inner}-1": log}),
        Step(job(over, name=inner, container=container), [dead], {f"{inner}-1": log}),
    ]
    done = wait(tmp_path, steps, f"{kind}/{NAME}", job=inner, container=container)
    assert done.exit_code == 12
    assert done.waiting_for() == ["queued: the Job is suspended"]
    assert [text for text in done.lines if text in log] == log
    assert "| message | pickles |" in done.summary


def test_a_set_that_is_not_there(tmp_path: Path) -> None:
    done = wait(tmp_path, [Step({}, owner=NOT_FOUND)], f"trainjob/{NAME}", job=f"{NAME}-node-0", container="node")
    assert done.exit_code == 11
    assert done.events[-1]["message"] == "there is no such trainjob"


@pytest.mark.parametrize("target", ["configmap/x", "deployment.apps/x", "job.batch/", "trainjob/"])
def test_what_cannot_be_waited_for_is_refused(target: str, tmp_path: Path) -> None:
    done = wait(tmp_path, [Step(job())], target)
    assert (done.exit_code, done.commands) == (10, [])
    assert "trainjob/NAME" in done.events[-1]["expected"]


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "soon"])
def test_a_pause_that_is_none_is_refused(seconds: str) -> None:
    for option in ("--poll-seconds", "--patience-seconds"):
        with pytest.raises(SpecError, match=option):
            parser().parse_args(["wait", "x", option, seconds])


# ------------------------------------------------------------------------------------------------- its end


def test_a_deadline_after_a_failure_that_passes_is_a_deadline(tmp_path: Path) -> None:
    over = condition("Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
    assert wait(tmp_path, [Step(job(over), [pod(1, ended(20), phase="Failed")])]).exit_code == Interrupted.exit_code


def test_the_code_of_a_pod_that_is_gone_is_in_the_words_of_the_policy(tmp_path: Path) -> None:
    assert wait(tmp_path, [Step(job(policy(13)))]).exit_code == 13


def test_a_summary_that_cannot_be_written_does_not_change_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "summary.md").mkdir()
    (tmp_path / "cluster").mkdir()
    replay(tmp_path / "cluster", [Step(job(policy(14)))])
    with mock.patch.dict(os.environ, PATH=f"{tmp_path / 'cluster'}:{os.environ['PATH']}"):
        log = Log(io.StringIO(), json_lines=True)
        assert command_wait(parser().parse_args(command(tmp_path)), log) == 14


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_leaves_a_summary_and_no_child(number: signal.Signals, tmp_path: Path) -> None:
    replay(tmp_path, [Step(job(), [pod(1, RUNNING)], hangs=(f"{NAME}-1",))])
    variables = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    line_of = [sys.executable, "-m", "job", *command(tmp_path)]
    process = subprocess.Popen(line_of, env=variables, stdout=subprocess.PIPE, text=True, start_new_session=True)
    while " logs " not in ((tmp_path / "commands").read_text() if (tmp_path / "commands").exists() else ""):
        time.sleep(0.05)
    process.send_signal(number)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == Interrupted.exit_code
    last = json.loads(said.splitlines()[-1])
    assert (last["event"], last["reason"]) == ("ended", f"the Job may go on; stopped by {number.name}")
    assert "the waiting ended with exit code 30" in (tmp_path / "summary.md").read_text()
    until = time.monotonic() + 5  # the replaying shell's own children may need a moment
    while (left := living(process.pid)) and time.monotonic() < until:
        time.sleep(0.1)
    assert left == []


def living(group: int) -> list[str]:
    """Processes of that group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, _, rest = stat.read_text().rpartition(")")
            state, _, its_group, *_ = rest.split()
            found += [name] if state != "Z" and int(its_group) == group else []
    return found


def test_kubectl_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "job", "wait", NAME]
    done = subprocess.run(
        command, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 11
    assert "kubectl is not installed" in done.stdout


def from_log(text: str, folder: Path) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "job", "wait", "-", "--summary", str(folder / "summary.md")]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, (folder / "summary.md").read_text()


def test_the_log_of_a_rented_machine(tmp_path: Path) -> None:
    """SkyPilot puts a coloured name before each line and exits with 100 whatever the job's own code was."""
    facts = failure_facts(SpecError(Fault("unknown key", where="/model/sorce")), "validate", "")
    lines = [f"\x1b[36m(tunejob, pid=2345)\x1b[0m {text}\x1b[0m" for text in ("Setting up", line("failed", **facts))]
    code, said, summary = from_log("\n".join([*lines, "Managed job finished: 1 (status: FAILED)."]) + "\n", tmp_path)
    assert code == 10
    assert "(tunejob, pid=2345) " + line("failed", **facts) in said, "colours are for the terminal that asked for them"
    assert "| pointer | /model/sorce |" in summary


def test_a_log_whose_last_try_succeeds(tmp_path: Path) -> None:
    facts = failure_facts(TransientError("SlowDown"), "fetch", RUN)
    output = store(tmp_path)
    text = [
        line("failed", **facts),
        line("start", run_id=RUN, output=output),
        line("published", run_id=RUN, output=output),
    ]
    code, _, summary = from_log("\n".join(text), tmp_path)
    assert code == 0
    assert "| loss | 2.1 | 0.4 |" in summary


NO_END = [
    "", "{", '{"event": "failed"}', '{"event": "failed", "exit_code": "0"}',
    line("start", run_id=RUN), "[" * 9999 + "{",
    '{"exit_code": 0, "event": "failed"}', '{"event": "failed", "exit_code": true}',
    '{"event": "failed", "exit_code": -1}', line("published") + '\n{"exit_code": 0, "event": "failed"}',
    '{"event": "start", "output": 5, "run_id": ["x"]}',
    '{"event": "done"}', line("done"), line("done", run_id="x", output=""),
    json.dumps({"event": "done", "run_id": RUN, "output": ""}),
    line("published", run_id=RUN, output=5),
    line("start", run_id=RUN) + "\n" + line("published", run_id="1" * 16, output=""),
    line("start", run_id=RUN) + "\n" + line("start", run_id="1" * 16) + "\n" + line("published",
                                                                                    run_id="1" * 16, output=""),
    line("start", run_id=RUN) + "\n" + line("published", run_id=RUN, output="") + "\n" + line("train", done=1, total=2),
]  # fmt: skip


@pytest.mark.parametrize("text", NO_END)
def test_a_log_without_an_end_is_not_a_success(text: str) -> None:
    assert outcome_of_log(text.splitlines(), "log", Log(io.StringIO())).exit_code == 1


DONE = line("published", run_id=RUN, output="")
FAILED = line("failed", **failure_facts(GateError("why"), "evaluate", RUN))


@pytest.mark.parametrize(
    ("lines", "exit_code"),
    [
        ([DONE], 0),
        (
            [
                line("start", run_id=RUN, output=""),
                DONE,
                '{"event": "failed", "exit_code": 14}',
                line("lease", note="it expires"),
            ],
            0,
        ),
        (
            [
                line("start", run_id=RUN, output=""),
                FAILED,
                '{"event": "done"}',
                line("done", run_id="1" * 16, output=[]),
            ],
            14,
        ),
        ([line("start", run_id=RUN, output=""), DONE.replace(RUN, "2" * 16), FAILED], 14),
        (
            [
                DONE,
                line("start", run_id="1" * 16, output=""),
                line("failed", **failure_facts(GateError("why"), "data", "1" * 16)),
            ],
            14,
        ),
        ([FAILED.replace('"exit_code": 14', '"exit_code": 20'), FAILED.replace("GateError", "InputError")], 1),
        ([DONE, line("failed", **failure_facts(SpecError("why"), "validate"))], 10),
    ],
)
def test_only_the_runs_own_last_word_counts(lines: list[str], exit_code: int) -> None:
    assert outcome_of_log(lines, "log", Log(io.StringIO())).exit_code == exit_code


BEFORE = [
    "", " ", "\ufeff", "(tunejob, pid=2345) ", "\x1b[36m(tunejob, pid=2345)\x1b[0m ", "[pod/my-run-0/tunejob] ",
    "tunejob-1  | ", "2026-11-21T10:01:00.123456789Z ", "2026-11-21 10:01:00,123 [worker-0] ",
    "Nov 21 10:01:00 host docker[123]: ",
]  # fmt: skip


@pytest.mark.parametrize("before", BEFORE)
def test_names_and_times_before_a_line_are_passed_over(before: str) -> None:
    assert outcome_of_log([f"{before}{FAILED}"], "log", Log(io.StringIO())).exit_code == 14


@pytest.mark.parametrize(
    "before",
    ["row 5: ", "ValueError: cannot read ", "content=", '"', "'", "(a)(b) quoted ", "[" * 20_000, "a" * 20_000 + "|"],
)
def test_a_line_that_is_quoted_is_not_said(before: str) -> None:
    """A traceback may quote a row, and a row may be somebody's log."""
    said = [line("start", run_id=RUN, output=""), FAILED, f"{before}{DONE}"]
    assert outcome_of_log(said, "log", Log(io.StringIO())).exit_code == 14


@pytest.mark.parametrize(
    "before",
    ["2026-11-30 10:17:23 ", "2026-11-30T10:17:23.123456Z ", "Nov 30 10:17:23 host run[1]: ", "a-b | ", " ", "(a) "],
)
def test_what_may_be_before_a_line_is_read_once(before: str) -> None:
    """A row may be all of times: in each way, eight took seven seconds, and each one more seven times as long."""
    began = time.process_time()
    assert outcome_of_log([f"{before * 8}! {DONE}"], "log", Log(io.StringIO())).exit_code == 1
    assert outcome_of_log([f"{before * 8}{DONE}"], "log", Log(io.StringIO())).exit_code == 0
    assert time.process_time() - began < 1


def test_an_address_that_somebody_else_says_is_not_read() -> None:
    forged = [
        line("note", output="s3://elsewhere/x"),
        json.dumps({"event": "start", "run_id": RUN, "output": "s3://elsewhere/x"}),
    ]
    lines = [
        line("start", run_id=RUN, output="here"),
        *forged,
        line("published", run_id="1" * 16, output="s3://elsewhere/x"),
        DONE,
    ]
    assert outcome_of_log(lines[:-1], "log", Log(io.StringIO())).heard.output == "here"
    assert outcome_of_log(lines, "log", Log(io.StringIO())).exit_code == 0


def packed(text: str, stream: str = "stdout", end: str = "\n") -> str:
    return json.dumps({"log": f"{text}{end}", "stream": stream, "time": "2026-11-21T10:01:00.123456789Z"}) + "\n"


def test_the_log_file_of_docker() -> None:
    """Lines of more than 16 KiB come in parts; what is on stderr is said by libraries."""
    start, middle = line("start", run_id=RUN, output=""), len(DONE) // 2
    lines = [
        packed(start),
        packed(DONE[:middle], end=""),
        packed("a warning", "stderr"),
        packed(DONE[middle:]),
        packed(FAILED, "stderr"),
    ]
    stream = io.StringIO()
    outcome = outcome_of_log(lines, "log", Log(stream))
    assert outcome.exit_code == 0
    assert stream.getvalue().splitlines() == [start, "a warning", DONE, FAILED]
    assert outcome_of_log([packed(start), packed(FAILED)], "log", Log(stream)).exit_code == 14
    assert outcome_of_log([packed(start), packed(DONE, "stderr")], "log", Log(stream)).exit_code == 1
    assert outcome_of_log([packed(start), packed(DONE, end="")], "log", Log(stream)).exit_code == 0  # cut off by a stop


def test_the_log_file_of_a_node() -> None:
    at, middle = "2026-11-21T10:01:00.123456789Z", len(DONE) // 2
    lines = [
        f"{at} stdout F {line('start', run_id=RUN)}",
        f"{at} stdout P {DONE[:middle]}",
        f"{at} stdout F {DONE[middle:]}",
    ]
    assert outcome_of_log([*lines, f"{at} stderr F {FAILED}"], "log", Log(io.StringIO())).exit_code == 0


@pytest.mark.parametrize(
    "text", ['{"log": ["x"]}', '{"log": "x", "stream": "other"}', '{"log":', '{"log": "x"}', '{"log":' + "[" * 9999]
)
def test_what_only_looks_like_dockers_is_passed_on(text: str) -> None:
    stream = io.StringIO()
    assert outcome_of_log([text, DONE], "log", Log(stream)).exit_code == 0
    assert stream.getvalue().splitlines() == [text, DONE]


def test_the_report_of_a_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "job", "report"]
    output = store(tmp_path)
    with Path(output, "report", "summary.md").open("a") as report:
        report.write(
            "an answer: \x1b]52;c;cm0gLXJmIC8=\x07 \x1b[2J \x9b2J "
            "\u202eevil\u2066 \u200b\U000e0041 שלום می\u200cخواهم é\n"
        )
    done = subprocess.run([*command, output], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("# my-run\n")
    assert not set(done.stdout) & {"\x1b", "\x07", "\x9b", "\u202e", "\u2066", "\u200b", "\U000e0041"}
    assert "\\u202eevil\\u2066 \\u200b\\udb40\\udc41 שלום می\u200cخواهم" in done.stdout
    assert done.stdout.rstrip().endswith("é")
    missing = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert missing.returncode == 11
