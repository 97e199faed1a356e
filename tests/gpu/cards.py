"""Several GPUs of one machine beside one: the same spec, model, rows, machine and call.

    python -m tests.gpu.cards speed FOLDER SHAPE STEPS            the job with a 4-bit adapter on 1 card, then on 2
    python -m tests.gpu.cards full FOLDER SHAPE STEPS [CARDS ...] every weight, training alone; 2s: spread over two
    python -m tests.gpu.cards measure FOLDER SHAPE STEPS          a short training; losses and answers of held-out rows
    python -m tests.gpu.cards kill FOLDER                         on 2 cards; one process is killed, 1 card ends it

Needs two NVIDIA GPUs. Shapes, rows and recipe are those of `bench` (8b, 1b). Prints a JSON line for each run: median
seconds of a step, tokens a second, peak of the memory of the card that has most, losses; then how they compare. With
`measure`: seconds of every stage, of which baseline and evaluate measure, and how many answers are the same.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tests.gpu.bench import ACCUMULATION, BATCH, REPOSITORY, make_model, make_rows, spec_of

TOKENIZER = REPOSITORY / ".cache" / "models" / "SmolLM2-135M-Instruct"
GIB = 1 << 30
KILLED_AFTER = 4  # steps
LIMIT_SECONDS = 500
MEASURED_ROWS, NEW_TOKENS = 128, 64


def prepare(folder: Path, shape: str, steps: int) -> None:
    """Model and rows; the model in a process of its own, which leaves the card as it was."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / shape / "config.json").exists():
        subprocess.run(
            [sys.executable, "-m", "tests.gpu.cards", "model", str(folder), shape], cwd=REPOSITORY, check=True
        )
    make_rows(folder / f"rows-{steps}.jsonl", steps * BATCH * ACCUMULATION * 5)


def spec_for(folder: Path, shape: str, steps: int, cards: int, name: str, **checkpoints: int) -> Path:
    document = spec_of(folder / shape, folder / f"rows-{steps}.jsonl", folder / name / "output", steps)
    document["resources"] = {"gpus": cards}
    document["output"]["checkpoints"] = checkpoints or {"every_minutes": 600}
    document["training"]["warmup_steps"] = 2
    (folder / name).mkdir(exist_ok=True)
    path = folder / name / "spec.json"
    path.write_text(json.dumps(document))
    return path


def start(spec: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "job", "run", str(spec), "--log", "json", "--workdir", str(spec.parent / "work")]
    with (spec.parent / "log").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TUNEJOB_LEASE_SECONDS": "4"},
        )


def events(spec: Path, name: str) -> list[dict[str, Any]]:
    lines = (spec.parent / "log").read_text("utf-8", "replace").splitlines()
    return [event for line in lines if line.startswith('{"time"') and (event := json.loads(line))["event"] == name]


def figures(training: dict[str, Any], losses: list[float]) -> dict[str, Any]:
    a_step = training["tokens"] / training["steps"]
    return {
        "cards": training["processes"], "step_seconds": training["median_step_seconds"],
        "tokens_per_second": round(a_step / training["median_step_seconds"]), "batch_size": training["batch_size"],
        "passes": training["gradient_accumulation_steps"], "kept_layers": training["kept_layers"],
        "peak_reserved_gib": round(training["peak_gpu_reserved_bytes"] / GIB, 2),
        "losses": [round(loss, 5) for loss in losses],
    }  # fmt: skip


