"""What of a spec can be seen from this machine in under a second: local models and rows, the output, addresses.

No network, nothing heavy, and of each file its first row. `tunejob validate` ends with it, a run begins with it.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from job.data.read import Row, place, read_numbered, remarks, why_not_at_a_glance
from job.data.select import SLICE
from job.data.sources import check_columns
from job.data.worker.messages import RowFault
from job.data.worker.shape import FORMATS, Columns, Example, Labelled, Pair, Preference, shape
from job.errors import Fault, InputError, Interrupted, JobError
from job.evaluation.judge_endpoint import URL, address
from job.evaluation.own_tasks import document_of, source_of
from job.evaluation.task_names import require_known, task_names
from job.host.log import Log
from job.hub.client import endpoint
from job.ledger.claim import examine
from job.plan.require import require_benchmarks, require_directory, require_trackers, require_vllm
from job.source.data import HUB
from job.source.given_adapter import look_at_adapter, require_rank
from job.source.glimpse import files_of_rows, has_chat_template
from job.source.place import LocalOrigin, pointed
from job.spec import JobSpec, SourceSpec
from job.spec.sections import TaskSpec, judges, places_of
from job.spec.strict import natural
from job.store import open_store
from job.store.base import translating_errors
from job.training.methods.rewards import require_allowed

Found = TypeVar("Found")
JSON = (".json", ".jsonl", ".ndjson")  # each row may have columns of its own
PRINTED = re.compile(r"\{\{[-+]?\s*([A-Za-z_]\w*)\s*(?:[-+]?\}\}|[.\[])")
GIVEN = ("self", "true", "false", "none", "True", "False", "None")  # by Jinja
PROMPTED = "prompt_completion"
# Of formats whose rows may be text: the columns of a conversation in place of these, and what is text.
CONVERSATION = {
    PROMPTED: ({"instruction": "prompt", "output": "completion"}, "prompt and completion"),
    "kto": ({"instruction": "prompt", "output": "completion"}, "prompt and completion"),
    "preference": ({"instruction": "prompt"}, "prompt, chosen and rejected"),
}
# How the Hub's models that answer in conversations are called.
CHAT_NAME = re.compile(r"(?i)(?<![a-z])(instruct|chat|it)(?![a-z])")


@dataclass
class Seen:
    """`failures` as the stages of a run would raise them; pointer and text of what works and may surprise: `notes`,
    and `remarks`, which the stages of a run make themselves.
    """

    failures: list[JobError] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[tuple[str, str]] = field(default_factory=list)

    def attempt(self, look: Callable[..., Found], *arguments: object) -> Found | None:
        try:
            return look(*arguments)
        except Interrupted:
            raise
        except JobError as error:
            self.failures.append(error)
            return None

    def failure(self) -> JobError | None:
        """All of them as one, of the class of the first in the order of the spec."""
        found = [(type(error), fault) for error in self.failures for fault in error.faults]
        found.sort(key=lambda item: natural(item[1].where))
        return found[0][0](*(fault for _, fault in found)) if found else None


def look(spec: JobSpec) -> Seen:
    """What is local in `spec`, whichever machine runs it with these paths."""
    seen = Seen()
    for uri, pointer in places_written(spec):
        seen.attempt(require_directory, uri, pointer)
    model, merge_base = spec.model.source, spec.model.merge_base
    chats: bool | None = bool(CHAT_NAME.search(model))
    if "://" not in model:
        chats = seen.attempt(has_chat_template, model, "/model/source")
    if merge_base and "://" not in merge_base:
        seen.attempt(has_chat_template, merge_base, "/model/merge_base")
    _adapters(spec, seen)
    for pointer, file in spec.training.grpo.files.items() if spec.training.grpo else ():
        seen.attempt(require_allowed, file, pointer)
    for source, pointer in spec.sources:
        if "://" not in source.source:
            seen.attempt(_rows, source, pointer, bool(chats), seen)
    for index, task in enumerate(spec.evaluation.tasks or ()):
        if task.rows is None and task_names():  # else lm-eval is not here
            seen.attempt(require_known, task.name, f"/evaluation/tasks/{index}/name", task_names())
        if task.source and "://" not in task.source:
            seen.attempt(_documents, task, f"/evaluation/tasks/{index}")
    return seen


def _adapters(spec: JobSpec, seen: Seen) -> None:
    """Each local one, and where all are, whether their ranks can be combined."""
    ranks = [
        seen.attempt(look_at_adapter, adapter, spec.lora, pointer, spec.model.adapters is not None)
        for pointer, adapter in spec.model.given
        if spec.lora and "://" not in adapter
    ]
    if spec.lora and spec.model.combine and len(ranks) == len(spec.model.given) and None not in ranks:
        seen.attempt(require_rank, ranks, spec.model.combine.method, spec.lora.r)


def look_before_a_run(spec: JobSpec) -> Seen:
    """The same, and what of this machine's packages and environment the run will need."""
    seen = look(spec)
    seen.attempt(require_trackers, spec.tracking)
    seen.attempt(require_benchmarks, spec.evaluation.tasks)
    seen.attempt(require_vllm, spec.training)
    if judges(spec):
        seen.attempt(address)
    _hub(spec, seen)
    return seen


