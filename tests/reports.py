"""Runs to be shown, without running them: statistics as a run writes them, and what can be hostile in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from job.report.kept import Kept, kept
from job.spec.strict import StrictValidator, load_schema
from tests.specs import parse

RUN_ID = "0123456789abcdef"
BASE = {"held_out_loss": 3.5, "perplexity": 33.115452, "exact_match": 0.0}
TUNED = {"held_out_loss": 0.5, "perplexity": 1.648721, "exact_match": 0.75}
SPEC = {
    "/name": "lamps",
    "/evaluation/exact_match_rows": 8,
    "/evaluation/prompts": ["Turn on the lamp."],
    "/evaluation/gates": [
        {"metric": "exact_match", "at_least": 0.5},
        {"metric": "held_out_loss", "gain_at_least": 1.0},
    ],
    "/export": {"merged": ["16bit"], "gguf": ["q8_0"], "imatrix": False},
}


def phase(name: str, seconds: float, **changes: Any) -> dict[str, Any]:
    sizes = dict.fromkeys(("peak_gpu_allocated_bytes", "peak_gpu_reserved_bytes", "peak_disk_bytes"), 0)
    return {"name": name, "wall_seconds": seconds, **sizes, "peak_rss_bytes": 10**9, "children": []} | changes


def split(rows: int, **changes: Any) -> dict[str, Any]:
    counts = dict.fromkeys(("dropped_rows", "truncated_rows", "duplicate_rows"), 0)
    sizes = {
        "read_rows": rows,
        "rows": rows,
        "sequences": rows,
        "tokens": 40 * rows,
        "trained_tokens": 9 * rows,
        "longest_tokens": 60,
    }
    lists = {"dropped_reasons": {}, "dropped_examples": [], "truncated_examples": []}
    return counts | sizes | lists | {"lengths": {"<=32": rows // 4, "<=64": rows - rows // 4}} | changes


PLANNED = {
    "gpu": None,
    "gpu_peak_bytes": {"planned": None, "actual": None},
    "host_peak_bytes": {"planned": None, "actual": 10**9},
    "disk_peak_bytes": {"planned": 4 * 10**9, "actual": 3 * 10**9},
    "stage_seconds": {"train": {"planned": 40.0, "actual": 50.0}},
}


def statistics(**changes: Any) -> dict[str, Any]:
    """As a run of `SPEC` writes them, `changes` to its members; they are held against the schema."""
    child = {
        "what": "merging the adapter",
        "planned_bytes": 500_000_000,
        "peak_anonymous_bytes": 510_000_000,
        "peak_rss_bytes": 600_000_000,
    }
    exported = {"kl": 0.001, "same_top_token": 0.99}
    document = {
        "version": 1, "run_id": RUN_ID, "name": "lamps", "status": "succeeded",
        "failure": None, "report": [], "wall_seconds": 90.5,
        "device": {"kind": "cpu", "name": "cpu", "total_memory_bytes": 0, "capability": None, "cpu_name": "a CPU",
                   "cpu_instructions": "AVX2", "cpu_threads": 1, "cpu_cores": 2, "host_memory_bytes": 8 * 10**9},
        "memory": {}, "planned": PLANNED, "cost": {"price_per_hour": 2.5, "hours": 0.025, "cost": 0.0625},
        "phases": [phase("data", 2.5), phase("train", 50.0), phase("merge", 5.0, children=[child])],
        "data": {"train": split(100), "held_out": split(8, also_trained=0), "held_out_words": "8 rows are held out",
                 "stop_token_ids": [2], "notes": []},
        "training": {"steps": 20, "wall_seconds": 48.0, "wall_minutes": 0.8, "tokens": 4000, "tokens_per_second": 83.3,
                     "kept": "last", "first_loss": 3.4, "final_loss": 0.45,
                     "stopped_early": False, "trainable_parameters": 1000},
        "evaluation": {"base": BASE, "trained": TUNED},
        "delivered": {"rows": {"of": "held_out", "rows": 8, "tokens": 320, "learned_tokens": 72, "all": True},
                      "merged_onto": None,
                      "artefacts": {"base": BASE, "trained": TUNED, "adapter": TUNED | exported,
                                    "merged": TUNED | exported}},
        "effective": {"backend": "peft", "packing": False}, "packages": {"torch": "2.13.0"},
    }  # fmt: skip
    whole = document | changes
    StrictValidator(load_schema("stats")).validate(whole)
    return whole


ARTEFACT = {"name": "merged", "files": ["merged/model.safetensors"], "bytes": 270_000_000, "limits": {"kl": 0.01},
            "figures": {"perplexity": 12.0, "kl": 0.001, "same_top_token": 0.999}}  # fmt: skip
REFUSED = {
    "file": "gguf/lamps-Q8_0.gguf",
    "message": "it is not within its limits",
    "found": "kl 0.7",
    "limit": "kl at most 0.05",
}
ANSWERS = [
    {"prompt": "<u>Turn on the lamp.</u>", "reference": None, "base": "What?", "trained": '{"device": "lamp"}'}
] + [
    {
        "prompt": f"<u>Question {n}</u>",
        "reference": f"answer {n}",
        "base": "?",
        "trained": f"answer {n}" if n % 4 else "wrong",
    }
    for n in range(40)
]
PROVENANCE = {
    "base": {"source": "hf://org/name", "public_id": "org/name", "revision": "0" * 40},
    "data": [{"source": "rows.jsonl", "split": "train", "revision": None, "sha256": "1" * 64}],
    "chat_template_sha256": "2" * 64,
}


def files(steps: int = 20) -> dict[str, Any]:
    """What the report of that run has, by key."""
    losses = [
        {"loss": 3.4 * 0.9**n, "learning_rate": 1e-3 * (1 - n / steps), "grad_norm": 1.0, "step": n, "epoch": 0.1}
        for n in range(1, steps + 1)
    ]
    sample = {"tokens": 12, "learned": 4, "runs": [[False, "Turn on the lamp. "], [True, "It is on."]]}
    return {
        "report/losses.jsonl": losses,
        "report/answers.json": ANSWERS,
        "report/samples.json": [sample],
        "report/exports.json": {"artefacts": [ARTEFACT], "refused": [REFUSED], "plan": []},
    }


def shown(stats: Mapping[str, Any] | None = None, given: Mapping[str, Any] | None = None,
          spec: Mapping[str, Any] | None = None, provenance: Mapping[str, Any] = PROVENANCE) -> Kept:  # fmt: skip
    """A run as its page is made of it, everything through the files that it leaves."""
    raw = {key: encoded(key, value) for key, value in (files() | dict(given or {})).items()}
    return kept(parse(SPEC | dict(spec or {})), statistics() if stats is None else stats, provenance, raw.get)


def encoded(key: str, value: Any) -> bytes:
    return (
        "".join(json.dumps(row) + "\n" for row in value).encode() if key.endswith("l") else json.dumps(value).encode()
    )


def spoiled(value: Any, change: Callable[[str], str]) -> Any:
    """A document with every text in it changed, and the names of members that nobody has fixed."""
    if isinstance(value, dict):
        return {key: spoiled(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [spoiled(inner, change) for inner in value]
    return change(value) if isinstance(value, str) else value
