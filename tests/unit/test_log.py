"""JSON lines that a machine can read, and no secret in them in any form."""

from __future__ import annotations

import base64
import io
import json
import os
import pty
import re
import select
import termios
import time
from urllib.parse import quote

import pytest

from job.host import log as log_module
from job.host.log import Log, Secret
from job.host.screen import width_of
from job.host.streams import LastingStream
from job.report.spoken import words

KEY = "s3cr+t/with=odd&chars"


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    return KEY


def test_an_event_is_one_json_line() -> None:
    stream = io.StringIO()
    Log(stream, json_lines=True)("step", loss=0.5, text="two\nlines")
    (line,) = stream.getvalue().splitlines()
    assert {key: value for key, value in json.loads(line).items() if key != "time"} == {
        "event": "step",
        "loss": 0.5,
        "text": "two\nlines",
    }


@pytest.mark.parametrize("form", [str, lambda k: quote(k, safe=""), lambda k: base64.b64encode(k.encode()).decode()])
def test_a_secret_is_masked_in_every_form(secret: str, form: object) -> None:
    stream = io.StringIO()
    shown = form(secret)  # type: ignore[operator]
    Log(stream, json_lines=True)("note", text=f"before {shown} after")
    LastingStream(stream, Log(stream).redact).write(f"vendor prints {shown}")
    assert shown.rstrip("=") not in stream.getvalue()
    assert stream.getvalue().count("[secret]") == 2


def test_a_secret_shows_itself_only_when_asked() -> None:
    assert f"{Secret('x')} {Secret('x')!r}" == "[secret] [secret]"
    assert Secret("x").reveal() == "x"
    assert not Secret("")


def test_a_bar_elsewhere_than_on_a_terminal_shows_the_end() -> None:
    stream = io.StringIO()
    with Log(stream, json_lines=True).bar("data", every_seconds=3600) as bar:
        for done in range(1, 101):
            bar.update_total(done, 100)
    steps_done = [json.loads(line)["done"] for line in stream.getvalue().splitlines()]
    assert steps_done[-1] == 100
    assert len(steps_done) <= 2


PACES = [(10, 60, [1, 200]), (0, 60, [1, *range(11, 200, 10), 200]), (10, 0, [*range(1, 201)])]


