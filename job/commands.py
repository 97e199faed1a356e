"""What each command of `tunejob` does. What it needs is imported when it is called: a spec is refused in a moment."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from job.errors import DeviceError, Interrupted, JobError
from job.host.log import Log
from job.host.output_file import require_folder, write_output
from job.host.streams import divert, harmless, last_printed
from job.host.temporary_folder import temporary_folder
from job.preview.spec_file import read_spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from job.host.watched import Watched
    from job.preview.seen import Seen
    from job.spec import JobSpec

VENDOR_LOG = "vendor.log"  # in scratch: what libraries print
UNEXPLAINED = (JobError.exit_code, DeviceError.exit_code)


def command_validate(arguments: argparse.Namespace, log: Log) -> None:
    from job.preview.all_faults import parse_and_look
    from job.preview.seen import look_to_validate

    spec = parse_and_look(read_spec(arguments.spec), with_files=not arguments.spec_only)
    note_packages(spec, log)
    if not arguments.spec_only:
        say_seen(look_to_validate(spec, Path(arguments.spec).parent), log)
    log("valid", name=spec.name, run_id=spec.run_id, output=spec.output.uri)


def say_seen(seen: Seen, log: Log) -> None:
    """Notes on what works and may surprise. Raises what will not work."""
    for pointer, text in [*seen.remarks, *seen.notes]:
        log("note", pointer=pointer, text=text)
    if failure := seen.failure():
        raise failure


def note_packages(spec: JobSpec, log: Log) -> None:
    """Says what a run in the plain image will refuse: a machine with its own packages may have them."""
    from job.preview.image_parts import missing

    for fault in missing(spec, parts=()):
        text = f"{fault.message}, and there a run ends at once with exit 11: it takes {fault.expected}"
        log("note", pointer=fault.where, text=text)


def command_schema(arguments: argparse.Namespace, log: Log) -> None:
    from job.spec.strict import load_schema

    text = json.dumps(load_schema("job"), indent=2)
    if arguments.output:
        write_output(arguments.output, f"{text}\n", "-o")
    else:
        print(text, file=log.stream, flush=True)


def command_verify(arguments: argparse.Namespace, log: Log) -> None:
    from job.ledger.evidence import require_result
    from job.ledger.latest import run_at
    from job.ledger.manifest import MANIFEST, verify
    from job.store import open_store

    store = open_store(run_at(arguments.output))
    require_result(store, MANIFEST)
    manifest = verify(store)
    log("verified", run_id=manifest.run_id, files=len(manifest.files), bytes=sum(f.bytes for f in manifest.files))


def command_report(arguments: argparse.Namespace, log: Log) -> None:
    if arguments.score_sheet or arguments.scores:
        text = score(arguments)
    else:
        from job.follow.outcome import read_report
        from job.ledger.latest import run_at

        text = read_report(run_at(arguments.output)) + "\n"
    print(harmless(log.redact(text)), end="", file=log.stream, flush=True)


def score(arguments: argparse.Namespace) -> str:
    """Writes the sheet for people, or says what they wrote into it."""
    from job.ledger.latest import run_at
    from job.report.scores import pairs_of, read_scores, scored, write_sheet

    pairs = pairs_of(run_at(arguments.output))
    if arguments.scores:
        return scored(read_scores(pairs, Path(arguments.scores)))
    sheet = Path(arguments.score_sheet)
    write_sheet(pairs, sheet)
    return f"{len(pairs)} pairs of answers are in {sheet}; scored: tunejob report --scores FILE OUTPUT\n"


def command_compare(arguments: argparse.Namespace, log: Log) -> None:
    from job.ledger.latest import run_at
    from job.report.compare import compare, require_several
    from job.report.compare_text import as_json, as_text

    require_several(arguments.outputs)
    if arguments.html:
        require_folder(arguments.html, "--html")
    found = compare([run_at(output) for output in arguments.outputs], arguments.by, arguments.price)
    if arguments.html:
        from job.report.page.compare import compare_page

        write_output(arguments.html, log.redact(compare_page(found)), "--html")
    text = as_json(found) if arguments.json else as_text(found)
    print(harmless(log.redact(text)), end="", file=log.stream, flush=True)


def command_chat(arguments: argparse.Namespace, log: Log) -> None:
    from job.chat.answering import ChatOptions
    from job.chat.talk import chat
    from job.ledger.latest import run_at

    asked = ChatOptions(arguments.gguf, arguments.base, arguments.base_from, arguments.max_new_tokens)
    chat(run_at(arguments.output), asked, arguments.prompt, arguments.workdir, log)


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
    from job.preview.quoted import parse_unquoted
    from job.render import TARGETS, image_note, render
    from job.render.options import RenderArguments, options

    out, log.stream = log.stream, sys.stderr  # a file for a pipe: nothing else may come out of it
    given = {field.name: getattr(arguments, field.name) for field in fields(RenderArguments)}
    chosen = options(RenderArguments(**given))
    raw = read_spec(arguments.spec)
    text = render(raw, arguments.to, chosen)
    spec = parse_unquoted(raw)
    if note := image_note(arguments.to, chosen):
        log("note", pointer="--image", text=note)
    if TARGETS[arguments.to].takes_paths:
        note_paths(spec, log)
    if arguments.output:
        write_output(arguments.output, text, "-o")
    else:
        print(text, end="", file=out, flush=True)


def note_paths(spec: JobSpec, log: Log) -> None:
    """What a container would find wrong with this machine's paths: the file may be made before they are."""
    from job.preview.seen import look

    seen = look(spec)
    faults = [fault for error in seen.failures for fault in error.faults]
    said = [(fault.where, str(replace(fault, where=""))) for fault in faults]
    for pointer, text in [*said, *seen.remarks, *seen.notes]:
        log("note", pointer=pointer, text=text)


