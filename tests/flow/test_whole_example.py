"""schemas/examples/everything.json, run: each of its keys, at places and in sizes that this machine has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from job.evaluation.metrics import METRICS
from job.ledger.manifest import verify
from job.spec import parse_spec
from job.store import open_store
from tests.contract.test_examples import EXAMPLES, pointers
from tests.flow.running import Result, fits_events, tunejob, write_spec
from tests.flow.test_benchmarks import PACKAGES, needs_lm_eval
from tests.flow.test_exports import quantised_base
from tests.judge_server import judge_server
from tests.servers import S3Server, hub_server
from tests.tiny import wide_dir

pytestmark = pytest.mark.slow
LOOSE = 1000.0
# What is not as in the example, and why.
SMALLER: dict[str, dict[str, Any]] = {
    "a CPU has neither": {"/model/backend": "peft", "/data/packing": False},
    "a small model trains for a few steps": {
        "/model/max_seq_length": 128, "/lora/r": 4,
        "/training/batch_size": 4, "/training/gradient_accumulation_steps": 1,
        "/training/eval_steps": 4, "/training/logging_steps": 1, "/training/epochs": 1, "/evaluation/max_new_tokens": 6,
        "/evaluation/exact_match_rows": 4, "/evaluation/tasks/0/limit": 3,
        "/export/imatrix_tokens": 1024, "/export/check_tokens": 128,
        "/output/checkpoints/every_steps": 4, "/data/max_untrained_fraction": 0.5,
    },
    "and learns nothing by them": {
        "/evaluation/gates/0/at_most": LOOSE, "/evaluation/gates/0/gain_at_least": -LOOSE,
        "/evaluation/gates/1/rise_at_most": 1e9,
        "/evaluation/gates/2/at_least": 0, "/evaluation/gates/3/rise_at_most": LOOSE,
        "/evaluation/judge/min_agreement": 0,
        "/export/limits/merged_4bit_kl": LOOSE, "/export/limits/gguf/0/kl": LOOSE,
        "/export/limits/gguf/0/perplexity_rise": LOOSE,
        "/export/limits/merged_kl": 1.0, "/export/limits/merged_logits": 1.0,
    },
}  # fmt: skip


def example(bucket: str) -> dict[str, Any]:
    """The example with these changes, in `bucket` instead of in three."""
    document: dict[str, Any] = json.loads(
        EXAMPLES["everything"].read_text("utf-8").replace('"s3://', f'"s3://{bucket}/')
    )
    for changes in SMALLER.values():
        for pointer, value in changes.items():
            *path, last = pointer.split("/")[1:]
            place: Any = document
            for part in path:
                place = place[int(part)] if isinstance(place, list) else place[part]
            assert last in place
            place[last] = value
    return document


def chat(number: int) -> dict[str, Any]:
    asked, answer = {"human": f"Is {number} odd?"}, {"gpt": ("No", "Yes")[number % 2]}
    return {"conversations": [{"from": who, "value": text} for each in (asked, answer) for who, text in each.items()]}


def rows() -> dict[str, list[dict[str, Any]]]:
    """By object, in the forms that the example names."""
    both = [{"role": "user", "content": "Warm?"}, {"role": "assistant", "content": "Yes"}]
    return {
        "data/calls/train.jsonl": [chat(number) | {"tools": None, "system": "Be short."} for number in range(3)],
        "data/chats/train.jsonl": [{"dialog": both} for _ in range(3)],
        "data/pairs.csv": [],
        "data/books.jsonl": [{"content": "Once upon a time there was a lamp."}] * 2,
        "data/medqa.jsonl": [{"question": "Which?", "answer": "this"}] * 3,
    }


def benchmarks() -> dict[str, dict[str, bytes]]:
    """By data set, its files: questions with choices, and cases with labels."""
    choices = {"label": ["A", "B"], "text": ["a lamp", "a fan"]}
    asked = [
        {"question": f"What is {number}?", "choices": choices, "answerKey": "AB"[number % 2]} for number in range(7)
    ]
    cases = [{"case": f"Case {number}.", "label": ("urgent", "not urgent")[number % 2]} for number in range(4)]
    return {
        "allenai/ai2_arc": {f"ARC-Easy/{split}.jsonl": lines(asked) for split in ("train", "validation", "test")},
        "org/cases": {"test.jsonl": lines(cases)},
    }


def lines(found: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in found).encode()


def fill(s3: S3Server, bucket: str, folder: Path) -> None:
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    objects = {key: lines(found) for key, found in rows().items()}
    objects["data/pairs.csv"] = b"question,answer\n" + b"".join(b"Cold %d?,No\n" % number for number in range(3))
    objects["data/books.jsonl.gz"] = gzip.compress(objects.pop("data/books.jsonl"))
    alpaca = [{"query": f"Say {number}.", "context": "Loudly.", "response": "Yes"} for number in range(3)]
    pq.write_table(pa.Table.from_pylist(alpaca), folder / "alpaca.parquet")
    objects["data/alpaca.parquet"] = (folder / "alpaca.parquet").read_bytes()
    for key, body in objects.items():
        s3.client().put_object(Bucket=bucket, Key=key, Body=body)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def whole(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Result]]:
    folder, bucket = tmp_path_factory.mktemp("whole"), s3.new_bucket()
    fill(s3, bucket, folder)
    with hub_server() as hub, judge_server() as judge:
        hub.repo("unsloth/Llama-3.2-1B-Instruct").commit(files_of(wide_dir()))
        hub.repo("unsloth/Llama-3.2-1B-Instruct-bnb-4bit").commit(
            files_of(quantised_base(folder / "packed", wide_dir()))
        )
        hub.repo("datasets/mlabonne/FineTome-100k").commit(
            {"train.jsonl": lines([chat(number) for number in range(40)])}
        )
        asked = [{"role": "user", "content": "Hot?"}, {"role": "assistant", "content": "Yes"}]
        hub.repo("datasets/HuggingFaceH4/no_robots").commit(
            {"test.jsonl": lines([{"messages": asked}] * 5), "train.jsonl": b"{}\n"}
        )
        for name, files in benchmarks().items():
            hub.repo(f"datasets/{name}").commit(files)
        ours = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token, "TUNEJOB_LEASE_SECONDS": "60"}
        extra = s3.environment() | judge.environment() | ours | {"TUNEJOB_TEST_PACKAGES": str(PACKAGES)}
        spec = write_spec(folder / "spec.json", example(bucket))
        yield f"s3://{bucket}/models/everything", tunejob("run", spec, scratch=folder / "scratch", extra=extra)


def test_it_sets_every_key_of_the_example() -> None:
    """What it changes are values."""
    document = example("bucket")
    assert set(pointers(json.loads(EXAMPLES["everything"].read_bytes()))) <= set(pointers(document))
    parse_spec(json.dumps(document).encode())


@needs_lm_eval
@pytest.mark.long
def test_the_whole_example_runs(whole: tuple[str, Result], monkeypatch: pytest.MonkeyPatch, s3: S3Server) -> None:
    output, result = whole
    assert result.exit_code == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert fits_events(result.events) == []
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    store = open_store(output)
    listed = {file.key.partition("/")[0] for file in verify(store).files}
    assert listed >= {"adapter", "merged", "merged_4bit", "gguf", "report", "README.md", "spec.json", "stats.json"}
    stats = json.loads(store.read("stats.json"))
    asked = {
        "held_out_loss",
        "perplexity",
        "general_loss",
        "exact_match",
        "regex",
        "choice",
        "token_f1",
        "chrf",
        "judge_win_rate",
    }
    ours = {"arc_easy:acc", "arc_easy:acc_norm", "triage:acc", "triage:acc_norm"}
    assert asked | ours <= set(stats["evaluation"]["trained"]) <= set(METRICS) | ours
    assert ours & set(stats["delivered"]["artefacts"]["merged"]) == {"arc_easy:acc", "arc_easy:acc_norm"}
    assert stats["data"]["replay"]["sequences"] > 0
    assert {event["commit"] for event in result.named("pushed")}
    assert stats["training"]["checkpoints"] > 0
    assert stats["cost"]["price_per_hour"] == 2.49