@pytest.mark.parametrize(("soonest", "latest", "told"), PACES)
def test_a_line_of_progress_is_written_now_and_then(
    soonest: int, latest: int, told: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a training the first and the last step, between them one a twentieth, but none at once and one in time."""
    monkeypatch.setattr(log_module, "SOONEST_SECONDS", soonest)
    monkeypatch.setattr(log_module, "LATEST_SECONDS", latest)
    stream = io.StringIO()
    log = Log(stream, json_lines=False, words=words)
    with log.bar("train", 200, every_seconds=0.0) as bar:
        for step in range(1, 201):
            bar.update(step, loss=2.0, learning_rate=1e-4, tokens_per_second=1234.0, eta_seconds=7500)
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith("train      step 1 of 200: loss 2, learning rate 0.0001, 1,234 tokens/s, 2:05:00 left")
    assert [int(line.partition(" step ")[2].partition(" ")[0]) for line in lines] == told


def test_what_has_no_figures_has_a_line_only_where_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    log = Log(stream, json_lines=False, words=words)
    with log.live("merge", 4) as bar:
        bar.update(2)
        monkeypatch.setattr(log_module, "SOONEST_SECONDS", 0)
        bar.update(3)
    assert [line.split(maxsplit=1)[1] for line in stream.getvalue().splitlines()] == ["merge      3 of 4"]


@pytest.mark.parametrize("json_lines", [True, False])
def test_nothing_in_a_line_is_obeyed_by_a_terminal(json_lines: bool) -> None:
    stream = io.StringIO()
    log = Log(stream, json_lines=json_lines)
    text = "\x1b]0;title\x07 \x1b[2J \x9b2J \x7f \r é \u202e\u2069\u2028\u200f\ufeff\U000e0041 שלום مرحبا 👩\u200d🔬"
    log("note", text=f"{text} \x1b[31mred\x1b[0m")
    log.say("\x1b]52;c;cm0gLXJmIC8=\x07 passed on")
    said = stream.getvalue()
    assert not set(said) & {*map(chr, range(32)), *map(chr, range(127, 160))} - {"\n"}
    assert said.count("\n") == 2
    assert "title" in said
    assert "é" in said
    assert not set(said) & set("\u202e\u2069\u2028\u200f\ufeff\U000e0041")
    assert "שלום مرحبا 👩\u200d🔬" in said
    if json_lines:
        assert json.loads(said.splitlines()[0])["text"].startswith(text)


def read_all(master: int) -> str:
    """What was written to a pseudo-terminal so far."""
    parts = []
    while select.select([master], [], [], 0.1)[0]:
        parts.append(os.read(master, 1 << 16))
    return b"".join(parts).decode()


def test_what_takes_long_has_a_bar_on_a_terminal_and_lines_stay_above_it() -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        log = Log(stream)
        with log.stage("merge"), log.live("stores a"):
            time.sleep(0.3)
            log("note", text="soon")
        early = read_all(master)
        with log.stage("train"), log.bar("train", 4) as bar:
            bar.update(1, loss=0.25)
            time.sleep(2.6)
            log("note", text="late")
            bar.update(4)
        log.end_bars()
        log.say("the end")
        late = read_all(master)
    os.close(master)
    assert "so far" not in early
    assert "note       text soon" in early
    assert "train" in late
    assert "1 of 4, 0:02 so far" in late
    assert "0.25 loss" in late
    assert late.index("1 of 4") < late.index("note       text late") < late.index("the end")
    assert "so far" not in late[late.index("the end") :]


def test_the_width_is_that_of_the_terminal_that_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever standard input, output and error are; none of a file, and none of a terminal that does not know."""
    monkeypatch.delenv("COLUMNS", raising=False)
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        assert width_of(stream) is None
        termios.tcsetwinsize(slave, (50, 200))
        assert width_of(stream) == 200
        with Log(stream).bar("train", 4) as bar:
            bar.update(1, loss=0.25, tokens_per_second=1.0)
            time.sleep(2.6)
        assert "1 tokens/s" in read_all(master), "for which a narrow one has no room"
    os.close(master)
    assert width_of(io.StringIO()) is None


@pytest.mark.parametrize(("columns", "speed"), [(80, False), (160, True)])
def test_a_bar_stays_on_its_line(columns: int, speed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapped one is drawn again below itself by some terminals."""
    master, slave = pty.openpty()
    monkeypatch.setenv("COLUMNS", str(columns))
    with os.fdopen(slave, "w") as stream:
        log = Log(stream)
        with log.stage("baseline"), log.bar("baseline", 12345) as bar:
            bar.update(1000, loss=0.12345, tokens_per_second=12345.678)
            time.sleep(2.4)
            bar.update(1001, loss=0.12345, tokens_per_second=12345.678)
            time.sleep(0.4)
        log.end_bars()
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", read_all(master))
    os.close(master)
    lines = [line.rstrip() for line in re.split("[\r\n]+", shown) if " so far" in line]
    assert lines
    assert {("0.1235 loss" in line, "tokens/s" in line) for line in lines} == {(True, speed)}, "\n".join(lines)
    assert max(map(len, lines)) <= columns


def test_a_bar_for_people_alone_says_nothing_in_json() -> None:
    stream = io.StringIO()
    log = Log(stream, json_lines=True)
    with log.stage("merge"), log.live("stores a", 2) as bar:
        bar.update(2)
    assert stream.getvalue() == ""


def test_an_answer_stays_on_its_line() -> None:
    """A model may answer what looks like further lines of the log."""
    fields = {"prompt": "Who?\n", "answer": "Me.\n   0:01  published", "reference": "You.\r\nBoth."}
    assert words("answer", fields) == "Who? → Me. 0:01 published (expected You. Both.)"
