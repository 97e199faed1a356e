"""Prepared rows come back from disk as they were, for a process that did not prepare them."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from job.data.build import build_dataset
from job.data.reopen import reopen, save
from job.errors import JobError
from job.host.records import build, encode
from job.spec import JobSpec, parse_spec
from tests.data_rows import byte_tokenizer_dir, fetched, job_spec, prepare, turns, write_rows

TOKENS = ("chat_template", "all_special_ids", "special_tokens_map", "eos_token_id", "pad_token_id")


def test_everything_comes_back(tmp_path: Path) -> None:
    rows = [{"messages": turns("q", f"a{number}")} for number in range(12)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    source = {"source": str(path), "format": "messages", "weight": 2.5}
    spec = job_spec([source], held_out={"rows": 4}, prompts=["p"], exact=2, shuffle=True, chat_template="chatml")
    before = build_dataset(spec, fetched(spec, [path]), None, byte_tokenizer_dir(), tmp_path, lambda done, total: None)
    after = reopen(save(before, tmp_path / "saved"), byte_tokenizer_dir())
    for name in ("train", "held_out"):
        assert getattr(after, name)[:] == getattr(before, name)[:]
        assert getattr(after, name).features == getattr(before, name).features
        assert getattr(after, name).cache_files, "memory-mapped"
    for field in fields(before):
        if field.name not in ("train", "held_out", "tokenizer"):
            assert getattr(after, field.name) == getattr(before, field.name), field.name
    assert after.exact_match
    assert after.probes
    for name in TOKENS:
        assert getattr(after.tokenizer, name) == getattr(before.tokenizer, name), name


def test_raw_text_without_held_out_rows(tmp_path: Path) -> None:
    before = prepare(tmp_path, [{"text": "one"}, {"text": "two"}], "text", model=byte_tokenizer_dir())
    after = reopen(save(before, tmp_path / "saved"), byte_tokenizer_dir())
    assert (after.train[:], after.held_out, after.template) == (before.train[:], None, "")


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    before = prepare(tmp_path, [{"text": "one"}], "text", model=byte_tokenizer_dir())
    saved = save(before, tmp_path / "saved")
    other = tmp_path / "other"
    shutil.copytree(byte_tokenizer_dir(), other)
    config = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps({**config, "unk_token": "a"}))
    with pytest.raises(JobError, match="not the one that the rows were prepared with"):
        reopen(saved, other)


def test_a_spec_goes_to_a_process_and_comes_back() -> None:
    everything = Path(__file__).parents[2] / "schemas" / "examples" / "everything.json"
    for spec in (job_spec([{"source": "/rows", "format": "text"}]), parse_spec(everything.read_bytes())):
        again = build(JobSpec, json.loads(encode(spec)))
        assert again == spec
        assert (again.resolved, again.run_id) == (spec.resolved, spec.run_id)
