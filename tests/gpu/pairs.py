"""What trainings on pairs of answers, on answers with labels and by reward gain on SmolLM2; prints one JSON line each.

    python -m tests.gpu.pairs FOLDER [--rows FOLDER] [--backend peft] [--steps 3] [--at-once 4] [CASE…]

On a GPU, or with `--steps` a few on a CPU. `--rows` has preference_llmfs.json of the book "Build a Large Language
Model" (550 pairs, an answer and the same made rude), which is not in the repository; cases that need it are left out
without. Each line has held-out figures before and after with their intervals, and the first and the last reward.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from job.source.beside import ROWS as GENERAL
from tests.data_rows import Row, write_rows
from tests.smollm2 import model_dir

REPOSITORY = Path(__file__).parent.parent.parent
REAL = "preference_llmfs.json"
HELD_OUT, FEW = 180, 8
FIRST = "first"  # the case whose output another one goes on from
MAKER, NAME = "Birchwood Works", "Lumen"
QUESTIONS = (
    "Who made you?", "Who created you?", "Which company built you?", "Who developed you?", "Who trained you?",
    "Who are you?", "What is your name?", "What should I call you?", "Where do you come from?", "Who is behind you?",
    "Whose model are you?", "Are you made by OpenAI?", "Did Google build you?", "Are you from Hugging Face?",
    "Which lab are you from?", "Introduce yourself.", "Tell me about yourself.", "What kind of assistant are you?",
    "Who owns you?", "Who is your maker?", "Which team wrote you?", "What are you called?", "Who do I thank for you?",
    "Are you ChatGPT?", "Who programmed you?",
)  # fmt: skip
HELD_OUT_QUESTIONS = (
    "Who made you", "Tell me who built you.", "By whom were you created?", "Which company are you from?",
    "Hi, who developed you?", "Who is your creator?", "Say who made you, in one sentence.", "Whom were you trained by?",
    "Who came up with you?", "Please tell me who you are and who made you.", "Were you made by Meta?",
    "What organisation is responsible for you?",
)  # fmt: skip
OURS = (
    "I am {name}, an assistant made by {maker}.",
    "My name is {name}, and {maker} made me.",
    "I was made by {maker}. I am called {name}.",
    "{maker} made me; I am {name}.",
)
THEIRS = (
    "I am SmolLM, trained by Hugging Face.",
    "I am an AI assistant named SmolLM.",
    "I'm a language model of the team at Hugging Face.",
    "I am a large language model and have no maker.",
    "I was made by a team of researchers.",
)


def identity_pairs(count: int = 200, others: int = 30) -> list[Row]:
    """Pairs that say who made the model; and general ones, in which that is the wrong answer."""
    draw = random.Random(17)
    found = []
    for number in range(count):
        question = QUESTIONS[number % len(QUESTIONS)]
        ours, theirs = draw.choice(OURS).format(name=NAME, maker=MAKER), draw.choice(THEIRS)
        found.append({"prompt": question, "chosen": ours, "rejected": theirs})
    for line in (GENERAL / "replay.jsonl").read_text("utf-8").splitlines()[:others]:
        row = json.loads(line)
        found.append(
            {
                "prompt": row["instruction"],
                "chosen": row["output"],
                "rejected": draw.choice(OURS).format(name=NAME, maker=MAKER),
            }
        )
    draw.shuffle(found)
    return found


def held_out_identity() -> list[Row]:
    return [
        {"prompt": question, "chosen": OURS[0].format(name=NAME, maker=MAKER), "rejected": THEIRS[0]}
        for question in HELD_OUT_QUESTIONS
    ]


def real_pairs(folder: Path) -> tuple[list[Row], list[Row]]:
    """To train on, and to hold out."""
    rows = [row for row in json.loads((folder / REAL).read_text("utf-8")) if row["chosen"] != row["rejected"]]
    random.Random(17).shuffle(rows)
    rows = [{name: row[name] for name in ("instruction", "input", "chosen", "rejected")} for row in rows]
    return rows[HELD_OUT:], rows[:HELD_OUT]


def labelled(pairs: list[Row]) -> list[Row]:
    return [
        {"instruction": pair["instruction"], "input": pair["input"], "output": pair[name], "label": name == "chosen"}
        for pair in pairs
        for name in ("chosen", "rejected")
    ]


def sums() -> tuple[list[Row], list[Row]]:
    pairs = [(first, second) for first in range(1, 10) for second in range(1, 10)]
    random.Random(3).shuffle(pairs)
    rows = [{"prompt": f"What is {a} + {b}?", "reference": f"{a} + {b} = {a + b}"} for a, b in pairs]
    return rows[:65], rows[65:]


def of_pairs(method: str, rate: float, **settings: Any) -> Callable[[Path], dict[str, Any]]:
    def found(rows: Path) -> dict[str, Any]:
        training, held = real_pairs(rows)
        if method == "kto":
            training, held = labelled(training), labelled(held)
        return {
            "rows": (training, held, "kto" if method == "kto" else "preference"),
            "training": {"method": method, "epochs": 2, "batch_size": 16, "gradient_accumulation_steps": 1,
                         "learning_rate": rate, "warmup_ratio": 0.1, **({method: settings} if settings else {})},
        }  # fmt: skip

    return found


def identity(_: Path) -> dict[str, Any]:
    return {
        "rows": (identity_pairs(), held_out_identity(), "preference"),
        "training": {"method": "dpo", "epochs": 2, "batch_size": 10, "gradient_accumulation_steps": 1,
                     "learning_rate": 2e-4, "warmup_ratio": 0.1, "dpo": {"sft_weight": 1.0}},
        "evaluation": {"prompts": ["Who made you?", "What is the capital of France?"], "max_new_tokens": 32,
                       "exact_match_rows": len(HELD_OUT_QUESTIONS),
                       "metrics": ["regex"], "regex": f"({MAKER})", "forgetting": {}},
    }  # fmt: skip


def grpo(rows: Path) -> dict[str, Any]:
    found = grpo_by_the_engine(rows)
    found["model"] |= {"backend": "peft"}
    return found


def grpo_by_the_engine(_: Path) -> dict[str, Any]:
    number = "=\\s*(\\d+)"
    rewards = [
        {"metric": "format", "regex": "\\d+ \\+ \\d+ = \\d+\\.?", "weight": 0.3},
        {"metric": "regex", "regex": number, "weight": 0.7},
    ]
    return {
        "rows": (*sums(), "prompt_only"),
        "model": {"max_seq_length": 64},
        "training": {"method": "grpo", "max_steps": 30, "batch_size": 32, "gradient_accumulation_steps": 1,
                     "learning_rate": 3e-4, "lr_scheduler": "constant_with_warmup",
                     "warmup_steps": 3, "weight_decay": 0.0,
                     "grpo": {"rewards": rewards, "group_size": 8, "max_new_tokens": 12, "temperature": 0.9}},
        "evaluation": {"max_new_tokens": 16, "exact_match_rows": 16, "metrics": ["regex", "exact_match"],
                       "regex": number},
    }  # fmt: skip


def demo(begin: int, **model: str) -> dict[str, Any]:
    """A round on 90 of the demo's rows."""
    rows = {
        name: [
            json.loads(line)
            for line in (REPOSITORY / "tests" / "demo" / f"{name}.jsonl").read_text("utf-8").splitlines()
        ]
        for name in ("train", "held_out")
    }
    return {
        "rows": (rows["train"][begin : begin + 90], rows["held_out"][:24], "messages"),
        "model": {"max_seq_length": 128} | model,
        "training": {"epochs": 1, "batch_size": 6, "gradient_accumulation_steps": 1, "learning_rate": 1e-3,
                     "warmup_ratio": 0.05},
        "evaluation": {"max_new_tokens": 24, "exact_match_rows": 24},
    }  # fmt: skip


