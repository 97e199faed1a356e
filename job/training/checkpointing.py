"""Which layers compute their activations again, and how many rows go through the model at once: asked of the reckoning
in `job.plan.choice`, with the memory that is really free.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from job.host.cgroup import available_bytes
from job.host.micro_batch import MicroBatch
from job.plan.cards import card_of_device
from job.plan.choice import Choice, Training
from job.plan.gpu_memory import gpu_bytes, rows_at_once
from job.plan.model_size import ModelSize
from job.plan.schedule import Schedule, schedule
from job.spec import JobSpec
from job.training.backend import Backend
from job.training.methods import METHODS
from job.training.ranks import Ranks

FP32 = 2  # times what a GPU's 16 bits take
CPU_PASS_TOKENS = (
    64  # take as long as what a pass costs beside its tokens: SmolLM2 on two cores, 1, 2 and 8 rows at once
)


def checkpointing_of(spec: JobSpec, size: ModelSize, device: str) -> str | bool:
    """Checkpointing as the engine is given it when it loads the model. On a CPU `auto` is none where half of the free
    memory holds everything: what is computed does not depend on it there.
    """
    wanted = spec.training.gradient_checkpointing
    if wanted != "auto":
        return wanted
    if device == "cpu":
        tokens = spec.training.batch_size * spec.model.max_seq_length
        return FP32 * gpu_bytes(spec, size, tokens, size.layers) > available_bytes() / 2
    return "unsloth" if spec.model.backend == "unsloth" else True


class Chooser:
    """The choice for a training on this machine, and what comes after one that did not fit."""

    def __init__(
        self, spec: JobSpec, size: ModelSize, backend: Backend, lengths: list[int], ranks: Ranks | None = None
    ) -> None:
        """`backend`: with the model loaded. `lengths`: tokens of each sequence. `ranks` choose the same."""
        self._spec, self._size, self._backend, self._ranks = spec, size, backend, ranks or Ranks()

        @cache
        def scheduled(rows: int) -> Schedule:
            return schedule(spec, lengths, rows, spec.data.packing)

        self._scheduled = scheduled
        self._on_cpu = backend.device == "cpu"

    def first(self) -> tuple[Choice, dict[str, Any]]:
        """The choice, and what it rests on."""
        if self._on_cpu:
            return self._cpu_choice(self._cpu_rows()), {}
        return self._chosen(self._training(), self._usable_bytes())

    def _chosen(self, training: Training, usable_bytes: int) -> tuple[Choice, dict[str, Any]]:
        choice = training.choose(usable_bytes)
        planned = gpu_bytes(self._spec, self._size, 0, 0) + choice.activation_bytes
        return choice, {"usable_bytes": usable_bytes, "planned_bytes": planned, "times_of": training.card.name}

    def after(self, failed: Choice) -> Choice | None:
        """One that needs less; None if there is none."""
        if not self._on_cpu:
            return self._training().choose_after(failed, self._usable_bytes())
        smaller, least = failed.batch.smaller(), METHODS[self._spec.training.method].least_rows
        return self._cpu_choice(smaller.rows) if smaller and smaller.rows >= least else None

    def remembered(self, known: Mapping[str, int]) -> tuple[Choice, dict[str, Any]]:
        """Of a training that goes on: the choice it was made with, and nothing more to say; or, where this GPU is
        reckoned too small for it, a new one, and why.
        """
        rows, kept_layers = self._rows_for_all(known["micro_batch"]), known["kept_layers"]
        if self._on_cpu:
            return self._cpu_choice(rows), {}
        training, usable = self._training(), self._usable_bytes()
        choice = training.choice(rows, kept_layers)
        if training.fits(choice, usable):
            return choice, {}
        anew, known = self._chosen(training, usable)
        why = f"{rows} rows at once and {kept_layers} layers, as before, are too much for the memory that is free here"
        return anew, known | {"reason": why}

    def _rows_for_all(self, rows: int) -> int:
        """`rows`, or fewer, so that a step has a forward pass for every rank; where the spec lets that be chosen."""
        training = self._spec.training
        if training.micro_batch != "auto" or not METHODS[training.method].loss_of_step:
            return rows
        rows_a_step = training.batch_size * training.gradient_accumulation_steps
        most = max(1, min(rows, rows_a_step // self._ranks.count))
        return next(count for count in range(most, 0, -1) if rows_a_step % count == 0)

    def _cpu_rows(self) -> int:
        """The quickest way to cut a step that half of the free memory holds; where none does, the spec's batch size,
        which `checkpointing_of` has counted with.
        """
        may = rows_at_once(self._spec)
        if len(may) == 1:
            return may[0]

        def tokens(rows: int) -> int:
            planned = self._scheduled(rows)
            return planned.padded_tokens + CPU_PASS_TOKENS * planned.micro_batches

        def fits(rows: int) -> bool:
            longest = rows * self._scheduled(rows).longest_tokens
            return FP32 * gpu_bytes(self._spec, self._size, longest, self._cpu_kept_layers) <= available_bytes() / 2

        return min(filter(fits, may), key=tokens, default=self._spec.training.batch_size)

    @property
    def _cpu_kept_layers(self) -> int:
        return 0 if self._backend.loaded_with else self._size.layers

    def _cpu_choice(self, rows: int) -> Choice:
        training, rows = self._spec.training, self._rows_for_all(rows)
        passes = training.batch_size * training.gradient_accumulation_steps // rows
        return Choice(MicroBatch(rows, passes), self._cpu_kept_layers, 0)

    def _usable_bytes(self) -> int:
        """Of the GPU that has least."""
        return self._ranks.least(usable_gpu_bytes())

    def _training(self) -> Training:
        import torch

        properties = torch.cuda.get_device_properties(0)
        card = card_of_device(properties.name, properties.total_memory)
        return Training(self._spec, self._size, self._scheduled, card, self._ranks.count)


def usable_gpu_bytes() -> int:
    """What PyTorch may have of the GPU in all: what it holds, and what nobody holds."""
    import torch

    free, total = torch.cuda.mem_get_info()
    allowed = total * torch.cuda.get_per_process_memory_fraction()
    return int(min(free + torch.cuda.memory_reserved(), allowed))
