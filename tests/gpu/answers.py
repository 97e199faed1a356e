"""Seconds that answers take: the library's own `generate`, one question at a time and eight at a time as they come,
beside the way in which a run answers held-out questions.

    python -m tests.gpu.answers 1b FOLDER [unsloth|peft] [PROMPTS]      needs an NVIDIA GPU
    python -m tests.gpu.answers tiny FOLDER peft 12                     on a CPU, to see that it works

The model is loaded as a run loads it, in 4 bits with a fresh adapter, and put into inference mode by its engine; all
ways ask that same model. Weights are random, in the shapes of `bench`; prompts are random ids of log-normal lengths.
Every answer has ANSWER_TOKENS tokens, as nothing ends it, so that each way does the same work. Ours runs first and
last: machines change their speed within minutes. Prints one JSON line a way, then how many times as fast ours is.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.gpu.bench import REPOSITORY, SEED
from tests.gpu.grid import GIB, LARGEST_ID, spec_of

PROMPTS, ANSWER_TOKENS, SIDE_BY_SIDE, WARM_UP = 200, 64, 8, 16
PAD = 2
MEDIAN_TOKENS, SPREAD, LONGEST_TOKENS = 180, 0.7, 1500  # of prompts
CASE = {"precision": "4bit", "packing": False, "steps": 1, "rows": 1, "passes": 1, "checkpointing": "auto"}

Answers = list[list[int]]


def make_prompts(count: int, largest_id: int) -> Answers:
    rng = random.Random(SEED)
    lengths = [min(LONGEST_TOKENS, max(8, int(MEDIAN_TOKENS * rng.lognormvariate(0, SPREAD)))) for _ in range(count)]
    return [rng.choices(range(3, largest_id), k=length) for length in lengths]


def open_model(shape: str, folder: Path, engine: str) -> tuple[Any, str]:
    """The model in inference mode, and its device."""
    workdir = folder / "work"
    workdir.mkdir(parents=True, exist_ok=True)
    from job.training.environment import prepare_environment

    prepare_environment(workdir)
    from job.host.device import choose_device
    from job.plan.model_size import size_of_fetched
    from job.spec import parse_spec
    from job.training.backend import open_backend
    from job.training.checkpointing import checkpointing_of

    model_dir = _model_dir(shape, folder)
    case = CASE | {"backend": engine, "tokens": LONGEST_TOKENS + ANSWER_TOKENS}
    spec = parse_spec(json.dumps(spec_of(case, model_dir, workdir)).encode())
    device = choose_device()
    backend = open_backend(engine, device, "sft")
    size = size_of_fetched(model_dir, sum(path.stat().st_size for path in model_dir.glob("*.safetensors")), local=True)
    model = backend.load(model_dir, spec.model, spec.lora, checkpointing_of(spec, size, device))
    backend.for_inference(model)
    for holder in (model, model.get_base_model()):
        holder.generation_config.eos_token_id = None
    return model, device


def _model_dir(shape: str, folder: Path) -> Path:
    if shape == "tiny":
        from tests.tiny import tiny_dir

        return tiny_dir()
    if not (folder / shape / "config.json").exists():  # in a process of its own, which leaves the card as it was
        subprocess.run([sys.executable, "-m", "tests.gpu.grid", str(folder), shape], cwd=REPOSITORY, check=True)
    return folder / shape


def stock(model: Any, prompts: Answers, at_once: int) -> Iterator[list[int]]:
    """As a script would: in the order of the file, each batch padded on the left."""
    import torch

    for start in range(0, len(prompts), at_once):
        batch = prompts[start : start + at_once]
        width = max(map(len, batch))
        ids = torch.tensor([[PAD] * (width - len(ids)) + ids for ids in batch], device=model.device)
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in batch], device=model.device)
        with torch.no_grad():
            said = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=ANSWER_TOKENS, do_sample=False, pad_token_id=PAD
            )
        yield from said[:, width:].tolist()


def ours(model: Any, prompts: Answers) -> Answers:
    from job.evaluation.generate import answer_ids

    return answer_ids(model, prompts, PAD, [], ANSWER_TOKENS)


def timed(way: str, ask: Callable[[Answers], Answers], prompts: Answers, device: str) -> tuple[dict[str, Any], Answers]:
    import torch

    ask(prompts[:WARM_UP])  # kernels are compiled, and buffers made
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    answers = ask(prompts)
    seconds = time.monotonic() - started
    tokens = sum(map(len, answers))
    found = {
        "way": way, "seconds": round(seconds, 2), "prompts": len(prompts), "prompt_tokens": sum(map(len, prompts)),
        "tokens_made": tokens, "tokens_per_second": round(tokens / seconds),
        "allocated_gib": round(torch.cuda.max_memory_allocated() / GIB, 2) if device == "cuda" else None,
    }  # fmt: skip
    return found, answers


def main() -> None:
    shape, folder = sys.argv[1], Path(sys.argv[2])
    engine = sys.argv[3] if len(sys.argv) > 3 else "unsloth"
    count = int(sys.argv[4]) if len(sys.argv) > 4 else PROMPTS
    model, device = open_model(shape, folder, engine)
    prompts = make_prompts(count, min(LARGEST_ID, model.config.vocab_size))
    ways: list[tuple[str, Callable[[Answers], Answers]]] = [
        ("ours", lambda asked: ours(model, asked)),
        ("stock, one by one", lambda asked: list(stock(model, asked, 1))),
        (f"stock, {SIDE_BY_SIDE} at a time", lambda asked: list(stock(model, asked, SIDE_BY_SIDE))),
        ("ours", lambda asked: ours(model, asked)),
    ]
    results = []
    for way, ask in ways:
        found, answers = timed(way, ask, prompts, device)
        results.append((found, answers))
        print(json.dumps({"shape": shape, "engine": engine, "device": device} | found), flush=True)
    mean = (results[0][0]["seconds"] + results[-1][0]["seconds"]) / 2
    alone = results[1][1]
    print(json.dumps({
        "times_as_fast": {found["way"]: round(found["seconds"] / mean, 2) for found, _ in results[1:-1]},
        "answers_as_one_by_one": {found["way"]: sum(map(list.__eq__, said, alone)) for found, said in results[2:]},
    }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
