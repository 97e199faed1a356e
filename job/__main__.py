"""The command: arguments, exit code, termination message; nothing else."""

from __future__ import annotations

import argparse
import codecs
import json
import locale
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from job.arguments import parser
from job.errors import DeviceError, Fault, Interrupted, JobError, SpecError, classify
from job.errors.facts import failure_facts, failure_lines
from job.host.credentials import settle_credentials
from job.host.log import Log
from job.host.proxies import settle_bypass
from job.host.signals import defer_forever, ignore
from job.host.streams import LastingStream, divert, harmless, last_printed, reopen_streams, settle_streams
from job.report.spoken import words

if TYPE_CHECKING:
    from job.spec import JobSpec

TERMINATION_VARIABLE = "TUNEJOB_TERMINATION_LOG"
TERMINATION_LOG = "/dev/termination-log"
VENDOR_LOG = "vendor.log"  # in scratch: what libraries print
NOTHING_ASKED = 2  # not a success: a container whose command was forgotten has done nothing
UNEXPLAINED = (JobError.exit_code, DeviceError.exit_code)
STOPPABLE = ("run", "verify", "wait")  # they take long: a signal ends them with 30 and a message


def read_spec(source: str) -> bytes:
    """The bytes of a spec, no more of a local one than may be. Raises `SpecError` if they cannot be read locally."""
    from job.spec.strict import MAX_BYTES

    if source == "-":
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    if source.startswith("s3://"):
        from job.store import open_store

        prefix, _, key = source.rpartition("/")
        return open_store(prefix).read(key)
    try:
        with Path(source).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SpecError(Fault(f"the spec cannot be read: {error.strerror}", found=source)) from None


def command_validate(arguments: argparse.Namespace, log: Log) -> None:
    from job.spec import parse_spec

    spec = parse_spec(read_spec(arguments.spec))
    note_trackers(spec, log)
    log("valid", name=spec.name, run_id=spec.run_id)


def note_trackers(spec: JobSpec, log: Log) -> None:
    """Says what a run in the image will refuse: a machine with its own packages may have them."""
    from job.spec.model import TRACKERS_IN_IMAGE

    absent = [name for name in spec.tracking if name not in TRACKERS_IN_IMAGE]
    if absent:
        text = (
            f"the image of this version has no package for {', '.join(absent)}: there a run ends at once with exit 11"
        )
        log("note", pointer="/tracking", text=text)


def command_schema(arguments: argparse.Namespace, log: Log) -> None:
    from job.spec.strict import load_schema

    print(json.dumps(load_schema("job"), indent=2), file=log.stream, flush=True)


def command_verify(arguments: argparse.Namespace, log: Log) -> None:
    from job.ledger.manifest import verify
    from job.store import open_store

    manifest = verify(open_store(arguments.output))
    log("verified", run_id=manifest.run_id, files=len(manifest.files), bytes=sum(f.bytes for f in manifest.files))


def command_report(arguments: argparse.Namespace, log: Log) -> None:
    from job.follow.outcome import read_report

    print(harmless(log.redact(read_report(arguments.output))), file=log.stream, flush=True)


def command_chat(arguments: argparse.Namespace, log: Log) -> None:
    from job.chat.answering import Asked
    from job.chat.talk import chat

    asked = Asked(arguments.gguf, arguments.base, arguments.base_from, arguments.max_new_tokens)
    chat(arguments.output, asked, arguments.prompt, arguments.workdir, log)


