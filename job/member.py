"""The model in a process: loaded, measured, trained and written.

A run on one card has it in its own process. On several, `job.several` starts a process for each, which does the same
when it is asked to (`job.asked`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

from job.data.build import Prepared, Question
from job.evaluation.assess import Found, ToMeasure, assess
from job.evaluation.benchmarks import Benchmark, run_benchmarks
from job.evaluation.probe import write_probe
from job.evaluation.shares import WHOLE, Share
from job.evaluation.task_faults import cut_prompts
from job.export.adapter import export_adapter, export_full
from job.export.kinds import left_by_training
from job.export.merge.write import require_mergeable
from job.host.log import Bar, Log
from job.host.micro_batch import free_memory
from job.host.stats import gpu_reserved_bytes
from job.ledger.checkpoints import Checkpoints
from job.plan.model_size import size_of_base
from job.plan.require import require_checkpoints, require_embeddings
from job.report.ending import shortened
from job.report.kept import question as asked_of
from job.report.kept import surroundings
from job.source import FetchedModel
from job.spec import JobSpec
from job.spec.optimizers import effective_optimizer
from job.spec.sections import prompt_texts
from job.training.backend import Backend, loading
from job.training.checkpointing import checkpointing_of
from job.training.checks import require_compute_dtype
from job.training.loop import TrainResult, train
from job.training.precision import compute_in_fp32
from job.training.ranks import Ranks
from job.training.start import combine, go_on_from

WEIGHTS, TASKS = "weights.safetensors", "benchmarks"  # in the scratch directory


@dataclass(frozen=True)
class Trained:
    """`result`: None where adapters were combined. `last`: where the state after the last step is kept, for
    `Checkpoints.hold`. `start_reserved_bytes`: of the card's memory before.
    """

    result: TrainResult | None
    last: Path | None
    start_reserved_bytes: int


class HeldModel(Protocol):
    """What a run has done with the model, in its own process or in several."""

    several: bool

    def load(self, base: FetchedModel, merge_base: Path | None, prepared: Prepared, tasks: Sequence[Benchmark]) -> str:
        """Loads it, with its adapter, fresh or given. The number type that it computes in.

        Raises as `Backend.load` does, and where checkpoints, tokens or the merge would not do.
        """
        ...

    def measure(self, asked: ToMeasure, stage: str) -> Found:
        """Of the model as it is now, all shares together."""
        ...

    def train(self, checkpoints: Checkpoints) -> Trained:
        """Trains it, from the newest checkpoint if there is one, or combines its adapters. Raises as `train` does."""
        ...

    def export(self, folder: Path, probe: Path) -> dict[str, Path]:
        """Writes what was trained, and some of its logits; files by key. Raises `GateError` for what is not on disk."""
        ...

    def end(self) -> None:
        """It is gone from memory afterwards."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None:
        """At once, whatever is going on."""
        ...


class Member:
    """A process with the whole model; what it measures is a `share`."""

    several = False

    def __init__(
        self, spec: JobSpec, backend: Backend, workdir: Path, log: Log, bar: Callable[[str], Bar], share: Share = WHOLE
    ) -> None:
        """`bar`: makes the one that shows how far something is."""
        self.spec, self.backend, self.workdir, self.log, self.share = spec, backend, workdir, log, share
        self.bar = bar
        self.model: Any = None
        self.base: FetchedModel
        self.prepared: Prepared
        self.tasks: Sequence[Benchmark] = ()

    def load(self, base: FetchedModel, merge_base: Path | None, prepared: Prepared, tasks: Sequence[Benchmark]) -> str:
        spec, self.base, self.prepared = self.spec, base, prepared
        self.tasks = tasks
        self._load()
        dtype = require_compute_dtype(self.model, self.backend.device)
        optimizer = effective_optimizer(spec.training.optimizer, self.backend.device)
        require_checkpoints(self.workdir, spec, self.model, optimizer)
        require_embeddings(self.model.get_input_embeddings().weight.shape[0], prepared)
        if spec.lora is not None and spec.needs_merge and merge_base:
            require_mergeable(self.model, merge_base)
        return dtype

    def _load(self) -> None:
        spec, device = self.spec, self.backend.device
        with loading():
            checkpointing = checkpointing_of(spec, size_of_base(spec, self.base), device)
            self.model = self.backend.load(self.base.path, spec.model, spec.lora, checkpointing)
        if spec.model.adapter:
            go_on_from(self.model, self.base.adapters[0])

    def measure(self, asked: ToMeasure, stage: str) -> Found:
        self.backend.for_inference(self.model)
        around = surroundings([{"prompt": question.text} for question in self.prepared.questions],
                              prompt_texts(self.spec.evaluation.prompts))  # fmt: skip

        def heard(question: Question, text: str) -> None:
            if self.share.number == 0:
                self.log(
                    "answer",
                    stage=stage,
                    prompt=shortened(asked_of({"prompt": question.text}, around)),
                    reference=None if question.reference is None else shortened(question.reference),
                    answer=shortened(text),
                )

        with self.bar(stage) as bar:
            found = assess(self.model, self.prepared, self.spec, asked, bar, heard, self.share)
        return self._with_tasks(found) if self.tasks else found

    def _with_tasks(self, found: Found) -> Found:
        """With what the documents of this process's benchmarks add."""
        tokenizer, batch_rows = self.prepared.tokenizer, self.spec.training.eval_batch_size
        with self.bar(TASKS) as bar, cut_prompts() as cut:
            bar.total = len(self.tasks)
            rows = run_benchmarks(self.tasks, self.model, tokenizer, batch_rows, bar.update)
        return replace(found, tasks={name: list(of) for name, of in rows.items()}, cut=len(cut))

    def train(self, checkpoints: Checkpoints, ranks: Ranks | None = None) -> Trained:
        spec, reserved = self.spec, gpu_reserved_bytes()
        if spec.model.adapters:
            combine(self.model, self.base.adapters, spec)
            return Trained(None, None, reserved)
        size = size_of_base(spec, self.base)
        result = train(self.backend, self.model, size, spec, self.prepared, self.workdir, checkpoints, self.log, ranks)
        if ranks and ranks.spread:
            self._put_together(ranks)
        return Trained(result, checkpoints.held, reserved)

    def _put_together(self, ranks: Ranks) -> None:
        """The whole model, of which each rank has trained a part."""
        from safetensors.torch import load_file, save_file

        from job.training.callbacks import restore_weights, trainable_weights

        file = ranks.of_first(lambda: self.workdir / WEIGHTS)
        weights = trainable_weights(self.model, kept=ranks.first)
        if ranks.first:
            save_file({name: weight.contiguous() for name, weight in weights.items()}, file)
        del weights
        self.model = None
        free_memory()
        self._load()
        if self.backend.device == "cpu":
            compute_in_fp32(self.model)
        ranks.gathered(None)  # the file is whole
        restore_weights(self.model, load_file(file))
        ranks.gathered(None)  # and read
        if ranks.first:
            file.unlink()

    def export(self, folder: Path, probe: Path) -> dict[str, Path]:
        self.backend.for_inference(self.model)
        prepared, stops = self.prepared, self.prepared.report.stop_token_ids
        if folder.name == left_by_training(whole=True):
            written = export_full(self.model, prepared.tokenizer, stops, self.base, folder)
        else:
            written = export_adapter(self.model, prepared.tokenizer, self.base, folder)
        write_probe(self.model, (prepared.held_out or prepared.train)[0], probe)
        return written

    def end(self) -> None:
        self.model = None
        free_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.model = None