def look_to_validate(spec: JobSpec, folder: Path) -> Seen:
    """The same for a spec in `folder` that is only looked at: it may run elsewhere, what a run
    on this machine needs is looked for where one is possible.
    """
    seen = look(spec)
    for path, pointer in paths_read(spec):
        if not os.path.exists(path) and (beside := folder / path).exists():
            text = f"{beside} is there: relative paths are those of the directory where tunejob is started"
            seen.notes.append((pointer, text))
    if find_spec("torch"):  # else nothing can be run here
        seen.attempt(require_trackers, spec.tracking)
        seen.attempt(require_benchmarks, spec.evaluation.tasks)
        seen.attempt(require_vllm, spec.training)
        if (needed := judges(spec)) and not os.environ.get(URL):
            text = f"{URL} is not set here: a run on this machine ends with exit 11"
            seen.notes.append((needed[0], text))
    _hub(spec, seen)
    return seen


def _documents(task: TaskSpec, pointer: str) -> None:
    """Of a benchmark's own source whether it is there, and of rows of one's own the first."""
    with pointed(f"{pointer}/source"):
        LocalOrigin(task.source or "", HUB)
    if task.rows is None:
        return
    path = files_of_rows(source_of(task), pointer)[0]
    if why_not_at_a_glance(path, f"{pointer}/source"):
        return
    number, row = next(read_numbered(path, f"{pointer}/source"), (0, None))
    if row is None:
        raise InputError("no rows", where=f"{pointer}/source", found=f"{path.name} is empty")
    try:
        document_of(task.rows, row)
    except ValueError as error:
        raise InputError(f"{place(path, number)}: {error}", where=f"{pointer}/rows") from None


def _hub(spec: JobSpec, seen: Seen) -> None:
    """Whether the address of the Hub, where the spec needs it, is one."""
    models = [spec.model.source, spec.model.merge_base or "", *(address for _, address in spec.model.given)]
    read = [*models, *(source.source for source, _ in spec.sources)]
    named = any(not task.source or task.source.startswith("hf://") for task in spec.evaluation.tasks or ())
    if spec.output.hub or named or any(address.startswith("hf://") for address in read):
        seen.attempt(endpoint)


def places_written(spec: JobSpec) -> Iterator[tuple[str, str]]:
    yield spec.output.uri, "/output/uri"
    if spec.output.checkpoints.uri is not None:
        yield spec.output.checkpoints.uri, "/output/checkpoints/uri"


