"""The ledger of a run's exports: what is asked for, what is stored already, what each was found to be worth."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from job.context import Run
from job.errors import Fault, GateError
from job.evaluation.benchmarks import Benchmark
from job.export.delivered import Delivered
from job.export.kinds import kind_of
from job.export.storing import Storing
from job.gguf.quality import ModelStep
from job.gguf.worker import GgufPlan, try_beforehand
from job.host.cgroup import available_bytes
from job.host.child import taken_bytes
from job.ledger.manifest import File, store_file
from job.ledger.receipts import MERGED_ONTO, TRAINED
from job.plan.host_memory import Memory
from job.plan.require import require_disk, require_ram
from job.plan.steps import Step, made_early, parallel_quants, plan_memory, steps
from job.report.summary import write_json
from job.store.base import within
from job.weights.shapes import Shapes, read_shapes

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """What a child has measured of an artefact: its step from the trained model, its answers' texts, and what it found
    of `Delivered.readings`; figures of benchmarks.
    """

    step: ModelStep
    texts: list[str | None]  # None: not asked
    sums: Sequence[Sequence[float]] = ()
    benchmarks: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Artefacts:
    """Artefacts by name (`names`). Each goes to the store as soon as it has passed its test; its receipt follows it."""

    run: Run
    delivered: Delivered
    benchmarks: Sequence[Benchmark] = ()
    # Once the trained model was reopened: modules that the training held in 4 bits, and the length of its answers
    packed: Sequence[str] = ()
    answer_tokens: Sequence[int | None] = ()
    refused: list[Fault] = field(default_factory=list)
    at_once: int = 1  # quantisers side by side
    storing: Storing = field(init=False)
    early: Sequence[str] = ()  # types that are made before the merge is compared
    memory: Memory | None = None  # of each process, once it is planned
    _steps: dict[str, Step] = field(default_factory=dict)
    _other_bytes: int = 0

    def __post_init__(self) -> None:
        self.storing = Storing(self.run.store, self.run.log)

    @property
    def outstanding(self) -> list[str]:
        """What is asked for and not stored yet, in the order it is made."""
        return [name for name in self.run.spec.artefacts if name not in self.run.receipts]

    @property
    def merges(self) -> bool:
        """Whether merged weights have to be made of base and adapter, rather than taken from where they are stored."""
        return self.run.spec.lora is not None and "merged" not in self.run.receipts

    @property
    def needs_trained(self) -> bool:
        """Whether the model is trained, or reopened as the measure of what is still to be made of it."""
        return TRAINED not in self.run.receipts or (bool(self.outstanding) and self.run.spec.lora is not None)

    @property
    def needs_base(self) -> bool:
        """Whether anything that is still to be made needs the 16-bit base."""
        return bool(self.outstanding) and (self.merges or self.any_on_base)

    @property
    def any_on_base(self) -> bool:
        """Whether anything that is still to be made is laid over the original base."""
        return any(kind_of(name).on_base for name in self.outstanding)

    def recall(self, name: str) -> Path:
        """The folder `workdir/name`; where this try did not make it, as an earlier one stored it."""
        folder = self.run.workdir / name
        if not folder.exists():
            for file in self.run.receipts.files():
                if within(file.key, name):
                    self.run.store.download(file.key, self.run.workdir / file.key)
        return folder

    def keep(
        self,
        name: str,
        files: Mapping[str, Path],
        figures: Figures,
        measured: Measured | None,
        scratch: Iterable[Path] = (),
    ) -> None:
        """Begins to store the files (key → path) of an artefact that has passed its test, with what it was `measured`
        to know. Once they are stored its receipt is written, and what is only there for it, `scratch`, removed.

        Raises `GateError` before that where a gate of the spec is to hold for it and does not.
        """
        known = measured and self.delivered.figures(measured.step, measured.texts, measured.sums)
        if known and measured:
            known |= measured.benchmarks
            self.delivered.note(name, known)
            self.delivered.require(name, known)
        limits = self.run.spec.limits(name)
        facts: dict[str, Any] = {"name": name, "files": sorted(files), "figures": dict(figures), "limits": limits}
        if known and measured:
            facts |= {"delivered": known, "answers": measured.texts}

        def then(stored: list[File]) -> None:
            size = sum(file.bytes for file in stored)
            self.keep_stored(name, stored, files, {"exports": facts | {"bytes": size}})
            self.run.log("export", artefact=name, bytes=size, **figures)
            if known:
                self.run.log("delivered", artefact=name, **known)
            self.write_report()
            self.forget(*scratch)

        self.run.claim.hold()
        self.storing.begin(name, files, then)

    def recall_figures(self) -> None:
        """To the statistics, what earlier tries have found of what they stored."""
        if MERGED_ONTO in self.run.receipts:
            self.run.stats.delivered[MERGED_ONTO] = dict(self.run.receipts[MERGED_ONTO].facts)
        for fact in self.facts():
            if "delivered" in fact:
                self.delivered.note(fact["name"], fact["delivered"])

    def store_files(self, files: Mapping[str, Path]) -> list[File]:
        """Stores local files under their keys; the output is this run's from then on."""
        self.run.claim.hold()
        stored = []
        for key, path in files.items():
            with self.run.log.live(f"stores {key}"):
                stored.append(store_file(self.run.store, path, key))
        return stored

    def keep_stored(self, name: str, stored: Sequence[File], files: Mapping[str, Path], facts: Figures) -> None:
        """Sends `files`, which are among the `stored` ones, to the Hub as well, and writes the receipt."""
        staged = self.run.push.stage(files) if self.run.push else []
        self.run.receipts.add(name, stored, {**facts, "staged": staged})

    def refuse(self, error: GateError) -> None:
        """Notes an artefact that failed its test; the run ends with `raise_refused` once the others are made."""
        self.refused += error.faults
        if error.printed:
            self.run.log.explain(error.printed)
        for fault in error.faults:
            self.run.log("refused", artefact=fault.where, text=str(fault))
        self.write_report()

    def raise_refused(self) -> None:
        if self.refused:
            raise GateError(*self.refused)

    def facts(self) -> list[dict[str, Any]]:
        """What is known of every stored artefact, earlier tries of this run included."""
        return [
            dict(self.run.receipts[name].facts["exports"])
            for name in self.run.spec.artefacts
            if name in self.run.receipts
        ]

    def write_report(self) -> None:
        """`report/exports.json`: the stored artefacts with figures and limits, and what was refused."""
        refused = [{"file": f.where, "message": f.message, "found": f.found, "limit": f.expected} for f in self.refused]
        plans = [vars(step) for step in self._steps.values()]
        write_json(
            self.run.workdir / "report" / "exports.json", {"artefacts": self.facts(), "refused": refused, "plan": plans}
        )

    def forget(self, *paths: Path) -> None:
        """Removes intermediates that nothing needs any more."""
        for path in paths:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    # ---------------------------------------------------------------------------------------------- capacity

    def plan(self, model_dir: Path, base_bytes: int, device: str) -> None:
        """Works out what every step needs, from the 16-bit weights in `model_dir`, and refuses now what cannot work
        later.

        `base_bytes` of them are a copy in the scratch directory. Raises `InputError` where llama.cpp does not know the
        architecture or the tokenizer, `CapacityError` where disk or memory will not do.
        """
        self._other_bytes = self._used_bytes() - base_bytes
        on_cpu = device == "cpu"
        shapes = read_shapes(model_dir)
        if self.run.spec.lora is None and on_cpu:
            shapes = shapes.in_fp32()
        sizes = self._gguf_bytes(model_dir, shapes) if self.run.spec.export.converts else {}
        beside_bytes = sum(p.stat().st_size for p in model_dir.iterdir() if p.is_file() and p.suffix != ".safetensors")
        self.memory = plan_memory(
            self.run.spec, shapes, beside_bytes, on_cpu, self.delivered.sizes(), available_bytes()
        )
        self.at_once = parallel_quants(sizes, shapes) if sizes else 1
        for early in (made_early(self.run.spec, sizes, shapes.gguf_type, self.at_once, on_cpu), []):
            needs = steps(self.run.spec, shapes, base_bytes, self.memory, sizes, self.at_once, early)
            self.early, self._steps = early, {step.name: step for step in needs}
            # Else without those that are only sooner there
            room_bytes = shutil.disk_usage(self.run.workdir).free + self._used_bytes() - self._other_bytes
            if room_bytes >= max(step.disk_bytes for step in needs):
                break
        self.run.log("plan", **{f"{step.name}_disk_bytes": step.disk_bytes for step in self._steps.values()})
        for name in self._steps:
            self.require(name)

    def _gguf_bytes(self, model_dir: Path, shapes: Shapes) -> dict[str, int]:
        types = list(dict.fromkeys([shapes.gguf_type, *self.run.spec.export.gguf]))
        longest = max(of["longest_tokens"] for name in ("train", "held_out") if (of := self.run.stats.data.get(name)))
        asked = GgufPlan(model_dir, self.run.children, types, self.run.spec.export.imatrix, longest)
        sizes: dict[str, int] = try_beforehand(asked, self.run.children, "plan of the GGUFs").bytes
        return sizes

    def require(self, name: str) -> None:
        """Raises `CapacityError` if the disk that this step will still take, or its memory, is not there."""
        step = self._steps.get(name)
        if step is None:  # nothing was planned: the weights are stored already
            return
        still_needed = step.disk_bytes - (self._used_bytes() - self._other_bytes)
        require_disk(self.run.workdir, max(0, still_needed), f"step {name} of the exports")
        # Of those that are at work already
        require_ram(max(0, step.ram_bytes - taken_bytes()), f"step {name} of the exports")

    def planned(self, process: Callable[[Memory], int]) -> int | None:
        """Memory that a process should take, where the exports were planned."""
        return process(self.memory) if self.memory else None

    def _used_bytes(self) -> int:
        return sum(map(_file_bytes, self.run.workdir.rglob("*")))


def _file_bytes(path: Path) -> int:
    """0 for what is not a file, or gone meanwhile: children work in there."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0
