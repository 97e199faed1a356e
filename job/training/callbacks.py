"""What watches the training loop: progress, losses that are not a number, the held-out loss.

Imported by `train` only, once transformers is loaded anyway.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from job.errors import GateError
from job.host.log import Bar
from job.host.watchdog import Watchdog
from job.spec import TrainingSpec
from job.tracking.follow import Followed
from job.training.spread import part_of, whole

CURVES = {"loss", "grad_norm", "learning_rate"}
ATTENTION_MASKS = ("attention_mask", "chosen_attention_mask", "rejected_attention_mask")  # of what is learned from
STEP_FIELDS = {"loss": "loss", "grad_norm": "grad_norm", "learning_rate": "learning_rate"}


class TokenCounter:
    """Counts the tokens, padding aside, of every training forward pass without waiting for the GPU."""

    def __init__(self, trainer: Any) -> None:
        self.before = 0
        self._total: Any = 0
        self._whole_steps: Any = 0
        step = trainer.training_step

        def counted(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(inputs, list):  # prompts, whose answers are given within
                loss = step(model, inputs, *args, **kwargs)
                self._total = int(trainer.state.num_input_tokens_seen)
                return loss
            masks = [inputs[name] for name in ATTENTION_MASKS if name in inputs]
            counted = sum(mask.sum() for mask in masks) if masks else inputs["input_ids"].numel()
            self._total = self._total + counted
            return step(model, inputs, *args, **kwargs)

        trainer.training_step = counted

    def count(self) -> int:
        """Since the training began, in whatever process that was."""
        return self.before + self.since_start()

    def since_start(self) -> int:
        return int(self._total)

    def step_ended(self) -> None:
        self._whole_steps = self._total

    def in_whole_steps(self) -> int:
        """Without those of a step that was begun and will be taken again."""
        return self.before + int(self._whole_steps)


class Curves(TrainerCallback):  # type: ignore[misc]
    """TensorBoard scalars under `folder`, of `further` names besides, without settings: they have paths."""

    def __init__(self, folder: Path, further: Collection[str]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))
        self._names = CURVES | set(further)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        for name in self._names & logs.keys():
            if logs[name] is not None:
                self._writer.add_scalar(name, logs[name], state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._writer.close()


class Trackers(TrainerCallback):  # type: ignore[misc]
    """The same curves for the other trackers of the spec."""

    def __init__(self, followed: Followed, further: Collection[str]) -> None:
        self._followed = followed
        self._names = CURVES | set(further)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        known = [name for name in self._names & logs.keys() if logs[name] is not None]
        if figures := {name: float(logs[name]) for name in known}:
            self._followed.log(state.global_step, figures)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._followed.close()


class LossWatch(TrainerCallback):  # type: ignore[misc]
    """Keeps each logged step, shows progress, and ends the run on a loss or gradient that is not finite. `further`:
    names of what the trainer logs of a step besides, None where there was nothing, and ours for them.
    """

    bar: Bar

    def __init__(self, tokens: TokenCounter, watchdog: Watchdog, further: Mapping[str, str]) -> None:
        self.tokens = tokens
        self.watchdog = watchdog
        self._fields = STEP_FIELDS | dict(further)
        self.applying = False
        self.history: list[dict[str, float]] = []
        self.seconds_before = 0.0
        self.first_step = 0
        self._start = self._step_start = self._step_end = time.monotonic()
        self._step_seconds: list[float] = []
        self._not_logged: list[float] = []  # seconds of the steps since the last one that was logged

    def progress(self) -> dict[str, Any]:
        """For a checkpoint: what was seen so far."""
        return {"history": self.history, "tokens": self.tokens.in_whole_steps(), "seconds": self.seconds()}

    def restore(self, progress: dict[str, Any]) -> None:
        self.history = progress["history"]
        self.tokens.before = progress["tokens"]
        self.seconds_before = progress["seconds"]

    def seconds(self) -> float:
        """Of training, in all processes that took part."""
        return self.seconds_before + time.monotonic() - self._start

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.total = state.max_steps
        self.first_step = state.global_step
        self._start = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._step_start = time.monotonic()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.applying = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.applying = False
        self.tokens.step_ended()
        self.watchdog.beat()
        self._step_end = time.monotonic()
        self._not_logged.append(self._step_end - self._step_start)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        record = {ours: float(logs[theirs]) for theirs, ours in self._fields.items() if logs.get(theirs) is not None}
        if "loss" not in record:
            return
        self._steps_done()
        for name in ("loss", "grad_norm"):
            if not math.isfinite(record.get(name, 0.0)):
                raise GateError(
                    f"training diverged: the {name} at step {state.global_step} is not a number",
                    where="/training/learning_rate",
                    found=f"{name} {record[name]}",
                    expected="a finite value",
                    hint="Lower the learning rate, lengthen the warm-up, or look at the rows of this step",
                )
        elapsed = time.monotonic() - self._start
        record |= {"step": state.global_step, "epoch": round(float(state.epoch or 0), 4)}
        record["tokens_per_second"] = round(self.tokens.since_start() / elapsed, 1)
        self.history.append(record)
        eta = (state.max_steps - state.global_step) * elapsed / max(state.global_step - self.first_step, 1)
        self.bar.update(state.global_step, **record, eta_seconds=round(eta))

    def _steps_done(self) -> None:
        """Steps end when their kernels are queued; the loss in the log has waited for the GPU to finish them."""
        waited_seconds = time.monotonic() - self._step_end
        self._step_seconds += [seconds + waited_seconds / len(self._not_logged) for seconds in self._not_logged]
        self._not_logged.clear()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What happens within, after a step and before its loss is logged, is not a part of the step."""
        start = time.monotonic()
        yield
        self._step_end += time.monotonic() - start

    def median_step_seconds(self) -> float | None:
        """Of this process's steps from the third on: two compile kernels. None where a resumed run had no step left."""
        steps = [*self._step_seconds, *self._not_logged]
        return statistics.median(steps[2:] or steps) if steps else None


