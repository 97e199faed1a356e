"""The training stage: explicit trainer settings, the loop, what came out of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.data.build import Prepared
from job.data.figures import sizes
from job.evaluation.loss import require_finite, summed_loss
from job.evaluation.metrics.losses import HELD_OUT_LOSS
from job.host.log import Log
from job.host.micro_batch import free_memory
from job.host.signals import deferred
from job.host.stats import gpu_peak_bytes
from job.host.watchdog import Watchdog
from job.ledger.checkpoints import Checkpoint, Checkpoints
from job.plan.choice import Choice
from job.plan.model_size import ModelSize
from job.spec import JobSpec
from job.tracking.follow import Followed, begun
from job.training.backend import Backend
from job.training.checkpointing import Chooser
from job.training.checks import does_not_fit
from job.training.kernels.placed import kernels
from job.training.methods import METHODS
from job.training.methods.rewards import first_and_last
from job.training.precision import compute_in_fp32
from job.training.ranks import Ranks
from job.training.shared_steps import SharedSteps
from job.training.spread import SpreadSteps, spread
from job.training.trainer_arguments import join_rows, trainer_arguments
from job.training.weighted import weighing


@dataclass(frozen=True)
class TrainResult:
    """What happened. Losses are means over the tokens (with pairs: the pairs) of a step; seconds are wall time of the
    loop alone. The best held-out loss is by the loss that the method lowers.
    """

    steps: int
    wall_seconds: float
    wall_minutes: float
    tokens: int
    tokens_per_second: float
    median_step_seconds: float | None
    first_loss: float
    final_loss: float
    best_held_out_loss: float | None
    best_step: int | None
    kept: str
    stopped_early: bool
    batch_size: int
    gradient_accumulation_steps: int
    kept_layers: int
    compute: str
    padding_free: bool
    out_of_memory: int
    resumed_from_step: int | None
    resumed_elsewhere: dict[str, list[str]]
    checkpoints: int
    processes: int
    peak_gpu_reserved_bytes: int
    trainable_parameters: int
    trainable_dtype: str
    rewards: dict[str, list[float]]
    history: list[dict[str, float]]
    held_out_history: list[dict[str, float]]

    def summary(self) -> dict[str, Any]:
        """Everything but the curves, which are in `report/losses.jsonl`."""
        return {key: value for key, value in vars(self).items() if not key.endswith("history")}


def train(
    backend: Backend, model: Any, size: ModelSize, spec: JobSpec, prepared: Prepared, workdir: Path,
    checkpoints: Checkpoints, log: Log, ranks: Ranks | None = None,
) -> TrainResult:  # fmt: skip
    """Trains `model` in place on `prepared.train`, from the newest checkpoint if there is one; with others if there are
    `ranks`, of which the first makes the checkpoints.

    How a step is computed is chosen for the memory that is free, and is that of the checkpoint where there is one.
    Where it does not fit after all, the step is taken again in another way that needs less, with the same rows. Raises
    `CapacityError` if even one row does not fit, or if packing was asked for and is not effective, `GateError` when the
    loss is not a number, `TransientError` if checkpoints cannot be stored, `Interrupted` after the step of a signal.
    """
    from torch import OutOfMemoryError

    ranks = ranks or Ranks()
    start = ranks.brought(ranks.of_first(lambda: checkpoints.newest(workdir / "resume")), workdir / "brought")
    resumed_from, too_large = start, 0
    chooser = Chooser(spec, size, backend, sizes(prepared.train)[0].tolist(), ranks)
    if ranks.spread:
        spread(model, ranks, backend.device)
    ranks.same_start([p for p in model.parameters() if p.requires_grad])
    with kernels(backend, model, spec.training.compute, log) as compute:
        choice = _first(chooser, start, log)
        while True:
            loop = Loop(backend, model, spec, choice, prepared, workdir, checkpoints, log, ranks)
            try:
                loop.run(start)
            except OutOfMemoryError as error:
                smaller = chooser.after(choice)
                # Where a step was being applied when the loop ended, its weights are of no step
                if smaller is None or loop.watch.applying or ranks.spread or not loop.method.may_begin_anew(spec):
                    raise does_not_fit(spec, choice) from error
                said = str(error)
            else:
                loop.method.end(loop.trainer)
                return loop.result(resumed_from, too_large, compute)
            too_large += 1
            start = loop.snapshot(workdir / f"out-of-memory-{too_large}")
            log("out of memory", step=start.step, reason=said, **described(smaller))
            del loop
            choice = smaller


def _first(chooser: Chooser, start: Checkpoint | None, log: Log) -> Choice:
    """As the checkpoint was made, or chosen anew."""
    from job.training.saver import progress_of

    if start is None:
        choice, known = chooser.first()
    else:
        with progress_of(start) as progress:
            choice, known = chooser.remembered(progress["choice"])
    log("steps", **described(choice), **known)
    return choice


def described(choice: Choice) -> dict[str, int]:
    """In the names of log and statistics."""
    return {
        "batch_size": choice.batch.rows,
        "gradient_accumulation_steps": choice.batch.accumulation_steps,
        "kept_layers": choice.kept_layers,
    }


class Loop:
    """One trainer over the model, and what watches it."""

    def __init__(
        self, backend: Backend, model: Any, spec: JobSpec, choice: Choice, prepared: Prepared, workdir: Path,
        checkpoints: Checkpoints, log: Log, ranks: Ranks,
    ) -> None:  # fmt: skip
        from job.training.callbacks import Curves, HeldOutWatch, LossWatch, TokenCounter, Trackers
        from job.training.saver import Saver

        self.backend, self.model, self.spec, self.prepared, self.log = backend, model, spec, prepared, log
        self.choice, self.checkpoints, self.method = choice, checkpoints, METHODS[spec.training.method]
        self.ranks = ranks
        if backend.device == "cuda" and backend.loaded_with:
            backend.keep_activations(model, choice.kept_layers)
        self.trainer = self._trainer(workdir)
        self.method.check(self.trainer, spec)
        if backend.device == "cpu":
            compute_in_fp32(model)
        steps = None if ranks.alone else self._shared_steps()
        self.watchdog = Watchdog()
        self.watch = LossWatch(TokenCounter(self.trainer), self.watchdog, self.method.curves)
        name = self.method.held_out.name if self.method.held_out else HELD_OUT_LOSS.name
        self.held_out = HeldOutWatch(spec.training, name, self._measure, self._report)
        folder = workdir / f"checkpoints-{choice.batch.rows}-{choice.kept_layers}"
        self.saver = Saver(
            self.trainer, spec.output.checkpoints, checkpoints, self.watch, self.held_out, choice, folder, steps
        )
        drawn = {name, *self.method.curves}
        curves: list[Any] = [Curves(workdir / "report" / "tensorboard", drawn)] if self._shown("tensorboard") else []
        if ranks.first and (others := [tracker for tracker in spec.tracking if tracker != "tensorboard"]):
            curves.append(Trackers(Followed(others, begun(spec, workdir / "report"), log), drawn))
        for callback in (self.watch, *curves, self.held_out, self.saver):
            self.trainer.add_callback(callback)

    def _shared_steps(self) -> SharedSteps:
        seed = self.spec.training.seed
        if self.ranks.spread:
            return SpreadSteps(self.trainer, self.ranks, seed)
        return SharedSteps(self.trainer, self.ranks, seed, self.method.curves)

    def _shown(self, tracker: str) -> bool:
        return self.ranks.first and tracker in self.spec.tracking

    def _trainer(self, workdir: Path) -> Any:
        """The method's, with every setting explicit."""
        config_class, trainer_class = self.method.trainer_classes()
        common = trainer_arguments(self.spec, self.choice.batch, self.backend.device, workdir, self.backend.loaded_with)
        if not self.ranks.first:
            common["report_to"] = "none"
        if self.method.kernel_loss:
            trainer_class = self.backend.adapt(trainer_class)
        trainer_class, trained = weighing(trainer_class, self.prepared.train)
        tokenizer, collator = self.prepared.tokenizer, self.method.collator
        longest = self.spec.model.max_seq_length
        arguments = common | self.method.arguments(self.spec)
        arguments |= join_rows(self.spec, self.choice.batch, self.backend.device, trained)
        given = {
            "model": self.model,
            "args": config_class(**arguments),
            "train_dataset": trained,
            "processing_class": tokenizer,
            **({"data_collator": collator(tokenizer.pad_token_id, longest)} if collator else {}),
        }
        further = self.method.further(self.spec, self.prepared) if self.method.further else {}
        return trainer_class(**given | further)

    def run(self, start: Checkpoint | None) -> None:
        """To the last step, from `start` or from the beginning."""
        from job.training.callbacks import restore_weights

        self.backend.for_training(self.model)
        if start:
            self.saver.restore(start)
        with self.log.bar("train", every_seconds=0.0) as bar, self.watchdog, deferred():
            self.watch.bar = bar
            if not (start and self.saver.restore_end(start)):
                self.trainer.train(resume_from_checkpoint=str(start.folder) if start else None)
                self.saver.keep_last()
        self.checkpoints.wait()
        self.ranks.require_same([p for p in self.model.parameters() if p.requires_grad])
        if self.held_out.best_weights is not None:
            restore_weights(self.model, self.held_out.best_weights)

    def snapshot(self, folder: Path) -> Checkpoint:
        """The state after the last whole step, on disk; the trainer cannot be used afterwards."""
        self.model.zero_grad(set_to_none=True)
        free_memory()
        self.saver.write(folder)
        return Checkpoint(self.trainer.state.global_step, folder)

    def _measure(self) -> float:
        with self.watchdog.paused(), self.watch.aside():
            self.backend.for_inference(self.model)
            loss = self._held_out_loss(self.prepared.held_out, self.spec.training.eval_batch_size)
            self.backend.for_training(self.model)
        return loss

    def _held_out_loss(self, rows: Any, rows_at_once: int) -> float:
        """Each rank measures its share of the rows, where their loss is a sum; all of them have the whole then."""
        ranks, of_method = self.ranks, self.method.held_out
        if of_method:
            measured = ranks.all_or_none(lambda: of_method.measure(self.trainer, rows, rows_at_once))
            return ranks.of_first(lambda: measured)
        pad = self.prepared.tokenizer.pad_token_id
        own = ranks.all_or_none(lambda: summed_loss(self.model, ranks.share(rows), rows_at_once, pad))
        nats, tokens = ranks.total(own)
        require_finite(nats)
        return nats / tokens

    def _report(self, step: int, name: str, loss: float) -> None:
        from transformers import Trainer

        due = self.trainer.control.should_log  # logging our figure would swallow the step's own
        Trainer.log(self.trainer, {name: loss})  # trl's would take it for the end of what it counts over a step
        self.trainer.control.should_log = due
        self.log("held_out", step=step, **{name: loss})

    def result(self, resumed_from: Checkpoint | None, too_large: int, compute: str) -> TrainResult:
        watch, held_out, seconds = self.watch, self.held_out, self.watch.seconds()
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        step_seconds = watch.median_step_seconds()
        return TrainResult(
            steps=self.trainer.state.global_step,
            wall_seconds=round(seconds, 4),
            wall_minutes=round(seconds / 60, 2),
            tokens=watch.tokens.count(),
            tokens_per_second=round(watch.tokens.count() / seconds, 2),
            median_step_seconds=None if step_seconds is None else round(step_seconds, 4),
            first_loss=watch.history[0]["loss"],
            final_loss=watch.history[-1]["loss"],
            best_held_out_loss=held_out.best_loss if held_out.history else None,
            best_step=held_out.best_step if held_out.history else None,
            kept=self.spec.training.keep,
            stopped_early=held_out.stopped_early,
            **described(self.choice),
            compute=compute,
            padding_free=bool(getattr(self.trainer.data_collator, "padding_free", False)),
            out_of_memory=too_large,
            resumed_from_step=resumed_from.step if resumed_from else None,
            resumed_elsewhere=dict(resumed_from.elsewhere) if resumed_from else {},
            checkpoints=self.checkpoints.stored,
            processes=self.ranks.count,
            peak_gpu_reserved_bytes=-self.ranks.least(-gpu_peak_bytes()),
            trainable_parameters=sum(p.numel() for p in trainable),
            trainable_dtype="+".join(sorted({str(p.dtype).removeprefix("torch.") for p in trainable})),
            rewards=first_and_last(watch.history),
            history=watch.history,
            held_out_history=held_out.history,
        )
