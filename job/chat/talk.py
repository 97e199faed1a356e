"""`tunejob chat`: questions to what a run has made; a conversation on a terminal, else an answer for each line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO

from job.chat.answering import ChatOptions, Speaker, opened
from job.chat.published import Published, open_trained
from job.errors import InputError
from job.host.log import Log
from job.host.streams import divert
from job.host.temporary_folder import temporary_folder
from job.plan.scratch import WORKDIR_VARIABLE
from job.training.environment import prepare_environment

ANEW, QUESTION = "/new", "> "
ASKED = "What it has trained is stored, and answers here; nothing is published"
WELCOME = f"An empty line ends the conversation, {ANEW} begins another one."


@contextmanager
def scratch_of(published: Published, kept: str | None) -> Iterator[Path]:
    """A folder for what is fetched: below `kept`, where the next chat finds it again, or one that goes."""
    if kept:
        folder = Path(kept).resolve() / f"chat-{published.manifest.run_id}"
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    else:
        with temporary_folder("tunejob-chat-") as temporary:
            yield temporary


def chat(output: str, asked: ChatOptions, prompt: str | None, workdir: str | None, log: Log) -> None:
    """Answers `prompt`, or what comes on standard input. Raises what cannot be fetched, opened or asked.

    On standard output there are answers and nothing else, unless it and standard input are a terminal.
    """
    at_terminal = prompt is None and sys.stdin.isatty() and log.stream.isatty()
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    published = open_trained(output)
    with scratch_of(published, workdir or os.environ.get(WORKDIR_VARIABLE)) as scratch:
        prepare_environment(scratch)
        out = divert(scratch / "vendor.log", log.redact, native=False)
        log.stream = out if at_terminal else log.aside
        if published.unfinished:
            log("note", text=f"this run has not finished: {published.unfinished}. {ASKED}")
        with log.live("opens the model") as bar, opened(published, asked, scratch) as speaker:
            bar.end()
            if at_terminal:
                log.say(f"{published.spec.name}: {speaker.what}. {WELCOME}")
                converse(speaker, sys.stdin, log)
            else:
                answers = Log(out, json_lines=False)
                answers.redact = log.redact
                lines = [prompt] if prompt is not None else sys.stdin
                answer_lines(speaker, lines, answers, whole=prompt is not None)


def answer_lines(speaker: Speaker, lines: Iterable[str], out: Log, whole: bool) -> None:
    """One answer for each line, each by itself, on one line unless `whole`: a line break in it is written as \\n."""
    for line in lines:
        question = line.rstrip("\r\n")
        text = speaker.reply([{"role": "user", "content": question}])[0] if question.strip() else ""
        out.say(text if whole else text.replace("\\", "\\\\").replace("\n", "\\n"))


def converse(speaker: Speaker, questions: IO[str], log: Log) -> None:
    """A conversation that remembers what was said, until an empty line or the end of the input."""
    messages: list[dict[str, str]] = []
    while True:
        log.stream.write(QUESTION)
        log.stream.flush()
        try:
            question = questions.readline().strip()
        except KeyboardInterrupt:
            question = ""
        if not question:
            return
        if question == ANEW:
            messages = []
            continue
        messages.append({"role": "user", "content": question})
        try:
            with log.live("answers"):
                text, dropped = speaker.reply(messages)
        except (InputError, KeyboardInterrupt) as error:
            log.say(str(error.faults[0]) if isinstance(error, InputError) else "(broken off)")
            messages.pop()
            continue
        messages = [*messages[dropped:], {"role": "assistant", "content": text}]
        if dropped:
            log.say(f"(the oldest {dropped} messages have no room any more)")
        log.say(f"{text}\n")