def command_init(arguments: argparse.Namespace, log: Log) -> None:
    from job.init.propose import InitOptions, propose
    from job.init.write import refuse_to_overwrite, write

    out = log.stream
    if not arguments.output:
        log.stream = sys.stderr  # a spec for a pipe: nothing else may come out of it
    refuse_to_overwrite(arguments.output, arguments.force)
    given = InitOptions(
        arguments.rows, arguments.split, arguments.columns, arguments.model, arguments.gpu, arguments.name
    )
    write(propose(given, alone=True), arguments.output, out, log)


def command_plan(arguments: argparse.Namespace, log: Log) -> None:
    from job.preview.all_faults import parse_and_look
    from job.preview.plan import PlanOptions, make_plan
    from job.preview.text import as_markdown, as_text

    out, log.stream = log.stream, sys.stderr  # a plan for a pipe: nothing else may come out of it
    spec = parse_and_look(read_spec(arguments.spec))
    asked = PlanOptions(Path(arguments.spec).parent, arguments.sample, arguments.price, arguments.advice, alone=True)
    with temporary_folder("tunejob-plan-") as scratch:
        try:
            plan = make_plan(spec, asked, scratch, log)
        except JobError as error:
            error.run_id = spec.run_id
            raise
    if arguments.json:
        text = json.dumps(plan.document(), indent=2, ensure_ascii=False) + "\n"
    else:
        text = as_markdown(plan) if arguments.markdown else as_text(plan)
    print(harmless(log.redact(text)), end="", file=out, flush=True)
    if failure := plan.failure():
        raise failure


def command_run(arguments: argparse.Namespace, log: Log) -> None:
    from job.host.watched import Watched

    with Watched(log) as watched:
        carry_out_run(arguments, log, watched)


def carry_out_run(arguments: argparse.Namespace, log: Log, watched: Watched) -> None:
    from job.helping import run_or_help
    from job.plan.scratch import WORKDIR_VARIABLE, make_scratch
    from job.preview.all_faults import parse_and_look

    spec = parse_and_look(read_spec(arguments.spec))
    watched.begin(spec.run_id, spec.name, spec.output.uri)
    kept = arguments.workdir or os.environ.get(WORKDIR_VARIABLE)
    workdir = make_scratch(kept, spec)
    printed = workdir / VENDOR_LOG
    log.stream = divert(printed, log.redact, native=not log.json_lines)
    try:
        run_or_help(spec, workdir, log, consent(log) if arguments.replace else None)
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
