"""The gguf stage: one conversion, then every asked type made and tested in a process of its own, several at once.

While processes work, this one uploads what they have finished. A file that fails its test does not keep the others
from being made and stored.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Self

from job.errors import GateError
from job.evaluation.metrics import metric_of
from job.export.artefacts import Artefacts, Measured
from job.export.kinds import kind_of, variant_of
from job.export.merge.onto import ADAPTED
from job.export.merge.stage import IMATRIX, REFERENCE
from job.export.tokenizer import expected_tokenizer
from job.export.trained import TRAINED_LOGITS
from job.gguf.check import Checked
from job.gguf.quality import SLACK_TOKENS, Against, AskedIds
from job.gguf.types import TYPES
from job.gguf.worker import (
    WORKER,
    Check,
    CheckLora,
    Convert,
    GgufRequest,
    Operation,
    Quantise,
    Split,
    WriteLora,
    results,
)
from job.host.cgroup import native_threads
from job.host.child import Child
from job.host.device import VISIBLE
from job.host.log import Bar
from job.plan.host_memory import Memory
from job.plan.require import cards_of_run
from job.plan.steps import GGUF_SPLIT_BYTES, takes_imatrix
from job.weights.shapes import read_shapes

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Made:
    """A GGUF that a child is making: its artefact name, the file, the process, its bar."""

    name: str
    path: Path
    child: Child
    bar: Bar


class Quants:
    """What the children of one gguf stage have in common.

    As a context manager it begins the conversion, which needs the CPU while others need the GPU, and ends it whatever
    happens. On a GPU the same process goes on to make the first types, so that only their test is left once the merge
    is compared.
    """

    def __init__(self, artefacts: Artefacts, merged: Path, device: str) -> None:
        prepared = artefacts.delivered.prepared
        self.artefacts = artefacts
        self._merged = merged
        self._device = device
        self._converting: Child | None = None
        self._made: list[str] = []
        self._spec = artefacts.run.spec
        self._expected = expected_tokenizer(prepared)
        self._own_type = read_shapes(merged).gguf_type
        self.own = artefacts.run.workdir / f"{self._spec.name}-{TYPES[self._own_type].label}.gguf"
        self._reference, self._trained = (artefacts.run.workdir / name for name in (REFERENCE, TRAINED_LOGITS))
        self._threads = max(1, native_threads() // artefacts.at_once)
        self._places = in_turn(cards_of_run(self._spec) if device == "cuda" else [])

    def __enter__(self) -> Self:
        if any(self.order()):
            self.artefacts.require("convert")
            self._made = [name for name in self.order()[0] if name in self.artefacts.early]
            quants = [self._quantise(name, self.path(name)) for name in self._made]
            self._converting = self.conversion(self._merged, self.own, quants)
        return self

    def __exit__(self, *_: object) -> None:
        if self._converting is not None:
            self._converting.kill()

    def any(self) -> bool:
        """Whether any type is outstanding."""
        return any(map(len, self.order()))

    def ready(self, name: str) -> bool:
        """Whether type `name` can be begun with: its file is there, or all that it is made of, and the room that the
        merge took. Raises what the conversion failed of.
        """
        if self._converting is not None and self._converting.ended():
            written, *_ = results(self._converting.wait())
            self._converting = None
            self.artefacts.run.log("convert", **asdict(written))
        if name in self._made:
            return self.path(name).exists()
        return self._converting is None and self._without_merge()

    def _without_merge(self) -> bool:
        """Whether the merge, which nothing reads any more, is gone: it may still be on its way to the store."""
        if not all(map(is_gguf, self.artefacts.storing.names)):
            return False
        self.artefacts.forget(self._merged)
        return True

    def conversion(self, model: Path, target: Path, quants: Sequence[Quantise] = ()) -> Child:
        """A process that makes the whole model one GGUF in its own number type, and these of it."""
        step = Convert(model, target, self._own_type, self._spec.name, native_threads())
        kinds = [quant.type_name for quant in quants]
        planned_bytes = self.artefacts.planned(lambda memory: max([memory.convert(), *map(memory.quant, kinds)]))
        return self._child((step, *quants), "conversion to GGUF", planned_bytes)

    def start(self, name: str) -> Made:
        """A process that makes the GGUF of type `name`, if it is not there, and tests it."""
        path = self.path(name)
        artefact, key = f"gguf-{name}", f"gguf/{path.name}"
        make = [] if name in (self._own_type, *self._made) else [self._quantise(name, path)]
        source = None if name == self._own_type else self.own
        check = Check(path, key, name, source, self._expected, self._against(artefact, self._reference))
        planned_bytes = self.artefacts.planned(
            lambda memory: (memory.quant if name != self._own_type else memory.check)(name)
        )
        child = self._child((*make, Split(path, GGUF_SPLIT_BYTES), check), key, planned_bytes)
        return Made(artefact, path, child, self.artefacts.run.log.live(artefact).begin())

    def finish(self, made: Made) -> None:
        """Waits for a process and begins to store its file, or notes why it is refused."""
        try:
            *_, parts, checked = results(made.child.wait())
            made.bar.end()
        except GateError as error:
            made.bar.end()
            self.artefacts.refuse(error)
        else:
            files = {f"gguf/{name}": made.path.with_name(name) for name in parts.files}
            for path in files.values():
                path.chmod(0o644)
            self.keep(made.name, files, checked, self._scratch(made.path))
        if made.name not in self.artefacts.storing.names:
            self.artefacts.forget(*self._scratch(made.path))

    def _scratch(self, path: Path) -> list[Path]:
        """Files of a type; none of that which others are made of."""
        return [] if path == self.own else [*path.parent.glob(f"{path.stem}*.gguf")]

    def keep(self, name: str, files: dict[str, Path], checked: Checked, scratch: Sequence[Path] = ()) -> None:
        """Begins to store a file that has passed its test, or notes that a gate of the spec refuses it."""
        answers = checked.quality.answers
        asked = zip(answers, self.artefacts.delivered.texts(answers), strict=True)
        texts = [text if ids else None for ids, text in asked]
        measured = Measured(checked.quality.step, texts, checked.quality.sums)
        try:
            self.artefacts.keep(name, files, checked.figures(), measured, scratch)
        except GateError as error:
            self.artefacts.refuse(error)

    def order(self) -> tuple[list[str], list[str]]:
        """Outstanding types, largest first; the one they are made of is apart, as its test may take the file apart."""
        names = [variant_of(name) for name in self.artefacts.outstanding if is_gguf(name)]
        return [n for n in names if n != self._own_type], [n for n in names if n == self._own_type]

    def lora(self, base: Path, adapter: Path) -> None:
        """The adapter alone as GGUF, tested on a GGUF of the base."""
        kind = self._spec.export.lora_gguf or "f16"
        path = self.artefacts.run.workdir / f"{self._spec.name}-LoRA-{kind.upper()}.gguf"
        under, key = path.with_name("base.gguf"), f"gguf/{path.name}"
        with self.conversion(base, under) as child:
            child.wait()
        adapted = self.artefacts.run.workdir / ADAPTED
        said = adapted if adapted.exists() else self._reference  # it is run on the original base
        check = CheckLora(under, path, key, kind, self._against("lora_gguf", said))
        make = WriteLora(adapter, base, path, kind, self._spec.name)
        try:
            with self._child((make, check), key, self.artefacts.planned(Memory.lora)) as child:
                _, checked = results(child.wait())
        except GateError as error:
            self.artefacts.refuse(error)
        else:
            path.chmod(0o644)
            self.keep("lora_gguf", {key: path}, checked)
        self.artefacts.forget(under)

    def path(self, name: str) -> Path:
        return self.artefacts.run.workdir / f"{self._spec.name}-{TYPES[name].label}.gguf"

    def forget_sources(self) -> None:
        self.artefacts.forget(
            self._reference, self._trained, self._merged, *self.own.parent.glob(f"{self.own.stem}*.gguf")
        )

    def _quantise(self, name: str, path: Path) -> Quantise:
        imatrix = self.artefacts.run.workdir / IMATRIX if takes_imatrix(self._spec, name) else None
        return Quantise(self.own, path, name, imatrix, self._threads, self._device)

    def _against(self, name: str, reference: Path) -> Against:
        asked, limits = asked_of(self.artefacts, name), self._spec.limits(name)
        return Against(reference, self._trained, asked, limits, self._threads)

    def _child(self, steps: tuple[Operation, ...], what: str, planned_bytes: int | None) -> Child:
        folder, request = self.artefacts.run.children, GgufRequest(steps)
        return Child(WORKER, request, folder, what, planned_bytes=planned_bytes, further=next(self._places))


def is_gguf(name: str) -> bool:
    """Whether the artefact of this name is the whole model as GGUF."""
    return kind_of(name).name == "gguf"


def in_turn(names: Sequence[str]) -> Iterator[Mapping[str, str]]:
    """The GPU that each of many processes sees: the others first, as the first compares the merged weights."""
    return cycle([{VISIBLE: name} for name in (*names[1:], *names[:1])] if len(names) > 1 else [{}])


def asked_of(artefacts: Artefacts, name: str) -> AskedIds:
    """Questions to the artefact `name`.

    Those with a known answer where a gate on answers is to hold for it, and choices where a gate on these is; of the
    prompts, which are for show, those whose answer by the trained model has an end, and quantised models may take a
    little longer.
    """
    spec, delivered = artefacts.run.spec, artefacts.delivered
    most = spec.evaluation.max_new_tokens
    gated = [metric_of(gate.metric) for gate in spec.evaluation.gates if gate.holds_for(name)]
    known = any(metric.needs_answers for metric in gated)
    readings = delivered.readings(any(metric.of_choice for metric in gated))
    prompts, questions = delivered.questions(False), delivered.questions(known)
    lengths = artefacts.answer_tokens[: len(prompts)]
    shown = [0 if length is None else min(most, 2 * length + SLACK_TOKENS) for length in lengths]
    lengths_of_all = shown + [most] * (len(questions) - len(prompts))
    return AskedIds([question.input_ids for question in questions], lengths_of_all, readings)


def make_quants(quants: Quants, base: Path, merge_base: Path) -> None:
    """Every GGUF that is asked for and not stored yet. Raises `GateError` naming each file that failed its test."""
    artefacts = quants.artefacts
    if "lora_gguf" in artefacts.outstanding:
        artefacts.require("adapter")
        quants.lora(merge_base, artefacts.recall("adapter"))
    for model in (base, merge_base):
        artefacts.forget(*model.glob("*.safetensors"))  # copies, or links: the merge has all of it
    artefacts.forget(artefacts.run.workdir / ADAPTED)
    artefacts.require("quantise")
    for waiting in quants.order():
        _make_all(quants, waiting)
    artefacts.storing.note(every=True)
    quants.forget_sources()
    artefacts.raise_refused()


def _make_all(quants: Quants, waiting: list[str]) -> None:
    """Each as soon as it can be begun with, as many side by side as are planned, and one more on its way to the store:
    the disk has room for these.
    """
    at_once, storing = quants.artefacts.at_once, quants.artefacts.storing
    with _ended_at_last() as running:
        while waiting or running:
            storing.note()
            for made in [made for made in running if made.child.ended()]:
                running.remove(made)
                quants.finish(made)
            on_disk = len(running) + sum(map(is_gguf, storing.names))
            name = next((name for name in waiting if quants.ready(name)), None)
            if name and len(running) < at_once and on_disk <= at_once:
                waiting.remove(name)
                running.append(quants.start(name))
            else:
                time.sleep(POLL_SECONDS)


@contextmanager
def _ended_at_last() -> Iterator[list[Made]]:
    """Processes at work, of which none survives this stage."""
    running: list[Made] = []
    try:
        yield running
    finally:
        for made in running:
            made.child.kill()
