"""The command: arguments, exit code, termination message; nothing else."""

from __future__ import annotations

import argparse
import codecs
import json
import locale
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from job.arguments import parser
from job.errors import Fault, JobError, SpecError, classify
from job.errors.facts import failure_facts
from job.host.credentials import settle_credentials
from job.host.log import Log
from job.host.proxies import settle_bypass
from job.host.signals import defer_forever, ignore
from job.host.streams import LastingStream, harmless, reopen_streams, settle_streams

if TYPE_CHECKING:
    from collections.abc import Callable

    from job.seen import Seen
    from job.spec import JobSpec

TERMINATION_VARIABLE = "TUNEJOB_TERMINATION_LOG"
TERMINATION_LOG = "/dev/termination-log"
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
    from job.seen import look_to_validate
    from job.spec import parse_spec

    spec = parse_spec(read_spec(arguments.spec))
    note_trackers(spec, log)
    if not arguments.spec_only:
        say_seen(look_to_validate(spec, Path(arguments.spec).parent), log)
    log("valid", name=spec.name, run_id=spec.run_id, output=spec.output.uri)


def say_seen(seen: Seen, log: Log) -> None:
    """Notes on what works and may surprise. Raises what will not work."""
    for pointer, text in [*seen.remarks, *seen.notes]:
        log("note", pointer=pointer, text=text)
    if failure := seen.failure():
        raise failure


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

    text = json.dumps(load_schema("job"), indent=2)
    if arguments.output:
        Path(arguments.output).write_text(f"{text}\n", "utf-8")
    else:
        print(text, file=log.stream, flush=True)


def command_verify(arguments: argparse.Namespace, log: Log) -> None:
    from job.ledger.evidence import require_result
    from job.ledger.manifest import MANIFEST, verify
    from job.store import open_store

    store = open_store(arguments.output)
    require_result(store, MANIFEST)
    manifest = verify(store)
    log("verified", run_id=manifest.run_id, files=len(manifest.files), bytes=sum(f.bytes for f in manifest.files))


def command_report(arguments: argparse.Namespace, log: Log) -> None:
    from job.follow.outcome import read_report

    print(harmless(log.redact(read_report(arguments.output))), file=log.stream, flush=True)


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
                summary.write(harmless(log.redact(outcome.markdown())))
        except OSError as error:  # the Job's code is worth more
            log("summary", note="the summary could not be written", reason=str(error))
    log("ended", name=outcome.name, exit_code=outcome.exit_code, reason=outcome.reason)
    return outcome.exit_code


def command_render(arguments: argparse.Namespace, log: Log) -> None:
    from job.render import TARGETS, render
    from job.render.options import options
    from job.spec import parse_spec

    out, log.stream = log.stream, sys.stderr  # a file for a pipe: nothing else may come out of it
    chosen = options(
        arguments.image, arguments.name, arguments.namespace, arguments.queue, arguments.parameters, arguments.gpus
    )
    raw = read_spec(arguments.spec)
    text = render(raw, arguments.to, chosen)
    spec = parse_spec(raw)
    note_trackers(spec, log)
    if TARGETS[arguments.to].takes_paths:
        note_paths(spec, log)
    if arguments.output:
        Path(arguments.output).write_text(text, "utf-8", newline="")
    else:
        print(text, end="", file=out, flush=True)


def note_paths(spec: JobSpec, log: Log) -> None:
    """What a container would find wrong with this machine's paths: the file may be made before they are."""
    from job.seen import look

    seen = look(spec)
    faults = [fault for error in seen.failures for fault in error.faults]
    said = [(fault.where, str(replace(fault, where=""))) for fault in faults]
    for pointer, text in [*said, *seen.remarks, *seen.notes]:
        log("note", pointer=pointer, text=text)


def command_init(arguments: argparse.Namespace, log: Log) -> None:
    from job.init.propose import Asked, propose
    from job.init.write import refuse_to_overwrite, write

    out = log.stream
    if not arguments.output:
        log.stream = sys.stderr  # a spec for a pipe: nothing else may come out of it
    refuse_to_overwrite(arguments.output, arguments.force)
    given = Asked(arguments.rows, arguments.split, arguments.columns, arguments.model, arguments.gpu, arguments.name)
    write(propose(given, alone=True), arguments.output, out, log)


def command_run(arguments: argparse.Namespace, log: Log) -> None:
    from job.plan.scratch import WORKDIR_VARIABLE, make_scratch
    from job.run import run_job
    from job.spec import parse_spec

    spec = parse_spec(read_spec(arguments.spec))
    kept = arguments.workdir or os.environ.get(WORKDIR_VARIABLE)
    workdir = make_scratch(kept, spec)
    divert_vendor_output(log, workdir)
    try:
        run_job(spec, workdir, log, consent(log) if arguments.replace else None)
    except JobError as error:
        error.run_id = spec.run_id
        raise
    finally:
        if not kept:
            os.chdir("/")
            shutil.rmtree(workdir, ignore_errors=True)


def consent(log: Log) -> Callable[[str], bool]:
    """Asks on a terminal, and only there: elsewhere nobody answers, and the option has said it."""

    def confirm(question: str) -> bool:
        if not sys.stdin.isatty():
            return True
        if log.json_lines:
            print(harmless(log.redact(question)), file=sys.stderr, flush=True)
        else:
            log.say(question)
        return sys.stdin.readline().strip().lower() == "yes"

    return confirm


def divert_vendor_output(log: Log, workdir: Path) -> None:
    """Keeps our stream ours: what libraries print goes to stderr, or to a file where a live display is shown."""
    sys.stdout.flush()
    log.stream = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    target = os.open(workdir / "vendor.log", os.O_WRONLY | os.O_CREAT, 0o644) if not log.json_lines else 2
    os.dup2(target, 1)
    if target != 2:
        os.dup2(target, 2)
    sys.stdout = sys.stderr = LastingStream(sys.stderr, log.redact)


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
    facts = failure_facts(log.clean(error), error.stage or stage, error.run_id)
    say_last_words(facts, log)
    if log.json_lines:
        log("failed", **facts, **({"all": error.lines()} if len(error.faults) > 1 else {}))
    else:  # each fault whole, once, and what scripts go by
        for line in error.lines():
            log.say(f"  {line}")
        log("failed", **{key: facts[key] for key in ("class", "exit_code", "stage", "run_id", "faults") if facts[key]})
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
    log = Log()
    sys.stderr = cast("TextIO", LastingStream(sys.stderr, log.redact))
    try:
        arguments = parser().parse_args(argv)
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

            print(log.redact(traceback.format_exc()), file=LastingStream(sys.stderr if log.json_lines else log.stream))
        return report_failure(failure, arguments.command if "arguments" in locals() else "arguments", log)
    return exit_code or 0


if __name__ == "__main__":
    # -m puts the current directory there, and a datasets.py in it would be imported
    sys.path[0] = str(Path(__file__).parents[1])
    sys.exit(main())
