"""A step that several ranks take together: each computes its own forward passes, and applies the gradients of all."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from job.host.signals import stop_requested
from job.training.ranks import Ranks, short_of_memory

SPREAD = 1_000_003  # seeds of a step apart from those of the next


class SharedSteps:
    """Has a trainer, which takes every step with all its rows, compute the forward passes of this rank alone, and apply
    the gradients of all ranks.

    Random numbers, of dropout, are drawn anew for each forward pass: they do not depend on whose it is.
    """

    spread = False  # whether each rank holds a part of the weights

    def __init__(self, trainer: Any, ranks: Ranks, seed: int, curves: Collection[str]) -> None:
        """`curves`: what the trainer notes of a forward pass, and logs."""
        self._trainer, self._ranks, self._seed, self._curves = trainer, ranks, seed, curves
        self._noted: dict[str, int] = {}
        self._step, self._batches = trainer.training_step, trainer.get_batch_samples
        self._trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
        self._passes = self._done = 0
        self._loss: Any = 0.0
        self._short = ""
        self.stopping, self.first = False, ranks.first
        trainer.training_step, trainer.get_batch_samples = self._training_step, self._get_batch_samples

    def due(self, due: bool) -> bool:
        """Whether a checkpoint is made now, where this rank thinks that it is `due`."""
        return due

    def _get_batch_samples(self, *arguments: Any, **named: Any) -> Any:
        found = self._batches(*arguments, **named)
        self._passes, self._done, self._loss, self._short = len(found[0]), 0, 0.0, ""
        self._noted = {name: len(self._notes().get(name, ())) for name in self._curves}
        return found

    def _training_step(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
        import torch

        number, loss = self._done, torch.zeros((), device=self._trainer.args.device)
        self._done += 1
        if number % self._ranks.count == self._ranks.rank and not self._short:
            self._draw_anew(number)
            try:
                loss = self._step(model, inputs, *arguments, **named)
            except torch.OutOfMemoryError as error:
                self._short = str(error)
        if self._done < self._passes:
            self._loss = self._loss + loss
            return loss
        return self._whole(loss) - self._loss

    def _whole(self, loss: Any) -> Any:
        """Ends a step: the loss of it, and the gradients of all ranks in the place of this one's."""
        own = [stop_requested(), bool(self._short), *(weight.grad is not None for weight in self._trained)]
        self.stopping, short, *there = self._ranks.any(own)
        if short:
            raise short_of_memory(self._short)
        self._draw_anew(self._passes)
        if self._curves:
            self._share_notes()
        whole = (self._loss + loss).detach().float().reshape(1)
        self._add_up(whole, [weight for weight, anywhere in zip(self._trained, there, strict=True) if anywhere])
        return whole[0].to(loss.dtype)

    def _add_up(self, loss: Any, met: list[Any]) -> None:
        """`loss`, and the gradients of the weights that any rank has `met` in this step."""
        for weight in met:
            if weight.grad is None:
                weight.grad = weight.data.new_zeros(weight.shape)
        self._ranks.add_up([loss, *(weight.grad for weight in met)])

    def _notes(self) -> Any:
        """Of each name, what trl has noted since it last logged."""
        notes = getattr(self._trainer, "_metrics", None) or self._trainer._stored_metrics  # orpo's
        return notes["train"]

    def _share_notes(self) -> None:
        notes = self._notes()
        own = {name: [float(value) for value in notes.get(name, ())[begin:]] for name, begin in self._noted.items()}
        everywhere = self._ranks.gathered(own)
        for name, begin in self._noted.items():
            if found := [value for known in everywhere for value in known[name]]:  # trl divides by their number
                notes[name][begin:] = found

    def _draw_anew(self, number: int) -> None:
        import torch

        torch.manual_seed(self._seed + SPREAD * self._trainer.state.global_step + number)
