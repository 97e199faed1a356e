"""What a checkpoint holds, when one is made, and how the trainer goes on from it.

Weights are ours (safetensors, exactly the tensors that are trained, whatever the adapter), the states of optimiser,
schedule, scaler and random numbers are written and read by the trainer. Imported by `train` only, once transformers
is loaded anyway.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerState

from job.errors import InputError, JobError, classify, disk_is_full
from job.host.signals import stop_requested, stopped
from job.ledger.checkpoints import Checkpoint, Checkpoints
from job.plan.choice import Choice
from job.plan.require import with_disk_figures
from job.spec import CheckpointsSpec
from job.training.callbacks import HeldOutWatch, LossWatch, restore_weights, trainable_weights
from job.training.shared_steps import SharedSteps
from job.training.spread import SpreadSteps

WEIGHTS, BEST, PROGRESS, STATE = "weights.safetensors", "best.safetensors", "progress.json", "trainer_state.json"


class Saver(TrainerCallback):  # type: ignore[misc]
    """Makes a checkpoint every so many minutes or steps, and on a stop signal, instead of the trainer's own saving."""

    def __init__(
        self,
        trainer: Any,
        spec: CheckpointsSpec,
        checkpoints: Checkpoints,
        watch: LossWatch,
        held_out: HeldOutWatch,
        choice: Choice,
        folder: Path,
        shared: SharedSteps | None = None,
    ) -> None:
        """`shared`: with other ranks, which stop after the same step; the first of them makes the checkpoints."""
        self._shared = shared
        self._trainer = trainer
        self._spec = spec
        self._checkpoints = checkpoints
        self._watch = watch
        self._held_out = held_out
        self._choice: dict[str, Any] = {"micro_batch": choice.batch.rows, "kept_layers": choice.kept_layers}
        self._choice |= {"spread": bool(shared and shared.spread)}
        self._folder = folder
        self._last_save = time.monotonic()
        trainer._save_checkpoint = self._save
        trainer._load_from_checkpoint = self._load_weights

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._last_save = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        due = time.monotonic() - self._last_save >= self._spec.every_minutes * 60
        due |= bool(self._spec.every_steps) and state.global_step % (self._spec.every_steps or 1) == 0
        # The end is stored itself
        due = self._shared.due(due) if self._shared else due
        control.should_save = self._stopping() or (due and state.global_step < state.max_steps)
        return control

    def _save(self, *_: Any) -> None:
        """Called by the trainer after a step, when its loss is logged."""
        if self._makes_them():
            self._make()
        self._last_save = time.monotonic()
        if self._stopping():
            self._checkpoints.wait()
            raise stopped()

    def _stopping(self) -> bool:
        return self._shared.stopping if self._shared else stop_requested()

    def _makes_them(self) -> bool:
        """Whether this process has a part in a checkpoint; the first one stores it."""
        return self._shared is None or self._shared.first or self._shared.spread

    def _stores_them(self) -> bool:
        return self._shared is None or self._shared.first

    def _make(self) -> None:
        step = self._trainer.state.global_step
        folder = self._folder / f"{step}"
        if failure := self._write_or_full(folder):
            self._checkpoints.miss(step, failure)
        elif self._stores_them():
            self._checkpoints.send(step, folder)

    def keep_last(self) -> None:
        """The state after the last step, for the case that what was trained cannot be stored; nothing where there is
        no room for it. A training that stopped early would go on from it: that one's checkpoints have to do.
        """
        state = self._trainer.state
        if not self._makes_them():
            return
        if state.global_step < state.max_steps or self._write_or_full(self._folder / "last"):
            return
        if self._stores_them():
            self._checkpoints.hold(state.global_step, self._folder / "last")

    def _write_or_full(self, folder: Path) -> JobError | None:
        """Writes the state to `folder`; where the disk is full, nothing is left of it and the failure is returned."""
        try:
            self.write(folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            failure = classify(error)
            if not disk_is_full(failure):
                raise
            shutil.rmtree(folder, ignore_errors=True)
            return with_disk_figures(failure, self._folder.parent)
        return None

    def write(self, folder: Path) -> None:
        """The state between two steps, as files."""
        from safetensors.torch import save_file

        trainer, parts = self._trainer, self._shared if isinstance(self._shared, SpreadSteps) else None
        weights = trainable_weights(trainer.model, kept=parts is None or parts.first)
        optimizer = parts.optimizer_state() if parts else {}
        if parts and not parts.first:
            return
        folder.mkdir(parents=True)
        save_file(_contiguous(weights), folder / WEIGHTS)
        if self._held_out.best_weights is not None:
            save_file(_contiguous(self._held_out.best_weights), folder / BEST)
        if parts:
            parts.save(optimizer, folder)
        else:
            trainer._save_optimizer_and_scheduler(str(folder))
        trainer._save_scaler(str(folder))
        trainer._save_rng_state(str(folder))
        trainer.state.save_to_json(str(folder / STATE))
        progress = {"watch": self._watch.progress(), "held_out": self._held_out.progress(), "choice": self._choice}
        (folder / PROGRESS).write_text(json.dumps(progress))

    def restore(self, checkpoint: Checkpoint) -> None:
        """What the callbacks knew; the trainer reads the rest, given the folder."""
        from safetensors.torch import load_file

        best = checkpoint.folder / BEST
        with progress_of(checkpoint) as progress:
            _require_form(progress["choice"].get("spread", False), self._choice["spread"])
            self._watch.restore(progress["watch"])
            self._held_out.restore(progress["held_out"], load_file(best) if best.exists() else None)

    def restore_end(self, checkpoint: Checkpoint) -> bool:
        """Whether this is the end, now also the trainer's, which would take one more step before it looks."""
        state = TrainerState.load_from_json(str(checkpoint.folder / STATE))
        if state.global_step < state.max_steps:
            return False
        self._trainer.state = state
        self._load_weights(str(checkpoint.folder))
        return True

    def _load_weights(self, folder: str, *_: Any) -> None:
        """Raises `InputError` if the checkpoint's weights are not those that are trained now."""
        from safetensors.torch import load_file

        weights = load_file(Path(folder) / WEIGHTS)
        wanted = {
            name: parameter.shape
            for name, parameter in self._trainer.model.named_parameters()
            if parameter.requires_grad
        }
        if wanted != {name: weight.shape for name, weight in weights.items()}:
            raise InputError(
                "the checkpoint holds other weights than are trained",
                where="/output/checkpoints",
                found=f"{len(weights)} tensors",
                expected=f"{len(wanted)} tensors",
                hint="Remove the checkpoint to begin anew",
            )
        restore_weights(self._trainer.model, weights)


def _require_form(found: bool, wanted: bool) -> None:
    """Raises `InputError` for moments in the other form: by names of weights where those are spread, else by number."""
    if found != wanted:
        words = {True: "spread", False: "whole"}
        raise InputError("the checkpoint was made with the weights held otherwise", where="/resources/weights",
                         found=words[wanted], expected=words[found],
                         hint="Set it so again, or remove the checkpoint")  # fmt: skip


@contextmanager
def progress_of(checkpoint: Checkpoint) -> Iterator[dict[str, Any]]:
    """What a checkpoint says beside the trainer's own files. Raises `InputError` where it is of another form within."""
    try:
        yield json.loads((checkpoint.folder / PROGRESS).read_text())
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise InputError(
            f"the checkpoint's {PROGRESS} is of another form",
            where="/output/checkpoints",
            found=found,
            expected="one that this version wrote",
            hint="Remove the checkpoint to begin anew",
        ) from error


def _contiguous(weights: dict[str, Any]) -> dict[str, Any]:
    return {name: weight.contiguous() for name, weight in weights.items()}
