"""The gguf stage: one conversion, then every asked type made and tested in a process of its own, several at once.

While processes work, this one uploads what they have finished. A file that fails its test does not keep the others
from being made and stored.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from job.errors import GateError
from job.export.artefacts import Artefacts, Measured
from job.export.gguf.questions import asked_of
from job.export.merge.onto import ADAPTED
from job.export.merge.stage import IMATRIX, REFERENCE
from job.export.tokenizer import expected_tokenizer
from job.export.trained import TRAINED_LOGITS
from job.gguf.types import TYPES
from job.host.cgroup import native_threads
from job.host.child import Child, run_child
from job.plan.host_memory import Memory
from job.plan.steps import GGUF_SPLIT_BYTES, weighed
from job.weights.shapes import read_shapes

WORKER = "job.gguf.worker"
POLL_SECONDS = 0.05
FIGURES = (
    "perplexity",
    "perplexity_rise",
    "kl",
    "same_top_token",
    "stopped",
    "tensors",
    "fallback_tensors",
    "tokens_per_second",
)


@dataclass(frozen=True)
class Made:
    """A GGUF that a child is making: its artefact name, the file, the process."""

    name: str
    path: Path
    child: Child


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
        self._threads = max(1, native_threads() // artefacts.at_once)

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

    def converted(self) -> None:
        """Waits for the conversion."""
        if self._converting is not None:
            self.artefacts.run.log("convert", **self._converting.wait()["steps"][0])

    def conversion(self, model: Path, target: Path, quants: Sequence[dict[str, Any]] = ()) -> Child:
        """A process that makes the whole model one GGUF in its own number type, and these of it."""
        step = {
            "operation": "convert",
            "model": str(model),
            "target": str(target),
            "type": self._own_type,
            "name": self._spec.name,
            "threads": native_threads(),
        }
        kinds = [quant["type"] for quant in quants]
        planned_bytes = self.artefacts.planned(lambda memory: max([memory.convert(), *map(memory.quant, kinds)]))
        return Child(
            WORKER,
            {"steps": [step, *quants]},
            self.artefacts.run.children,
            "conversion to GGUF",
            planned_bytes=planned_bytes,
        )

    def start(self, name: str) -> Made:
        """A process that makes the GGUF of type `name`, if it is not there, and tests it."""
        path = self.path(name)
        steps = [] if name in (self._own_type, *self._made) else [self._quantise(name, path)]
        source = None if name == self._own_type else str(self.own)
        steps.append({"operation": "split", "file": str(path), "max_bytes": GGUF_SPLIT_BYTES})
        check = self._check(f"gguf-{name}", name, path, source, f"gguf/{path.name}")
        steps.append(check | {"limits": self.limits(name)})
        planned_bytes = self.artefacts.planned(
            lambda memory: (memory.quant if name != self._own_type else memory.check)(name)
        )
        child = Child(
            WORKER, {"steps": steps}, self.artefacts.run.children, f"gguf/{path.name}", planned_bytes=planned_bytes
        )
        return Made(f"gguf-{name}", path, child)

    def finish(self, made: Made) -> None:
        """Waits for a process and stores its file, or notes why it is refused."""
        try:
            *_, split, check = made.child.wait()["steps"]
        except GateError as error:
            self.artefacts.refuse(error)
        else:
            files = {f"gguf/{name}": made.path.with_name(name) for name in split["files"]}
            for path in files.values():
                path.chmod(0o644)
            limits = self.limits(made.name.removeprefix("gguf-"))
            self.keep(made.name, files, check, limits)
        if made.path != self.own:
            self.artefacts.forget(*made.path.parent.glob(f"{made.path.stem}*.gguf"))

    def keep(self, name: str, files: dict[str, Path], check: dict[str, Any], limits: dict[str, float]) -> None:
        """Stores a file that has passed its test, or notes that a gate of the spec refuses it."""
        asked = zip(check["answers"], self.artefacts.delivered.texts(check["answers"]), strict=True)
        measured = Measured(check["step"], [text if ids else None for ids, text in asked])
        try:
            self.artefacts.keep(name, files, _shown(check), limits, measured)
        except GateError as error:
            self.artefacts.refuse(error)

    def order(self) -> tuple[list[str], list[str]]:
        """Outstanding types, largest first; apart from them the one they are made of: its test may take the file
        apart.
        """
        names = [name.removeprefix("gguf-") for name in self.artefacts.outstanding if name.startswith("gguf-")]
        return [n for n in names if n != self._own_type], [n for n in names if n == self._own_type]

    def lora(self, base: Path, adapter: Path) -> None:
        """The adapter alone as GGUF, tested on a GGUF of the base."""
        kind = self._spec.export.lora_gguf or "f16"
        path, under = (
            self.artefacts.run.workdir / f"{self._spec.name}-LoRA-{kind.upper()}.gguf",
            self.artefacts.run.workdir / "base.gguf",
        )
        with self.conversion(base, under) as child:
            child.wait()
        make = {"operation": "lora", "adapter": str(adapter), "model": str(base), "target": str(path), "type": kind,
                "name": self._spec.name}  # fmt: skip
        check = self._check("lora_gguf", kind, under, None, f"gguf/{path.name}")
        adapted = self.artefacts.run.workdir / ADAPTED
        check |= {"lora": str(path), "limits": self.limits("f16")}
        check |= {"reference": str(adapted)} if adapted.exists() else {}  # it is run on the original base
        try:
            planned_bytes = self.artefacts.planned(Memory.lora)
            answer = run_child(
                WORKER,
                {"steps": [make, check]},
                self.artefacts.run.children,
                f"gguf/{path.name}",
                planned_bytes=planned_bytes,
            )
            _, found = answer["steps"]
        except GateError as error:
            self.artefacts.refuse(error)
        else:
            path.chmod(0o644)
            self.keep("lora_gguf", {f"gguf/{path.name}": path}, found, self.limits("f16"))
        self.artefacts.forget(under)

    def path(self, name: str) -> Path:
        return self.artefacts.run.workdir / f"{self._spec.name}-{TYPES[name].label}.gguf"

    def limits(self, name: str) -> dict[str, float]:
        """The spec's limits of a type, else its own."""
        found = {"max_kl": TYPES[name].max_kl, "max_perplexity_rise": TYPES[name].max_perplexity_rise}
        for limit in self._spec.export.limits.gguf:
            if limit.type == name:
                given = {"max_kl": limit.kl, "max_perplexity_rise": limit.perplexity_rise}
                found |= {key: value for key, value in given.items() if value is not None}
        return found

    def forget_sources(self) -> None:
        workdir = self.artefacts.run.workdir
        self.artefacts.forget(
            workdir / REFERENCE, workdir / TRAINED_LOGITS, *self.own.parent.glob(f"{self.own.stem}*.gguf")
        )

    def _quantise(self, name: str, path: Path) -> dict[str, Any]:
        imatrix = self.artefacts.run.workdir / IMATRIX
        with_imatrix = weighed(self._spec, name)
        return {
            "operation": "quantise", "source": str(self.own), "target": str(path), "type": name,
            "imatrix": str(imatrix) if with_imatrix else None, "threads": self._threads, "device": self._device,
        }  # fmt: skip

    def _check(self, name: str, kind: str, path: Path, source: str | None, key: str) -> dict[str, Any]:
        questions, max_new_tokens = asked_of(self.artefacts, name)
        return {
            "operation": "check",
            "file": str(path),
            "key": key,
            "type": kind,
            "source": source,
            "reference": str(self.artefacts.run.workdir / REFERENCE),
            "trained": str(self.artefacts.run.workdir / TRAINED_LOGITS),
            "questions": questions,
            "max_new_tokens": max_new_tokens,
            "expected": self._expected,
            "threads": self._threads,
            "lora": None,
        }


