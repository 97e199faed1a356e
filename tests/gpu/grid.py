"""Memory and time of training steps over a grid of settings: what the reckoning of
`job/plan` is fitted to, and held against.

    python -m tests.gpu.grid FOLDER AT_ONCE < CASES      needs an NVIDIA GPU; CASES: one JSON object a line
    {"shape": "8b", "precision": "4bit", "backend": "unsloth", "checkpointing": "unsloth", "steps": 5,
     "variants": [{"kept": 0, "rows": 8, "passes": 2, "tokens": 2048, "packing": true}]}

A variant with "usable_gib" in the place of "kept" is computed as the job would choose it with so much memory; one with
"profile": true says where one step's time on the GPU goes, in milliseconds and calls by kernel; with "ragged": true
rows that are not packed have log-normal lengths, and with "padding_free": true they are computed one behind the other,
as a run does it, where they are padded otherwise. The variants of a case train the same loaded model one after the
other. Weights are random in the shape of a Llama; rows are random ids, packed ones with log-normal lengths. Memory does
not depend on what runs beside it, time does: ask for AT_ONCE 1 where times count. Prints one JSON line a variant.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.gpu.bench import REPOSITORY, SEED, SHAPES, make_model

TOKENIZER = REPOSITORY / ".cache" / "models" / "SmolLM2-135M-Instruct"
GIB = 1 << 30
LARGEST_ID = 40_000  # of the small tokenizer, whose ids the rows have


def spec_of(case: dict[str, Any], model: Path, workdir: Path) -> dict[str, Any]:
    """The tutorial's recipe in the case's own sizes."""
    full = case["precision"] == "full"
    lora = {"r": 16, "alpha": 16, "dropout": 0, "rslora": True}
    return {
        "version": 1, "name": "grid",
        "model": {"source": str(model), "precision": case["precision"], "backend": case["backend"],
                  "max_seq_length": case["tokens"]},
        "data": {"train": [{"source": "rows.jsonl", "format": "messages"}], "packing": case["packing"],
                 "shuffle": False, "held_out": False},
        **({} if full else {"lora": lora}),
        "training": {"max_steps": case["steps"], "batch_size": case["rows"],
                     "gradient_accumulation_steps": case["passes"],
                     "learning_rate": 1e-5 if full else 3e-4,
                     "optimizer": "adamw_8bit", "seed": SEED, "logging_steps": 1,
                     "gradient_checkpointing": case["checkpointing"]},
        "tracking": [],
        "output": {"uri": str(workdir / "output")},
    }  # fmt: skip


def lengths_of(case: dict[str, Any]) -> list[int]:
    """Packed or ragged: chats of about 500 tokens, enough of them. Otherwise rows as long as they may be."""
    rng, wanted = random.Random(SEED), case["rows"] * case["passes"] * (case["steps"] + 2)
    packing, found = case["packing"], list[int]()
    if not packing and not case.get("ragged"):
        return [case["tokens"]] * wanted
    while sum(found) < wanted * case["tokens"] if packing else len(found) < wanted:
        found.append(min(case["tokens"], max(32, int(rng.lognormvariate(6.0, 0.6) * 1.05))))
    return found


def run_case(case: dict[str, Any], folder: Path) -> None:
    """In this process."""
    workdir = folder / f"case-{os.getpid()}"
    workdir.mkdir(parents=True)
    from job.training.environment import prepare_environment

    for name, place in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
        os.environ[name] = str(folder / "cache" / place)
    prepare_environment(workdir)
    from job.spec import parse_spec
    from job.training.backend import open_backend

    started = time.monotonic()
    backend = open_backend(case["backend"], "cuda", case.get("method", "sft"))
    imported = time.monotonic()
    settings = [case | variant for variant in case["variants"]]
    specs = [parse_spec(json.dumps(spec_of(setting, folder / case["shape"], workdir)).encode()) for setting in settings]
    longest = max(specs, key=lambda spec: spec.model.max_seq_length)
    checkpointing = "unsloth" if case["checkpointing"] == "auto" else case["checkpointing"]
    model = backend.load(folder / case["shape"], longest.model, longest.lora, checkpointing)
    spent = {"import_seconds": round(imported - started, 1), "load_seconds": round(time.monotonic() - imported, 1)}
    for setting, spec in zip(settings, specs, strict=True):
        found = measure(backend, model, spec, setting, workdir)
        print(
            json.dumps({key: value for key, value in setting.items() if key != "variants"} | spent | found), flush=True
        )


def measure(backend: Any, model: Any, spec: Any, setting: dict[str, Any], workdir: Path) -> dict[str, Any]:
    """Trains some steps."""
    import datasets
    import torch
    from transformers import AutoTokenizer, TrainerCallback

    from job.host.micro_batch import MicroBatch, free_memory
    from job.plan.model_size import size_of_fetched
    from job.training.checkpointing import Chooser
    from job.training.methods import METHODS
    from job.training.trainer_arguments import join_rows, trainer_arguments

    torch.cuda.set_per_process_memory_fraction(1.0)
    batch, kept = MicroBatch(setting["rows"], setting["passes"]), setting.get("kept", 0)
    if "usable_gib" in setting:
        free_memory()
        torch.cuda.set_per_process_memory_fraction(setting["usable_gib"] * GIB / torch.cuda.mem_get_info()[1])
        size = size_of_fetched(Path(spec.model.source), weight_bytes(Path(spec.model.source)), local=True)
        choice, _ = Chooser(spec, size, backend, lengths_of(setting)).first()
        batch, kept = choice.batch, choice.kept_layers
    if setting["checkpointing"]:
        backend.keep_activations(model, kept)
    placed = backend.place_kernels(model, setting.get("compute", "stock"))
    rng = random.Random(SEED)
    rows = [rng.choices(range(3, LARGEST_ID), k=length) for length in lengths_of(setting)]
    features = datasets.Features({name: datasets.List(datasets.Value("int32")) for name in ("input_ids", "labels")})
    dataset = datasets.Dataset.from_dict({"input_ids": rows, "labels": rows}, features=features)
    joined = join_rows(spec, batch, "cuda", dataset) if setting.get("padding_free") else {}
    marks: list[float] = []
    losses: list[float] = []
    tokens: list[int] = []

    class Clock(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **__: Any) -> None:
            if "loss" in logs:
                marks.append(time.monotonic())
                losses.append(round(float(logs["loss"]), 5))

    method = METHODS["sft"]
    config, trainer_class = method.trainer_classes()
    common = trainer_arguments(spec, batch, "cuda", workdir, backend.loaded_with)
    arguments = config(**common | method.arguments(spec) | joined)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    trainer = backend.adapt(trainer_class)(
        model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer, callbacks=[Clock()]
    )
    step = trainer.training_step

    def counting(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        tokens.append(inputs["input_ids"].numel())
        return step(model, inputs, *args, **kwargs)

    trainer.training_step = counting
    profile = Profile(trainer) if setting.get("profile") else None
    backend.for_training(model)
    free_memory()
    torch.cuda.reset_peak_memory_stats()
    before, failure = torch.cuda.memory_allocated(), None
    try:
        trainer.train()
    except torch.OutOfMemoryError as error:
        failure = str(error)[:200]
    steps = sorted(later - mark for mark, later in itertools.pairwise(marks[1:]))
    median = steps[len(steps) // 2] if steps else None
    found = {
        "rows": batch.rows, "passes": batch.accumulation_steps, "kept": kept, "failure": failure,
        "before_gib": round(before / GIB, 3), "allocated_gib": round(torch.cuda.max_memory_allocated() / GIB, 3),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 3), "step_seconds": median and round(median, 4),
        "fastest_seconds": steps and round(steps[0], 4), "largest_pass_tokens": max(tokens, default=0),
        "tokens_per_second": median and round(sum(tokens) / len(marks) / median), "losses": losses,
        "kernels": [placed.compute, len(placed), placed.differences, placed.reason],
        "packed": bool(getattr(trainer.args, "packing", False)),
        "padding_free": bool(getattr(trainer.args, "padding_free", False)),
        **({"profile": profile.found} if profile else {}),
    }  # fmt: skip
    model.zero_grad(set_to_none=True)
    placed.take_away()
    del trainer
    free_memory()
    return found


class Profile:
    """Of the fourth step of a trainer."""

    STEP, KERNELS = 3, 45

    def __init__(self, trainer: Any) -> None:
        import torch
        from transformers import TrainerCallback

        self.found: dict[str, Any] = {}
        tool = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        marks: list[float] = []

        class Around(TrainerCallback):
            def on_step_begin(callback, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == self.STEP:
                    torch.cuda.synchronize()
                    tool.start()
                    marks.append(time.monotonic())

            def on_step_end(callback, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == self.STEP + 1:
                    torch.cuda.synchronize()
                    marks.append(time.monotonic())
                    tool.stop()
                    self.found = self._of(tool.key_averages(), marks[1] - marks[0])

        trainer.add_callback(Around())

    def _of(self, averages: Any, seconds: float) -> dict[str, Any]:
        spent = sorted(((each.self_device_time_total / 1000, each.count, each.key) for each in averages), reverse=True)
        return {
            "wall_ms": round(seconds * 1000, 1), "busy_ms": round(sum(line[0] for line in spent), 1),
            "kernels": [[round(ms, 2), count, name[:90]] for ms, count, name in spent[: self.KERNELS]],
        }  # fmt: skip


def weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def child(case: dict[str, Any], folder: Path) -> None:
    """Its lines as they come: a time limit may end it."""
    command = [sys.executable, "-m", "tests.gpu.grid", str(folder), json.dumps(case)]
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            assert process.stdout
            for line in process.stdout:
                if line.startswith("{"):
                    print(line, end="", flush=True)
        if process.returncode:
            errors.seek(0)
            print(json.dumps(case | {"failed": errors.read()[-1500:]}), flush=True)


def main() -> None:
    folder = Path(sys.argv[1])
    if sys.argv[2].startswith("{"):
        run_case(json.loads(sys.argv[2]), folder)
        return
    if sys.argv[2] in SHAPES:  # in a process of its own, which leaves the card as it was
        make_model(sys.argv[2], folder / sys.argv[2], TOKENIZER)
        return
    cases = [json.loads(line) for line in sys.stdin if line.strip()]
    for shape in dict.fromkeys(case["shape"] for case in cases):
        if not (folder / shape / "config.json").exists():
            subprocess.run([sys.executable, "-m", "tests.gpu.grid", str(folder), shape], cwd=REPOSITORY, check=True)
    with ThreadPoolExecutor(int(sys.argv[2])) as pool:
        list(pool.map(lambda case: child(case, folder), cases))


if __name__ == "__main__":
    main()
