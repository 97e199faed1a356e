"""Two and three processes train as one does (CPU, gloo): same losses, stops, resumes; one that dies ends them all."""

from __future__ import annotations

import json
import signal
import socket
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from job.errors import InputError
from job.training.machines import Machine, this_machine
from job.training.ranks import RankPlace
from job.training.team import environment_of
from tests.flow.running import DEMO, Result, Running, document, run_tiny, tiny, valid_stats, write_spec
from tests.flow.test_out_of_memory import run_short
from tests.forking import ROOT, environment, fork
from tests.specs import LEFT_OUT

ASKED: dict[str, Any] = {
    "prompts": ["Turn on the lamp."], "max_new_tokens": 4, "exact_match_rows": 8,
    "metrics": ["exact_match", "token_f1"],
    "forgetting": {"sources": [{"source": str(DEMO / "held_out.jsonl"), "format": "messages", "limit": 12}]},
}  # fmt: skip
# 32 rows in steps of 6, cut into 3 passes: two processes never have the same number, an epoch's last step has but one
CHANGES: dict[str, Any] = {
    "/training/max_steps": 14, "/training/batch_size": 2,
    "/training/gradient_accumulation_steps": 3, "/training/eval_steps": 7,
    "/training/keep": "best", "/output/checkpoints": {"every_minutes": 600},
    "/evaluation": ASKED,
}  # fmt: skip
SLOW = {"/evaluation": ASKED | {"max_new_tokens": 150}}  # not measured in the time of a signal
LIMIT, GRADIENT_LIMIT = 1e-5, 1e-3  # of a loss, and of a gradient's length: parts of them


def together(count: int, **more: Any) -> dict[str, Any]:
    return CHANGES | {"/resources": {"gpus": count}} | more