class HeldOutWatch(TrainerCallback):  # type: ignore[misc]
    """Measures the held-out loss every `eval_steps`; keeps the best weights and stops early if asked to.

    The loss is the one that the method lowers, under the `name` that it has in the history: of labels our own
    token-weighted one, the same before, during and after training.
    """

    def __init__(
        self, spec: TrainingSpec, name: str, measure: Callable[[], float], report: Callable[[int, str, float], None]
    ) -> None:
        self.spec = spec
        self.name = name
        self.measure = measure
        self.report = report
        self.history: list[dict[str, float]] = []
        self.best_loss = math.inf
        self.best_step = 0
        self.best_weights: dict[str, Any] | None = None
        self.stopped_early = False
        self._without_improvement = 0

    def progress(self) -> dict[str, Any]:
        """For a checkpoint; the best weights go into a file of their own."""
        best = self.best_loss if self.history else None  # infinity is not JSON
        return {
            "history": self.history,
            "best_loss": best,
            "best_step": self.best_step,
            "without_improvement": self._without_improvement,
        }

    def restore(self, progress: dict[str, Any], best_weights: dict[str, Any] | None) -> None:
        self.history = progress["history"]
        self.best_loss = math.inf if progress["best_loss"] is None else progress["best_loss"]
        self.best_step = progress["best_step"]
        self.best_weights = best_weights
        self._without_improvement = progress["without_improvement"]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> Any:
        if not self.spec.eval_steps or (
            state.global_step % self.spec.eval_steps and state.global_step < state.max_steps
        ):
            return control
        loss = self.measure()
        self.history.append({"step": state.global_step, self.name: loss})
        self.report(state.global_step, self.name, loss)
        self._judge(loss, state.global_step, model)
        if self.spec.early_stopping and self._without_improvement >= self.spec.early_stopping.patience:
            self.stopped_early = control.should_training_stop = True
        return control

    def _judge(self, loss: float, step: int, model: Any) -> None:
        min_delta = self.spec.early_stopping.min_delta if self.spec.early_stopping else 0.0
        self._without_improvement = 0 if loss < self.best_loss - min_delta else self._without_improvement + 1
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, step
            if self.spec.keep == "best":
                self.best_weights = trainable_weights(model)


def trainable_weights(model: Any, kept: bool = True) -> dict[str, Any]:
    """A copy in host memory of every weight that is being trained; nothing of it unless it is `kept`, for ranks that
    only bring in their part.
    """
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            weight = whole(parameter.detach())
            if kept:
                found[name] = weight.to("cpu", copy=True)
    return found


def restore_weights(model: Any, weights: dict[str, Any]) -> None:
    """Puts `trainable_weights` back in place."""
    for name, parameter in model.named_parameters():
        if name in weights:
            parameter.data.copy_(part_of(parameter.data, weights[name]))