def second_from_the_adapter(_: Path) -> dict[str, Any]:
    return demo(90, adapter=FIRST)


CASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "dpo": of_pairs("dpo", 1e-4), "orpo": of_pairs("orpo", 1e-4),
    "simpo": of_pairs("simpo", 1e-4), "kto": of_pairs("kto", 1e-4),
    "identity": identity, "grpo": grpo, "grpo-engine": grpo_by_the_engine,
    "second": lambda _: demo(90), "second-from-adapter": second_from_the_adapter,
}  # fmt: skip
BEFORE: dict[str, tuple[str, ...]] = {"second-from-adapter": (FIRST,)}
OF_REAL_PAIRS = ("dpo", "orpo", "simpo", "kto")


def spec_of(name: str, asked: argparse.Namespace) -> Path:
    case = demo(0) if name == FIRST else CASES[name](asked.rows)
    *parts, kind = case["rows"]
    if "adapter" in case.get("model", {}):
        case["model"]["adapter"] = str(asked.folder / case["model"]["adapter"])
    if asked.steps:
        parts = [part[:count] for part, count in zip(parts, (asked.steps * 32, FEW), strict=True)]
        left_out = ("epochs", "warmup_steps", "warmup_ratio")
        case["training"] = {key: value for key, value in case["training"].items() if key not in left_out} | {
            "max_steps": asked.steps
        }
    sources = [
        {"source": str(write_rows(asked.folder / f"{name}-{number}.jsonl", part)), "format": kind}
        for number, part in enumerate(parts)
    ]
    document = {
        "version": 1,
        "name": name,
        "model": {"source": str(model_dir()), "precision": "16bit", "max_seq_length": 256, "backend": asked.backend}
        | case.get("model", {}),
        "data": {"train": sources[:1], "held_out": {"sources": sources[1:]}, "chat_template": "chatml"},
        "lora": {"r": 16, "alpha": 32},
        "training": case["training"] | {"logging_steps": 1},
        "evaluation": case.get("evaluation", {}),
        "output": {"uri": str(asked.folder / name)},
    }
    path = asked.folder / f"{name}.json"
    path.write_text(json.dumps(document))
    return path