def compared(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The last beside the first."""
    one, many = runs[0], runs[-1]
    differences = [abs(a - b) for a, b in zip(one["losses"], many["losses"], strict=True)]
    return {
        "times_as_fast": round(many["tokens_per_second"] / one["tokens_per_second"], 3),
        "largest_loss_difference": round(max(differences), 5),
        "mean_loss_difference": round(sum(differences) / len(differences), 5),
    }


def measure_speed(folder: Path, shape: str, steps: int) -> None:
    prepare(folder, shape, steps)
    runs = []
    for cards in (1, 2):
        spec = spec_for(folder, shape, steps, cards, f"speed-{shape}-{cards}")
        stats, further = run_to_its_end(spec)
        losses = [
            json.loads(line)["loss"] for line in (spec.parent / "output/report/losses.jsonl").read_text().splitlines()
        ]
        runs.append(figures(stats["training"], losses))
        print(json.dumps(runs[-1] | further), flush=True)
    print(json.dumps(compared(runs)), flush=True)


def run_to_its_end(spec: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its statistics, and the seconds of its stages and of all."""
    begun = time.monotonic()
    if code := start(spec).wait(LIMIT_SECONDS):
        print((spec.parent / "log").read_text("utf-8", "replace")[-6000:], flush=True)
        raise SystemExit(code)
    wall = round(time.monotonic() - begun, 1)
    stats = json.loads((spec.parent / "output" / "stats.json").read_text())
    return stats, {
        "stages": {phase["name"]: phase["wall_seconds"] for phase in stats["phases"]},
        "wall_seconds": wall,
    }


def measure_evaluation(folder: Path, shape: str, steps: int) -> None:
    prepare(folder, shape, steps)
    runs: list[dict[str, Any]] = []
    answers = []
    for cards in (1, 2):
        spec = spec_for(folder, shape, steps, cards, f"measure-{shape}-{cards}")
        document = json.loads(spec.read_text())
        document["data"]["held_out"] = {"rows": MEASURED_ROWS}
        document["training"]["eval_batch_size"] = 4
        document["evaluation"] = {
            "exact_match_rows": MEASURED_ROWS, "max_new_tokens": NEW_TOKENS, "metrics": ["token_f1"],
        }  # fmt: skip
        spec.write_text(json.dumps(document))
        stats, further = run_to_its_end(spec)
        known = {name: stats["evaluation"][name] for name in ("base", "trained")}
        runs.append({"cards": cards, "evaluation": known} | further)
        answers.append(json.loads((spec.parent / "output/report/answers.json").read_text()))
        print(json.dumps(runs[-1]), flush=True)
    same = {
        name: sum(one[name] == two[name] for one, two in zip(*answers, strict=True)) for name in ("base", "trained")
    }
    one, two = (run["stages"] for run in runs)
    print(
        json.dumps({"baseline_times_as_fast": round(one["baseline"] / two["baseline"], 3),
                    "evaluate_times_as_fast": round(one["evaluate"] / two["evaluate"], 3),
                    "seconds_more": round(runs[1]["wall_seconds"] - runs[0]["wall_seconds"], 1),
                    "same_answers": same, "of": len(answers[0])}), flush=True,
    )  # fmt: skip


def measure_full(folder: Path, shape: str, steps: int, counts: list[str]) -> None:
    """Without the rest of the job, which would write such a model several times."""
    prepare(folder, shape, steps)
    runs = []
    for cards in counts:
        command = [sys.executable, "-m", "tests.gpu.cards", "train", str(folder), shape, str(steps), cards]
        talking = os.environ | {"NCCL_DEBUG": "INFO"}
        log = folder / f"full-{shape}-{cards}.log"
        with log.open("w") as file:
            subprocess.run(command, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT, check=False, env=talking)
        said = log.read_text("utf-8", "replace")
        line = next((line for line in said.splitlines() if line.startswith('{"cards"')), "")
        if not line:
            print(said[-9000:], flush=True)
            raise SystemExit(1)
        runs.append(json.loads(line))
        ways = sorted(set(re.findall(r" via (\S+)", said)))  # by which NCCL's channels go
        print(json.dumps(runs[-1] | {"nccl": ways}), flush=True)
    if len(runs) > 1:
        print(json.dumps(compared(runs)), flush=True)


def train_alone(folder: Path, shape: str, steps: int, asked: str) -> None:
    """Plain transformers, which the weights can be spread with, and torch's AdamW."""
    from job.asked import ToTrain
    from job.data.build import build_dataset
    from job.host.child import CHILDREN_IMPORT, preload
    from job.host.device import gpu_capability
    from job.host.log import Log
    from job.host.records import build
    from job.ledger.checkpoints import TrainingOrigin
    from job.several import MODULE, load_request, train_together
    from job.source import fetch_data, fetch_model_config, fetch_model_weights
    from job.spec import parse_spec
    from job.training.environment import prepare_environment
    from job.training.loop import TrainResult
    from job.training.machines import Machine
    from job.training.team import Team

    cards = int(asked.rstrip("s"))
    path = spec_for(folder, shape, steps, cards, f"full-{shape}-{asked}")
    document = json.loads(path.read_text())
    del document["lora"]
    document["model"]["backend"], document["training"]["optimizer"] = "peft", "adamw_torch_fused"
    document["resources"]["weights"] = "spread" if asked.endswith("s") else "whole"
    document["model"]["precision"], document["data"]["packing"] = "full", False
    document["training"]["learning_rate"] = 1e-5
    spec, work = parse_spec(json.dumps(document).encode()), path.parent / "work"
    work.mkdir(exist_ok=True)
    prepare_environment(work)
    preload(CHILDREN_IMPORT, gpu_capability())
    train, held_out = fetch_data(spec.data, work)
    base = fetch_model_config(spec.model.source, work)
    prepared = build_dataset(spec, train, held_out, base.path, work, lambda done, total: None)
    fetch_model_weights(base)
    request = ToTrain(str(work / "store"), TrainingOrigin(spec.run_id, base.public_id, prepared.digest), {})
    begun, log = time.monotonic(), Log(json_lines=True)
    with Team(MODULE, cards, spec, "cuda", work, log, Machine()) as team:
        team.ask("load", load_request(base, None, prepared, work), log.live)
        result: TrainResult = build(TrainResult, train_together(team, request, log, lambda: None)[0].result["result"])
    whole = {
        "weights": spec.resources.weights,
        "wall_seconds": round(time.monotonic() - begun, 1),
        "trainable_dtype": result.trainable_dtype,
    }
    print(json.dumps(figures(result.summary(), [row["loss"] for row in result.history]) | whole), flush=True)
    subprocess.run(["rm", "-rf", str(work)], check=True)  # twice the model's size


def measure_kill(folder: Path) -> None:
    steps = 12
    prepare(folder, "1b", steps)
    spec = spec_for(folder, "1b", steps, 2, "kill", every_steps=2)
    job = start(spec)
    while job.poll() is None and not any(event["step"] >= KILLED_AFTER for event in events(spec, "train")):
        time.sleep(0.05)
    processes = [child for child in psutil.Process(job.pid).children() if child.cwd().endswith("/together")]
    assert len(processes) == 2, [child.cmdline() for child in processes]
    victim = next(child for child in processes if child.environ()["CUDA_VISIBLE_DEVICES"] == "1")
    killed_at = time.monotonic()
    victim.send_signal(signal.SIGKILL)
    code = job.wait(LIMIT_SECONDS)
    seconds = round(time.monotonic() - killed_at, 1)
    left = [child.pid for child in processes if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    print(
        json.dumps(
            {"exit_code": code, "seconds_after_the_kill": seconds, "still_running": left,
             "failed": events(spec, "failed"),
             "ranks": events(spec, "rank"), "checkpoints": [event["step"] for event in events(spec, "checkpoint")]}
        ), flush=True,
    )  # fmt: skip
    document = json.loads(spec.read_text())
    document["resources"]["gpus"] = 1
    spec.write_text(json.dumps(document))
    code = start(spec).wait(LIMIT_SECONDS)
    losses = (
        [json.loads(line) for line in (spec.parent / "output/report/losses.jsonl").read_text().splitlines()]
        if code == 0
        else []
    )
    print(
        json.dumps({"again_on_one": code, "resume": events(spec, "resume"), "losses": [row["loss"] for row in losses]}),
        flush=True,
    )
    if code:
        print(re.sub(r"\n+", "\n", (spec.parent / "log").read_text("utf-8", "replace"))[-4000:], flush=True)


def main() -> None:
    part, folder, *rest = sys.argv[1:]
    if part == "model":
        make_model(rest[0], Path(folder) / rest[0], TOKENIZER)
    elif part == "speed":
        measure_speed(Path(folder), rest[0], int(rest[1]))
    elif part == "measure":
        measure_evaluation(Path(folder), rest[0], int(rest[1]))
    elif part == "full":
        measure_full(Path(folder), rest[0], int(rest[1]), rest[2:] or ["1", "2s"])
    elif part == "train":
        train_alone(Path(folder), rest[0], int(rest[1]), rest[2])
    else:
        measure_kill(Path(folder))


if __name__ == "__main__":
    main()
