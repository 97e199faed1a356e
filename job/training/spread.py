"""Weights that are spread over the ranks (FSDP2): each holds a part of every matrix, of its gradient and its moments.

Layers are put together for as long as they are computed. So all ranks compute the same number of forward passes, in
which they meet; one that has none of its own left computes one of which nothing is learned. Checkpoints hold whole
weights and moments, and go on with any number of ranks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from job.data.worker.wire import IGNORED
from job.training.ranks import Ranks
from job.training.shared_steps import SharedSteps

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"  # as the trainer calls them


def spread(model: Any, ranks: Ranks, device: str) -> None:
    """Leaves this rank its part of `model`, which every rank has loaded whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers.modeling_layers import GradientCheckpointingLayer

    mesh = init_device_mesh(device, (ranks.count,))
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)  # a measurement has no backward pass to do it


def whole(weight: Any) -> Any:
    """All of a weight of which this rank may hold a part; every rank has to ask."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def part_of(weight: Any, known: Any) -> Any:
    """What of the whole weight `known` is this rank's, in the form of `weight`."""
    if not hasattr(weight, "full_tensor"):
        return known
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(known.to(weight.device, weight.dtype), weight.device_mesh, weight.placements)


class SpreadSteps(SharedSteps):
    """Where gradients are added up as they come, in the parts that the ranks hold."""

    spread = True

    def __init__(self, trainer: Any, ranks: Ranks, seed: int) -> None:
        super().__init__(trainer, ranks, seed, ())
        backward, clip = trainer.accelerator.backward, trainer._clip_grad_norm
        # Ranks' gradients are averaged there, and what is wanted is their sum
        trainer.accelerator.backward = lambda loss, **named: backward(loss * ranks.count, **named)
        trainer._clip_grad_norm = lambda model: whole(clip(model))
        trainer._load_optimizer_and_scheduler = self._load

    def due(self, due: bool) -> bool:
        return self._ranks.of_first(lambda: due)

    def _training_step(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
        import torch

        number, count = self._done, self._ranks.count
        self._done += 1
        loss = torch.zeros((), device=self._trainer.args.device)
        last = self._done == self._passes
        if number % count == self._ranks.rank:
            self._draw_anew(number)
            loss = self._step(model, inputs, *arguments, **named)
        elif last and 0 < self._passes % count <= self._ranks.rank:
            nothing = inputs | {"labels": torch.full_like(inputs["labels"], IGNORED)}
            loss = self._step(model, nothing, *arguments, **named)
        if last:
            return self._whole(loss) - self._loss
        self._loss = self._loss + loss
        return loss

    def _add_up(self, loss: Any, met: list[Any]) -> None:
        self._ranks.add_up([loss])

    def optimizer_state(self) -> dict[str, Any]:
        """Of all ranks together, in the first; empty in the others. Every rank has to ask."""
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        found: dict[str, Any] = get_optimizer_state_dict(self._trainer.model, self._optimizer(), options=_options())
        return found

    def save(self, state: dict[str, Any], folder: Path) -> None:
        import torch

        torch.save(state, folder / OPTIMIZER)
        torch.save(self._trainer.lr_scheduler.state_dict(), folder / SCHEDULER)

    def _load(self, checkpoint: str | None) -> None:
        """In the trainer's place."""
        if checkpoint is None:
            return
        import torch
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        folder = Path(checkpoint)
        state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
        set_optimizer_state_dict(self._trainer.model, self._optimizer(), state, options=_options())
        self._trainer.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER, weights_only=True))

    def _optimizer(self) -> Any:
        """Torch's own, which accelerate wraps."""
        return getattr(self._trainer.optimizer, "optimizer", self._trainer.optimizer)


def _options() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True)
