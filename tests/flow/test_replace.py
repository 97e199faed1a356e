"""One output, one spec after the other, as people try: what is wrong costs nothing, nothing is lost by accident."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from job.ledger.manifest import verify
from job.store import open_store
from tests.flow.running import DEMO, Result, listing, tiny, tunejob, valid_stats, write_spec

MISSPELT = {"/data/train/0/columns": {"messages": "mesages"}}
CHANGED = {"/training/learning_rate": 0.02}


def broken(folder: Path) -> str:
    """Rows of which the first is sound."""
    path = folder / "broken.jsonl"
    path.write_text((DEMO / "train.jsonl").read_text("utf-8").splitlines()[0] + '\n{"messages": 1}\n', "utf-8")
    return str(path)


def test_a_typo_costs_nothing(tmp_path: Path) -> None:
    output = tmp_path / "tiny"

    def tried(changes: dict[str, Any], *options: str) -> Result:
        spec = write_spec(tmp_path / "spec.json", tiny(tmp_path / "{name}", changes))
        return tunejob("run", spec, *options, scratch=tmp_path / "scratch")

    assert tried(MISSPELT).failure["pointer"] == "/data/train/0/columns"
    assert not output.exists(), "it is seen before anything is written"
    late = tried({"/data/train/0": {"source": broken(tmp_path), "format": "messages"}})
    assert late.failure["exit_code"] == 11
    assert {path.name for path in output.iterdir()} == {"stats.json", "checkpoints"}
    assert valid_stats(output / "stats.json")["failure"]["exit_code"] == 11

    mended = tried({})
    assert mended.exit_code == 0, mended.stdout[-2000:] + mended.stderr[-2000:]
    assert {event["output"] for event in mended.named("start") + mended.named("published")} == {str(output)}
    first = verify(open_store(str(output)))

    other = tried(CHANGED)
    assert other.exit_code == 11
    assert "/training/learning_rate" in other.failure["found"]
    assert (
        other.failure["all"][1]
        == "/training/learning_rate: this key differs from the stored run's (found 0.02); expected 0.01"
    )

    before = listing(output)
    misspelt = tried(MISSPELT, "--replace")
    assert misspelt.failure["pointer"] == "/data/train/0/columns"
    assert listing(output) == before, "what is to be replaced stays"

    anew = tried({}, "--replace")
    assert anew.exit_code == 0, anew.stdout[-2000:] + anew.stderr[-2000:]
    assert [(event["objects"], event["note"]) for event in anew.named("replaced")] == [
        (len(first.files) + 1, "nothing else is there")
    ]
    assert anew.named("train"), "the same spec is trained again"
    again = verify(open_store(str(output)))
    assert (again.run_id, [file.key for file in again.files]) == (first.run_id, [file.key for file in first.files])
    assert not [path for path in (output / "checkpoints").rglob("*") if path.is_file()]