def paths_read(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Those of this machine."""
    places = [(spec.model.source, "/model/source"), (spec.model.merge_base or "s3://", "/model/merge_base")]
    places += [(address, pointer) for pointer, address in spec.model.given]
    places += [(source.source, f"{pointer}/source") for source, pointer in spec.sources]
    places += [(path, pointer) for pointer, path in places_of(spec.evaluation.tasks)]
    places += [(file, pointer) for pointer, file in (spec.training.grpo.files.items() if spec.training.grpo else ())]
    return ((path, pointer) for path, pointer in places if "://" not in path)


# ----------------------------------------------------------------------------------------------------- rows


def _rows(spec: SourceSpec, pointer: str, chats: bool, seen: Seen) -> None:
    """Of several files, one that fits is enough: which are the split's is for the `datasets` library to say."""
    failures: list[JobError] = []
    for path in files_of_rows(spec, pointer):
        try:
            return _first_row(spec, pointer, path, chats, seen)
        except Interrupted:
            raise
        except JobError as error:
            failures.append(error)
    raise failures[0]


def _first_row(spec: SourceSpec, pointer: str, path: Path, chats: bool, seen: Seen) -> None:
    """Raises `InputError` where the first row of a file is not what the spec says."""
    where = f"{pointer}/source"
    with pointed(where), translating_errors(str(path), OSError):
        path.open("rb").close()
        if reason := why_not_at_a_glance(path, where):
            seen.remarks.append((where, f"{path.name}: its rows were not looked at: {reason}"))
            return
        number, row = next(read_numbered(path, where), (0, None))
        remarked = remarks(path, where)
    if row is None:
        raise InputError("no rows", where=where, found=f"{path.name} is empty", expected="at least 1 row")
    slice_ = SLICE.search(spec.split)
    is_used = not slice_ or slice_["start"] in (None, "0", "0%")
    if is_used or not path.name.lower().removesuffix(".gz").endswith(JSON):
        check_columns(spec, pointer, row)
        _check_templates(spec, pointer, row)
    seen.remarks += [(where, remark) for remark in remarked]
    if is_used and FORMATS[spec.format].example:
        try:
            example = shape(spec.format, row, Columns(spec.columns))
        except RowFault as error:
            raise InputError(f"{place(path, number)}: {error}", where=where) from None
        if chats and _is_raw(example):
            seen.notes.append((where, _raw_words(spec)))


def _check_templates(spec: SourceSpec, pointer: str, row: Row) -> None:
    """Raises `InputError` for a column that a template prints as it is and that `row` lacks. Templates with statements
    may give names themselves.
    """
    columns = list(map(str, row))
    faults = []
    for role, text in asdict(spec.template).items() if spec.template else ():
        if text is None or "{%" in text:
            continue
        for name in dict.fromkeys(name for name in PRINTED.findall(text) if name not in {*columns, *GIVEN}):
            near = difflib.get_close_matches(name, columns, 1)
            hint = f"Did you mean {near[0]}?" if near else ""
            what = "the template reads a column that is not there"
            place, known = f"{pointer}/template/{role}", ", ".join(columns)
            faults.append(Fault(what, where=place, found=name, expected=f"one of {known}", hint=hint))
    if faults:
        raise InputError(*faults)


def _is_raw(example: Example) -> bool:
    """Whether a prompt that is text is learned with its answers."""
    match example:
        case Preference(answer, _) | Labelled(answer):
            return isinstance(answer, Pair)
    return isinstance(example, Pair)


def _raw_words(spec: SourceSpec) -> str:
    """What is learned of prompt and answers that are text, and how they would be a conversation instead."""
    read, asked = CONVERSATION[spec.format]
    columns = {name: own for name, own in spec.columns.items() if name not in read.values()}
    columns |= {name: spec.columns.get(own, own) for name, own in read.items()}
    alpaca = {"format": "alpaca"} if spec.format == PROMPTED else {}
    said = json.dumps(alpaca | {"columns": columns}, ensure_ascii=False)[1:-1]
    return (
        f"{asked} are learned as plain text, without the model's chat template; "
        f"for questions and answers of a chat model write {said}"
    )


def require_seen(spec: JobSpec, log: Log, replaces: bool) -> None:
    """What is wrong as far as can be seen from here ends the run before it writes or imports anything: a typo costs
    nothing. A run that has finished needs its rows and its model no more, unless it is to be replaced.
    """
    seen = look_before_a_run(spec)
    failure = seen.failure()
    if failure is None:
        for pointer, text in seen.notes:
            log("note", pointer=pointer, text=text)
        return
    if not any(fault.where.startswith("/output/") for fault in failure.faults):
        with suppress(JobError):
            if not replaces and examine(open_store(spec.output.uri), spec):
                return
    raise failure