def command_wait(arguments: argparse.Namespace, log: Log) -> int:
    from job.follow.kubectl import Kubectl
    from job.follow.kubernetes import JobWatch
    from job.follow.outcome import outcome_of_log

    if arguments.job == "-":
        outcome = outcome_of_log(sys.stdin, "log", log)
    else:
        kubectl = Kubectl(arguments.namespace, arguments.poll_seconds, arguments.patience_seconds)
        outcome = JobWatch(arguments.job, kubectl, log, arguments.poll_seconds).wait()
    if arguments.summary:
        try:
            with Path(arguments.summary).open("a", encoding="utf-8") as summary:
                summary.write(log.redact(outcome.markdown()))
        except OSError as error:  # the Job's code is worth more
            log("summary", note="the summary could not be written", reason=str(error))
    log("ended", name=outcome.name, exit_code=outcome.exit_code, reason=outcome.reason)
    return outcome.exit_code


def command_render(arguments: argparse.Namespace, log: Log) -> None:
    from job.render import render
    from job.render.options import options
    from job.spec import parse_spec

    out, log.stream = log.stream, sys.stderr  # a file for a pipe: nothing else may come out of it
    chosen = options(
        arguments.image, arguments.name, arguments.namespace, arguments.queue, arguments.parameters, arguments.gpus
    )
    raw = read_spec(arguments.spec)
    text = render(raw, arguments.to, chosen)
    note_trackers(parse_spec(raw), log)
    if arguments.output:
        Path(arguments.output).write_text(text, "utf-8", newline="")
    else:
        print(text, end="", file=out, flush=True)


def command_run(arguments: argparse.Namespace, log: Log) -> None:
    from job.plan.scratch import WORKDIR_VARIABLE, make_scratch
    from job.run import run_job
    from job.spec import parse_spec

    spec = parse_spec(read_spec(arguments.spec))
    kept = arguments.workdir or os.environ.get(WORKDIR_VARIABLE)
    workdir = make_scratch(kept, spec)
    printed = workdir / VENDOR_LOG
    log.stream = divert(printed, log.redact, native=not log.json_lines)
    try:
        run_job(spec, workdir, log)
    except JobError as error:
        error.run_id = spec.run_id
        if error.exit_code in UNEXPLAINED:
            error.printed = error.printed or last_printed()
        if not isinstance(error, Interrupted):
            keep_printed(printed, bool(kept), log)
        raise
    finally:
        if not kept:
            os.chdir("/")
            shutil.rmtree(workdir, ignore_errors=True)


def keep_printed(printed: Path, stays: bool, log: Log) -> None:
    """Says where a failed run's libraries have their say; where its scratch does not stay, a copy does."""
    with suppress(OSError):  # a full disk, most likely what the run has failed of
        sys.stdout.flush()
        text = log.redact(printed.read_text("utf-8", "replace"))
        if text.strip():
            if not stays:
                descriptor, name = tempfile.mkstemp(prefix="tunejob-", suffix=".log")
                with os.fdopen(descriptor, "w", encoding="utf-8") as copy:
                    copy.write(text)
                printed = Path(name)
            log("libraries", file=str(printed))


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
    log("failed", **facts, **({"all": error.lines()} if len(error.faults) > 1 else {}))
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
        commands = parser()
        arguments = commands.parse_args(argv)
        if arguments.command is None:
            commands.print_help()
            return NOTHING_ASKED
        settle_credentials()
        settle_bypass()
        if getattr(arguments, "log", "auto") != "auto":
            log.json_lines = arguments.log == "json"
        if arguments.command in STOPPABLE:
            from job.host.signals import install
            from job.host.time_limits import check_limits

            check_limits()
            install(lambda error: report_failure(error, "stop", log))
        exit_code: int | None = globals()[f"command_{arguments.command}"](arguments, log)
    except BaseException as error:
        defer_forever()
        if isinstance(error, SystemExit):
            raise
        failure = classify(error)
        if failure.exit_code == 1:
            import traceback

            log.explain(traceback.format_exc())
        return report_failure(failure, arguments.command if "arguments" in locals() else "arguments", log)
    return exit_code or 0


if __name__ == "__main__":
    # -m puts the current directory there, and a datasets.py in it would be imported
    sys.path[0] = str(Path(__file__).parents[1])
    sys.exit(main())