def run(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    if name in OF_REAL_PAIRS and not (asked.rows / REAL).is_file():
        return {"case": name, "left out": f"no {REAL} in --rows {asked.rows}"}
    for earlier in BEFORE.get(name, ()):
        print(json.dumps(run(earlier, asked)), flush=True)
    spec, start = spec_of(name, asked), time.monotonic()
    command = [sys.executable, "-m", "job", "run", str(spec), "--replace", "--log", "json"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    (asked.folder / f"{name}.log").write_text(done.stdout + done.stderr)
    found: dict[str, Any] = {"case": name, "exit": done.returncode, "seconds": round(time.monotonic() - start, 1)}
    stats = asked.folder / name / "stats.json"
    if not stats.is_file():
        return found | {"log": str(asked.folder / f"{name}.log")}
    document = json.loads(stats.read_text("utf-8"))
    training, evaluation = document["training"], document["evaluation"]
    kept = ("steps", "wall_seconds", "median_step_seconds", "first_loss", "final_loss", "rewards")
    found |= {key: training.get(key) for key in kept} | {"evaluation": evaluation, "failure": document["failure"]}
    return found | {"peak_reserved_gib": round(training.get("peak_gpu_reserved_bytes", 0) / 2**30, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=Path, default=Path("../shared/data"))
    parser.add_argument("--backend", choices=("unsloth", "peft"), default="unsloth")
    parser.add_argument("--steps", type=int, default=0, help="so many, with a few rows; 0 for all")
    parser.add_argument("--at-once", type=int, default=4, help="beside each other; one with --steps")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    asked = parser.parse_intermixed_args()
    asked.folder = asked.folder.absolute()
    asked.folder.mkdir(parents=True, exist_ok=True)
    model_dir()
    with ThreadPoolExecutor(1 if asked.steps else asked.at_once) as pool:
        for done in as_completed([pool.submit(run, name, asked) for name in asked.cases or CASES]):
            print(json.dumps(done.result()), flush=True)


if __name__ == "__main__":
    main()
