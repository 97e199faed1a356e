"""Standard streams that are missing or that nobody reads: the work goes on, and the exit code is the work's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from job.ledger.manifest import verify
from job.store import open_store
from tests.flow.running import LIMIT_SECONDS, document, steady, tiny, write_spec
from tests.forking import COMMAND, ROOT, environment, fork

EXAMPLE = str(ROOT / "schemas" / "examples" / "demo.json")
EXPORT = {"/export": {"merged": ["16bit"], "limits": {"merged_logits": 1, "merged_kl": 1}}}
LOST = {
    "closed": "exec <&- >&- 2>&-",
    "full": "exec >/dev/full 2>/dev/full",
    "a pipe that nobody reads": "exec > >(true) 2>&1; sleep 0.2",
}


def shell(line: str, scratch: Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line.replace("@RUN", " ".join(COMMAND))], cwd=cwd,
        env=environment(scratch), capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


SAME = (
    "adapter/adapter_model.safetensors",
    "report/answers.json",
    "report/probe.safetensors",
    "merged/model.safetensors",
)


def whole(output: Path) -> None:
    listed = verify(open_store(str(output))).files
    assert {"adapter/adapter_model.safetensors", "stats.json"} <= {file.key for file in listed}


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that was started, as users do it, with every stream closed."""
    folder = tmp_path_factory.mktemp("lost")
    spec = write_spec(folder / "spec.json", tiny("out", EXPORT))
    done = shell(f"{LOST['closed']}; exec @RUN run {spec}", folder, folder)
    assert done.returncode == 0, (folder / "termination-log").read_text()
    return folder / "out"


@pytest.mark.slow
def test_a_run_whose_log_is_lost_is_whole_all_the_same(lost: Path) -> None:
    """Nor does a file that is opened first get the number of a stream that is closed, and the vendors' words in it."""
    whole(lost)


@pytest.mark.slow
def test_a_run_whose_log_nobody_reads_is_whole_all_the_same(lost: Path, tmp_path: Path) -> None:
    """And what it stores is what the one has stored that was started, not forked (`tests/forking.py`)."""
    spec = write_spec(tmp_path / "spec.json", tiny("out", EXPORT))
    reader, writer = os.pipe()
    os.close(reader)
    call = [["run", spec, "--log", "text"]]
    process = fork("job.__main__:main", call, (writer, writer), tmp_path, environment(tmp_path))
    os.close(writer)
    assert process.wait(LIMIT_SECONDS) == 0, (tmp_path / "termination-log").read_text()
    whole(tmp_path / "out")
    for name in SAME:
        assert (tmp_path / "out" / name).read_bytes() == (lost / name).read_bytes(), name
    ours, theirs = (document(output / "stats.json") for output in (tmp_path / "out", lost))
    assert steady(ours) == steady(theirs)


@pytest.mark.parametrize("lost", LOST)
def test_the_answer_is_the_exit_code(lost: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    assert shell(f"{LOST[lost]}; exec @RUN validate {EXAMPLE}", tmp_path).returncode == 0
    assert shell(f"{LOST[lost]}; exec @RUN validate {bad}", tmp_path).returncode == 10


@pytest.mark.parametrize("command", ["schema", f"render {EXAMPLE} --to docker"])
def test_a_document_that_cannot_be_written_is_not_a_success(command: str, tmp_path: Path) -> None:
    full = shell(f"@RUN {command} > /dev/full", tmp_path)
    assert full.returncode == 13
    unread = shell(f"set -o pipefail; @RUN {command} | true", tmp_path)
    assert unread.returncode == 20
    assert "Traceback" not in full.stderr + unread.stderr


def test_what_comes_out_is_utf_8_whatever_the_locale_says(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text('{"version": "\u00fc"}', "utf-8")
    done = shell(f"PYTHONIOENCODING=ascii @RUN validate {bad}", tmp_path)
    assert done.returncode == 10
    assert "\u00fc" in done.stdout or "\\xfc" in done.stdout


def test_no_standard_input_is_an_empty_spec(tmp_path: Path) -> None:
    assert shell("@RUN validate - <&-", tmp_path).returncode == 10