def figures(output: Path) -> list[tuple[float, ...]]:
    """Of each step: its number, its loss or the held-out one, the gradient, the learning rate."""
    lines = map(json.loads, (output / "report" / "losses.jsonl").read_text().splitlines())
    return [
        (
            line["step"],
            line.get("loss", line.get("held_out_loss")),
            line.get("grad_norm", 0.0),
            line.get("learning_rate", 0.0),
        )
        for line in lines
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one process."""
    folder = tmp_path_factory.mktemp("alone")
    result = run_tiny(folder, CHANGES)
    assert result.exit_code == 0, result.stdout[-2000:]
    return folder / "out"


def same(output: Path, wanted: Path) -> None:
    """Losses of the training, and what both models know: figures and answers."""
    learned_the_same(output, wanted)
    ours, theirs = (document(folder / "stats.json")["evaluation"] for folder in (output, wanted))
    for model in ("base", "trained"):
        assert ours[model] == pytest.approx(theirs[model], rel=1e-4), model
        assert {"held_out_loss", "general_loss", "token_f1"} < set(ours[model])
    answers = [json.loads((folder / "report" / "answers.json").read_text()) for folder in (output, wanted)]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 9


def learned_the_same(output: Path, wanted: Path) -> None:
    found, known = figures(output), figures(wanted)
    assert len(found) == len(known) == CHANGES["/training/max_steps"] + 2
    for ours, theirs in zip(found, known, strict=True):
        assert ours[:2] == pytest.approx(theirs[:2], rel=LIMIT), (ours, theirs)
        assert ours[2:] == pytest.approx(theirs[2:], rel=GRADIENT_LIMIT), (ours, theirs)
    ours, theirs = (document(folder / "stats.json") for folder in (output, wanted))
    for name in ("steps", "tokens", "best_step", "trainable_parameters"):
        assert ours["training"][name] == theirs["training"][name], name


def running(folder: Path, count: int, **more: Any) -> Running:
    spec = write_spec(folder / "spec.json", tiny(folder / "out", together(count, **more)))
    return Running(("run", spec), folder / "scratch")


def members(command: Running) -> list[psutil.Process]:
    """The processes that train, in the order of their ranks."""
    children = psutil.Process(command.pid).children()
    return sorted((child for child in children if child.cwd().endswith("/together")), key=lambda child: child.pid)


def test_a_stop_and_another_number_of_processes(alone: Path, tmp_path: Path) -> None:
    """Two are stopped in the middle, the step is stored, three go on: every figure is that of one process."""
    two = running(tmp_path, 2)
    two.wait_until(lambda r: r.says('"step": 4,'))
    started = members(two)
    assert len(started) == 2
    two.signal(signal.SIGTERM)
    result = two.finish(60)
    assert result.exit_code == 30, result.stdout[-2000:]
    (stored,) = result.named("checkpoint")
    assert 4 <= stored["step"] < CHANGES["/training/max_steps"]
    assert not any(process.is_running() for process in started)
    three = run_tiny(tmp_path, together(3))
    assert three.exit_code == 0, three.stdout[-2000:]
    (resumed,) = three.named("resume")
    assert resumed["step"] == stored["step"]
    training = valid_stats(tmp_path / "out" / "stats.json")["training"]
    assert (training["processes"], training["batch_size"], training["gradient_accumulation_steps"]) == (3, 2, 3)
    assert training["resumed_from_step"] == stored["step"]
    same(tmp_path / "out", alone)
    heard = [(event["stage"], event["prompt"]) for event in three.named("answer")]
    assert len(heard) == len(set(heard)) == 6, "three answers of each model, once"
    phases = {phase["name"]: phase for phase in document(tmp_path / "out" / "stats.json")["phases"]}
    assert [child["what"] for child in phases["evaluate"]["children"][:3]] == [
        f"process {number} of 3 of the training" for number in (1, 2, 3)
    ]


def test_a_stop_before_they_have_met_is_heard_by_all(tmp_path: Path) -> None:
    """One waits for another in native code, where no signal is heard: the run ends it, and says goodbye itself."""
    command = running(tmp_path, 2)
    command.wait_until(lambda r: r.says('"event": "load"'))
    started = members(command)
    assert len(started) == 2
    command.wait_until(lambda r: r.says('"event": "baseline"'))
    started[1].suspend()
    time.sleep(1.0)
    command.signal(signal.SIGTERM)
    begun = time.monotonic()
    result = command.finish(60)
    assert time.monotonic() - begun < 6, "not by the end of the stop's budget"
    assert (result.exit_code, result.failure["message"].partition(".")[0]) == (30, "stopped by SIGTERM")
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in started)


def without_the_second(command: Running, doing: str) -> Result:
    """Of a run of two processes, once the second was killed while `doing`: the first is gone, and soon."""
    first, second = members(command)
    second.kill()
    begun = time.monotonic()
    result = command.finish(60)
    assert time.monotonic() - begun < 20
    assert result.exit_code == 13, result.stdout[-2000:]
    assert f"process 2 of 2, {doing}: its process was killed" in result.failure["message"]
    assert not first.is_running()
    return result


def test_a_process_that_is_killed_ends_the_others(tmp_path: Path) -> None:
    """Never a hang: the run says which one it was, as for any process that the kernel kills, and leaves no process."""
    command = running(tmp_path, 2, **{"/output/checkpoints": {"every_steps": 2}})
    command.wait_until(lambda r: r.says('"checkpoint", "step": 2'))
    result = without_the_second(command, "training")
    reasons = {event["rank"]: event["error"] for event in result.named("rank")}
    assert reasons[1] == "CapacityError"
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert list((tmp_path / "out").rglob("step-00000002/checkpoint.json"))


def test_a_process_that_is_killed_while_they_measure(alone: Path, tmp_path: Path) -> None:
    """Ends the run as in the training; what was trained is stored, and one process goes on with it."""
    command = running(tmp_path, 2, **SLOW)
    command.wait_until(lambda r: r.says('"event": "adapter"'))
    result = without_the_second(command, "measuring")
    assert [(event["rank"], event["error"]) for event in result.named("rank")] == [(1, "CapacityError")]
    assert not result.named("evaluate")
    assert [event["step"] for event in result.named("checkpoint")] == [CHANGES["/training/max_steps"]]
    one = run_tiny(tmp_path, CHANGES | SLOW)
    assert one.exit_code == 0, one.stdout[-2000:]
    assert [event["step"] for event in one.named("resume")] == [CHANGES["/training/max_steps"]]
    learned_the_same(tmp_path / "out", alone)


def test_a_stop_while_they_measure_ends_them_at_once(tmp_path: Path) -> None:
    """Also one that hears nothing any more."""
    command = running(tmp_path, 2, **SLOW)
    command.wait_until(lambda r: r.says('"event": "load"'))
    started = members(command)
    started[1].suspend()
    command.signal(signal.SIGTERM)
    begun = time.monotonic()
    result = command.finish(60)
    assert time.monotonic() - begun < 5
    assert (result.exit_code, result.named("baseline"), result.named("rank")) == (30, [], []), result.stdout[-2000:]
    assert len(started) == 2
    assert not any(process.is_running() for process in started)


def test_tokens_have_their_weights_in_every_process(alone: Path, tmp_path: Path) -> None:
    """Answers that are learned in part: losses are those of one process, and not those without weights."""
    rows = [json.loads(line) for line in (DEMO / "train.jsonl").read_text().splitlines()[:32]]
    for number, row in enumerate(rows):
        row["messages"][-1]["weight"] = 0.25 if number % 2 else 1.0
    (weighted := tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = {"/training/max_steps": 3, "/data/train/0/source": str(weighted), "/evaluation": {"prompts": []}}
    one, two = (run_tiny(tmp_path / f"{count}", together(count) | few) for count in (1, 2))
    assert (one.exit_code, two.exit_code) == (0, 0), two.stdout[-2000:]
    ours, theirs = (figures(tmp_path / count / "out") for count in ("2", "1"))
    assert [line[:2] for line in ours] == [pytest.approx(line[:2], rel=LIMIT) for line in theirs]
    assert figures(alone)[0][1] > 1.2 * ours[0][1], "the same rows in the same order, all of them whole"


WHOLE: dict[str, Any] = {
    "/model/precision": "full",
    "/lora": LEFT_OUT,
    "/training/optimizer": "adamw_torch_fused",
    "/training/learning_rate": 0.001,
}


def test_weights_that_are_spread(tmp_path: Path) -> None:
    """Parts of every weight, its gradient and moments (FSDP2), stopped on two processes and ended on three."""
    one = run_tiny(tmp_path / "one", CHANGES | WHOLE)
    assert one.exit_code == 0, one.stdout[-2000:]
    two = running(tmp_path, 2, **WHOLE, **{"/resources": {"gpus": 2, "weights": "spread"}})
    two.wait_until(lambda r: r.says('"step": 4,'))
    two.signal(signal.SIGTERM)
    result = two.finish(60)
    assert result.exit_code == 30, result.stdout[-2000:]
    whole = run_tiny(tmp_path, CHANGES | WHOLE | {"/resources": {"gpus": 2}})
    assert (whole.exit_code, whole.failure["pointer"], whole.failure["found"]) == (11, "/resources/weights", "whole")
    three = run_tiny(tmp_path, CHANGES | WHOLE | {"/resources": {"gpus": 3, "weights": "spread"}})
    assert three.exit_code == 0, three.stdout[-2000:]
    assert [event["step"] for event in three.named("resume")] == [event["step"] for event in result.named("checkpoint")]
    same(tmp_path / "out", tmp_path / "one" / "out")


def test_answers_with_labels_are_learned_the_same(tmp_path: Path) -> None:
    """What trl notes of its own passes is gathered, too, where it does so: margins of the step and the rest."""
    rows = {"source": str(write_labelled(tmp_path / "rows.jsonl")), "format": "kto"}
    changes = {"/data/train/0": rows, "/data/held_out": False, "/training/method": "kto", "/training/max_steps": 4,
               "/training/gradient_accumulation_steps": 3, "/training/learning_rate": 0.001}  # fmt: skip
    curves = []
    for count in (1, 2):
        result = run_tiny(tmp_path / f"{count}", changes | {"/resources": {"gpus": count}})
        assert result.exit_code == 0, result.stdout[-2000:]
        lines = map(json.loads, (tmp_path / f"{count}" / "out" / "report" / "losses.jsonl").read_text().splitlines())
        names = ("loss", "reward_margin", "kl")
        curves.append([[line[name] for name in names if name in line] for line in lines])
    assert len(curves[0]) == 4
    assert len(curves[0][-1]) == 3
    for ours, theirs in zip(*curves, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def write_labelled(path: Path) -> Path:
    answers = [(number, good) for number in range(20) for good in (True, False)]
    rows = [
        {"prompt": f"Say {number}.", "completion": f"{number} it is." if good else f"No {number}.", "label": good}
        for number, good in answers
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_memory_that_one_process_lacks_makes_passes_smaller_in_all(alone: Path, tmp_path: Path) -> None:
    """From the sixth pass of the second process on, which the others learn between two passes."""
    changes = together(2, **{"/training/batch_size": 3, "/training/gradient_accumulation_steps": 2})
    code, events = run_short(tmp_path, 1, 6, changes, rank=1)
    assert code == 0, events[-1]
    cut = [
        (event["batch_size"], event["gradient_accumulation_steps"])
        for event in events
        if event["event"] == "out of memory"
    ]
    assert cut == [(1, 6)]
    assert document(tmp_path / "out" / "stats.json")["training"]["out_of_memory"] == 1
    same(tmp_path / "out", alone)


def test_a_process_that_stands_still_is_given_up(tmp_path: Path) -> None:
    """The others wait for it in vain: their own watchdogs end them, and the run ends it."""
    spec = write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", together(2)))
    command = Running(("run", spec), tmp_path / "scratch", {"TUNEJOB_STALL_MINUTES": "0.08"})
    command.wait_until(lambda r: r.says('"step": 3,'))
    _, second = members(command)
    second.suspend()
    result = command.finish(60)
    assert result.exit_code == 20, result.stdout[-2000:]
    assert result.failure["message"] == "the training makes no steps"
    assert [event["rank"] for event in result.named("rank")] == [0]
    assert result.named("note")[-1]["text"] == "process 2 of 2 said nothing more and was ended"
    assert len(result.named("failed")) == 1
    assert not second.is_running()


def test_a_process_that_stands_still_while_they_measure_is_given_up(tmp_path: Path) -> None:
    """It hears no watchdog of its own, and nobody waits for it: the run sees that it computes nothing."""
    spec = write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", together(2, **SLOW)))
    command = Running(("run", spec), tmp_path / "scratch", {"TUNEJOB_STALL_MINUTES": "0.05"})
    command.wait_until(lambda r: r.says('"event": "load"'))
    _, second = members(command)
    second.suspend()
    result = command.finish(60)
    assert result.exit_code == 20, result.stdout[-2000:]
    failure = result.failure
    assert failure["message"].startswith("process 2 of 2, measuring: it stands still")
    assert failure["found"].startswith("no forward pass for ")
    assert failure["expected"].startswith("at most 3 ")
    assert not second.is_running()


def test_a_process_that_stands_still_while_they_load_is_given_up(tmp_path: Path) -> None:
    """Nobody waits for it there but the run, to which the other one has answered."""
    spec = write_spec(tmp_path / "spec.json", tiny(tmp_path / "out", together(2)))
    command = Running(("run", spec), tmp_path / "scratch", {"TUNEJOB_STALL_MINUTES": "0.05"})
    command.wait_until(lambda _: len(members(command)) == 2)
    _, second = members(command)
    second.suspend()
    result = command.finish(60)
    assert result.exit_code == 20, result.stdout[-2000:]
    failure = result.failure
    assert failure["message"].startswith("process 2 of 2, loading: it stands still")
    assert failure["found"].startswith("not done as another is")
    assert not second.is_running()


def test_more_gpus_than_there_are_is_refused(tmp_path: Path) -> None:
    result = run_tiny(tmp_path, together(2), {"TUNEJOB_DEVICE": "auto"})
    assert result.exit_code == 13
    assert (result.failure["pointer"], result.failure["found"], result.failure["expected"]) == (
        "/resources/gpus",
        "none",
        "2",
    )


# ------------------------------------------------------------------------------------------ several machines


def port() -> int:
    """One that nobody has, and whose neighbour nobody is likely to take."""
    with socket.socket() as asked:
        asked.bind(("localhost", 0))
        return int(asked.getsockname()[1])


def pods(folder: Path, meeting: int, **more: Any) -> list[Running]:
    """Both of them, as the manifests start them: the same spec, and which one this is."""
    return [pod(folder, meeting, number, **more) for number in (0, 1)]


def pod(folder: Path, meeting: int, number: int, **more: Any) -> Running:
    spec = write_spec(folder / "spec.json", tiny(folder / "out", CHANGES | {"/resources": {"nodes": 2}, **more}))
    shared = {"TUNEJOB_MEETING": f"localhost:{meeting}", "TUNEJOB_STALL_MINUTES": "1", "TUNEJOB_MACHINE": f"{number}"}
    return Running(("run", spec), folder / f"pod-{number}", shared)


def test_two_pods_run_to_their_end(alone: Path, tmp_path: Path) -> None:
    """Stopped midway, they go on at the checkpoint, which the first brings to the other; figures as of one process."""
    first, second = pods(tmp_path, port())
    first.wait_until(lambda r: r.says('"step": 4,'))
    second.signal(signal.SIGTERM)  # as a node is drained: one of them hears of it
    stopped = [pod.finish(60) for pod in (first, second)]
    assert [result.exit_code for result in stopped] == [30, 30], stopped[1].stdout[-2000:]
    (stored,) = stopped[0].named("checkpoint")
    ended = [pod.finish(120) for pod in pods(tmp_path, port())]
    assert [result.exit_code for result in ended] == [0, 0], ended[0].stdout[-1500:] + ended[1].stdout[-1500:]
    assert [event["step"] for event in ended[0].named("resume")] == [stored["step"]]
    same(tmp_path / "out", alone)
    assert document(tmp_path / "out" / "stats.json")["training"]["processes"] == 2
    assert ended[1].events[-1]["text"] == "the first machine has stored what was trained"
    assert not ended[1].named("published")
    assert not ended[1].named("lease")
    late = pod(tmp_path, port(), 1).finish(30)  # once the first one has seen that all is done, and is gone
    assert (late.exit_code, late.events[-1]["text"]) == (0, "already published; nothing was left to train")


def test_a_pod_that_is_lost_ends_the_other(tmp_path: Path) -> None:
    """Which Kubernetes then starts again, and both go on."""
    first, second = pods(tmp_path, port())
    first.wait_until(lambda r: r.says('"step": 3,'))
    (process,) = members(second)
    second.kill()
    result = first.finish(60)
    assert result.exit_code == 20, result.stdout[-2000:]
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("variable", "value"), [("TUNEJOB_MACHINE", "2"), ("TUNEJOB_MACHINE", ""), ("TUNEJOB_MEETING", "nowhere")]
)
def test_a_machine_that_does_not_know_which_it_is(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, known in ({"TUNEJOB_MACHINE": "1", "TUNEJOB_MEETING": "first.set:29400"} | {variable: value}).items():
        monkeypatch.setenv(name, known)
    with pytest.raises(InputError) as refused:
        this_machine(2)
    assert [fault.where for fault in refused.value.faults] == [variable]
    assert "resources.nodes" in refused.value.faults[0].hint
    assert this_machine(1) == Machine()


@pytest.mark.parametrize(("values", "code"), [((0.5, 0.5), 0), ((0.5, 0.5000001), 21)])
def test_cards_that_hold_other_weights_after_the_same_steps_are_found(
    values: tuple[float, float], code: int, tmp_path: Path
) -> None:
    with (tmp_path / "said").open("wb") as said:
        members = [
            fork(
                "tests.flow.diverging:run", [rank, f"file://{tmp_path / 'meeting'}", value, str(tmp_path / f"{rank}")],
                (said.fileno(), said.fileno()), ROOT, environment(tmp_path),
            )
            for rank, value in enumerate(values)
        ]  # fmt: skip
        assert [member.wait(60) for member in members] == [code, code], (tmp_path / "said").read_text()


def test_processes_that_store_nothing_have_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "0")
    first, second = (
        environment_of(RankPlace(rank, 2, "file:///meeting", tmp_path / f"rank-{rank}.jsonl", 3)) for rank in (0, 1)
    )
    assert first["AWS_SECRET_ACCESS_KEY"] == "canary"
    assert [("HF_TOKEN" in one, one["HF_HUB_OFFLINE"]) for one in (first, second)] == [(False, "1")] * 2
    assert "canary" not in " ".join(second.values())
    assert [one[name] for one in (first, second) for name in ("NCCL_NVLS_ENABLE", "OMP_NUM_THREADS")] == ["0", "3"] * 2


def test_machines_with_other_rows_do_not_train_together(tmp_path: Path) -> None:
    """Each reads them by itself: they may change in between."""
    rows, meeting, lines = tmp_path / "rows.jsonl", port(), (DEMO / "train.jsonl").read_text().splitlines(keepends=True)
    source = {"/data/train/0/source": str(rows)}
    rows.write_text("".join(lines[:32]))
    first = pod(tmp_path, meeting, 0, **source)
    first.wait_until(lambda r: r.says('"event": "load"'))
    rows.write_text("".join(lines[1:33]))
    ended = [each.finish(60) for each in (first, pod(tmp_path, meeting, 1, **source))]
    assert [(result.exit_code, result.failure["pointer"]) for result in ended] == [(11, "/data/train")] * 2, ended[
        1
    ].stdout[-1500:]
    assert "other rows" in ended[0].failure["message"]