def make_quants(quants: Quants, base: Path, merge_base: Path) -> None:
    """Every GGUF that is asked for and not stored yet. Raises `GateError` naming each file that failed its test."""
    artefacts = quants.artefacts
    if "lora_gguf" in artefacts.outstanding:
        artefacts.require("adapter")
        quants.lora(merge_base, artefacts.recall("adapter"))
    for model in (base, merge_base):
        artefacts.forget(*model.glob("*.safetensors"))  # copies, or links: the merge has all of it
    artefacts.forget(artefacts.run.workdir / ADAPTED)
    quants.converted()
    artefacts.forget(artefacts.run.workdir / "merged")
    artefacts.require("quantise")
    for waiting in quants.order():
        _make_all(quants, waiting)
    quants.forget_sources()
    artefacts.raise_refused()


def _make_all(quants: Quants, waiting: list[str]) -> None:
    with _ended_at_last() as running:
        while waiting or running:
            while waiting and len(running) < quants.artefacts.at_once:
                running.append(quants.start(waiting.pop(0)))
            made = _first_ended(running)
            running.remove(made)
            if waiting:  # the cores have work while this one is uploaded
                running.append(quants.start(waiting.pop(0)))
            quants.finish(made)


@contextmanager
def _ended_at_last() -> Iterator[list[Made]]:
    """Processes at work, of which none survives this stage."""
    running: list[Made] = []
    try:
        yield running
    finally:
        for made in running:
            made.child.kill()


def _first_ended(running: list[Made]) -> Made:
    while True:
        for made in running:
            if made.child.ended():
                return made
        time.sleep(POLL_SECONDS)


def _shown(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in FIGURES if name in found}
