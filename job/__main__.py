"""The command: arguments, exit code, termination message; nothing else."""

from __future__ import annotations

import codecs
import json
import locale
import os
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO, cast

from job import commands
from job.arguments import parser
from job.errors import JobError
from job.errors.facts import failure_facts, failure_lines
from job.host.credentials import settle_credentials
from job.host.log import Log
from job.host.proxies import settle_bypass
from job.host.signals import cause, defer_forever, ignore, install
from job.host.streams import LastingStream, reopen_streams, settle_streams
from job.host.time_limits import check_limits
from job.report.spoken import words

TERMINATION_VARIABLE = "TUNEJOB_TERMINATION_LOG"
TERMINATION_LOG = "/dev/termination-log"
NOTHING_ASKED = 2  # not a success: a container whose command was forgotten has done nothing
STOPPABLE = ("run", "verify", "wait", "plan", "init", "chat")  # a signal ends them with 30, a message and no scratch


def use_utf8() -> None:
    """Starts the command anew in Python's UTF-8 mode where the locale has another encoding: names of files, and the
    files that libraries open without naming one, are UTF-8 all the same.
    """
    foreign = not sys.flags.utf8_mode and codecs.lookup(locale.getpreferredencoding(False)).name != "utf-8"
    if foreign and os.environ.get("PYTHONUTF8") != "1":  # not again: an option of Python's may overrule it
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def say_last_words(facts: dict[str, Any], log: Log) -> None:
    """The termination message where Kubernetes reads it, if that file is there."""
    path = os.environ.get(TERMINATION_VARIABLE) or (TERMINATION_LOG if os.path.exists(TERMINATION_LOG) else "")
    if path:
        try:
            Path(path).write_text(log.redact(json.dumps(facts, ensure_ascii=False)), "utf-8")
        except OSError as error:
            log("termination", note="the termination message could not be written", reason=str(error))


def report_failure(error: JobError, stage: str, log: Log) -> int:
    stage = error.stage or stage
    facts = failure_facts(log.clean(error), stage, error.run_id)
    log.end_bars()
    if error.printed:
        log.explain(error.printed)
    if not log.json_lines:
        for line in failure_lines(error, stage):
            log.say(line)
    say_last_words(facts, log)
    said = failure_facts(error, stage, error.run_id, whole=True)
    log("failed", **said, **({"all": error.lines()} if len(error.faults) > 1 else {}))
    return error.exit_code


def main(argv: list[str] | None = None) -> int:
    if argv is None:
        use_utf8()
    reopen_streams()
    try:
        return carry_out(argv)
    finally:
        defer_forever()
        settle_streams()
        ignore()


def carry_out(argv: list[str] | None) -> int:
    """The command that is asked for; its exit code, or that of its failure."""
    log = Log(words=words)
    log.aside = sys.stderr = cast("TextIO", LastingStream(sys.stderr, log.redact))
    try:
        known = parser()
        arguments = known.parse_args(argv)
        if arguments.command is None:
            known.print_help()
            return NOTHING_ASKED
        settle_credentials()
        settle_bypass()
        if getattr(arguments, "log", "auto") != "auto":
            log.json_lines = arguments.log == "json"
        if arguments.command in STOPPABLE:
            check_limits()
            # Ctrl-C while a conversation answers ends the answer alone
            install(lambda error: report_failure(error, "stop", log), keyboard=arguments.command != "chat")
        exit_code: int | None = getattr(commands, f"command_{arguments.command}")(arguments, log)
    except BaseException as error:
        defer_forever()
        if isinstance(error, SystemExit):
            raise
        failure = error if isinstance(error, JobError) and error.stage else cause(error)  # a run has judged by itself
        if failure.exit_code == 1:
            log.explain(traceback.format_exc())
        return report_failure(failure, arguments.command if "arguments" in locals() else "arguments", log)
    return exit_code or 0


if __name__ == "__main__":
    # -m puts the current directory there, and a datasets.py in it would be imported
    sys.path[0] = str(Path(__file__).parents[1])
    sys.exit(main())
