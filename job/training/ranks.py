"""Processes that train one model together, one on each card: where they meet, and what they have to agree on.

The trainer of each knows of no other. It takes every step with the rows of one process; of its forward passes a rank
computes its own, and gradients and losses are added up before they are applied (`job.training.shared_steps`). So masks,
packing, order, the weight of a token and the schedule are those of one card. Whatever ranks ask of each other they ask
between two forward passes: one that is short of memory there does not leave the others waiting within one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from job.errors import DeviceError, TransientError
from job.host.micro_batch import free_memory
from job.host.time_limits import limit

Found = TypeVar("Found")
GONE = "another process of the training does not answer"
BUCKET_NUMBERS = 1 << 24  # gradients that are copied together, to be added up at once
PATIENCE = 2  # times the limit of a stall: each process's own watchdog ends it before, and says where it was


@dataclass(frozen=True)
class RankPlace:
    """Of one process among `count`. `meeting`: where they meet, as torch's `init_method` has it. `said`: the file that
    gets its log. `threads`: of a computation on the CPU. `local`: among those of its `machine`.
    """

    rank: int
    count: int
    meeting: str
    said: Path
    threads: int
    local: int = 0
    machine: int = 0

    @property
    def name(self) -> str:
        return f"process {self.rank + 1} of {self.count}"

    @property
    def workdir(self) -> Path:
        """Of a process that stores nothing; the first one has the run's."""
        return self.said.with_suffix("")


class Ranks:
    """This process among those that train; by itself, it is asked nothing."""

    def __init__(self, place: RankPlace | None = None, device: str = "cpu", spread: bool = False) -> None:
        """Meets the others. `spread`: each holds a part of the weights (`job.training.spread`), and they meet in every
        forward pass. Raises `TransientError` if the others do not come.
        """
        self.spread = spread
        self.rank, self.count = (place.rank, place.count) if place else (0, 1)
        self._far = bool(place and place.machine)
        self._hosts: Any = None
        if place and place.count > 1:
            import torch.distributed as dist

            patience = timedelta(minutes=PATIENCE * limit("TUNEJOB_STALL_MINUTES"))
            who = {"init_method": place.meeting, "rank": place.rank, "world_size": place.count}
            self._ask(lambda: dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=patience, **who))
            # What is agreed travels between hosts, and nobody waits for a GPU
            self._hosts = dist.new_group(backend="gloo", timeout=patience) if device == "cuda" else dist.group.WORLD

    @property
    def first(self) -> bool:
        """The one that stores, and whose figures are shown."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.count == 1

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Of each flag, whether it is set anywhere."""
        return [bool(number) for number in self._reduced([float(flag) for flag in flags], "MAX")]

    def total(self, numbers: Sequence[float]) -> list[float]:
        return self._reduced(numbers, "SUM")

    def least(self, number: int) -> int:
        return int(self._reduced([float(number)], "MIN")[0])

    def of_first(self, make: Callable[[], Found]) -> Found:
        """What `make` gives where it is called, which is in the first process alone."""
        if self.alone:
            return make()
        import torch.distributed as dist

        found: list[Any] = [make() if self.first else None]
        self._ask(lambda: dist.broadcast_object_list(found, src=0, group=self._hosts))
        known: Found = found[0]
        return known

    def brought(self, start: Any, target: Path) -> Any:
        """The checkpoint of the first process, if there is one, with its files on other machines at `target`."""
        if start is None or not self.any([self._far])[0]:
            return start
        files = self.of_first(lambda: {path.name: path.read_bytes() for path in start.folder.iterdir()})
        if not self._far:
            return start
        target.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (target / name).write_bytes(content)
        return replace(start, folder=target)

    def all_or_none(self, work: Callable[[], Found]) -> Found:
        """`work()`, in each process its own. Raises `OutOfMemoryError` everywhere where one had no memory for it."""
        if self.alone:
            return work()
        from torch import OutOfMemoryError

        found, short = None, ""
        try:
            found = work()
        except OutOfMemoryError as error:
            short = str(error)
        if self.any([bool(short)])[0]:
            raise short_of_memory(short)
        done: Found = found  # type: ignore[assignment]
        return done

    def gathered(self, own: Found) -> list[Found]:
        """Everybody's own, in the order of the ranks."""
        if self.alone:
            return [own]
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        self._ask(lambda: dist.all_gather_object(found, own, group=self._hosts))
        return found

    def share(self, rows: Any) -> Any:
        """What of a data set this process measures: a part of it, or as much as all others."""
        return rows if self.alone or self.spread else rows.select(range(self.rank, len(rows), self.count))

    def add_up(self, tensors: Sequence[Any]) -> None:
        """Each tensor becomes the sum of all processes' own; small ones travel together."""
        bucket: list[Any] = []
        for tensor in tensors:
            if tensor.numel() >= BUCKET_NUMBERS:
                self._sum(tensor)
                continue
            numbers = tensor.numel() + sum(other.numel() for other in bucket)
            if bucket and (tensor.dtype != bucket[0].dtype or numbers > BUCKET_NUMBERS):
                self._sum_together(bucket)
                bucket = []
            bucket.append(tensor)
        if bucket:
            self._sum_together(bucket)

    def same_start(self, weights: Sequence[Any]) -> None:
        """Gives every process the first one's weights."""
        if not self.alone and not self.spread:
            import torch.distributed as dist

            for weight in weights:
                self._ask(lambda weight=weight: dist.broadcast(weight.data, src=0))  # type: ignore[misc]

    def require_same(self, weights: Sequence[Any]) -> None:
        """Raises `DeviceError` where the processes, which have all taken the same steps, hold other weights."""
        if self.alone or self.spread:
            return
        import torch

        norms = torch.stack([weight.detach().double().norm() for weight in weights])
        digest = int(hashlib.sha256(norms.cpu().numpy().tobytes()).hexdigest()[:12], 16)
        if self.least(digest) != -self.least(-digest):
            raise DeviceError(
                "the cards hold different weights after the same steps", hint="Try another node; one miscounts"
            )

    def _reduced(self, numbers: Sequence[float], how: str) -> list[float]:
        if self.alone:
            return list(numbers)
        import torch
        import torch.distributed as dist

        found = torch.tensor(numbers, dtype=torch.float64)
        self._ask(lambda: dist.all_reduce(found, getattr(dist.ReduceOp, how), group=self._hosts))
        reduced: list[float] = found.tolist()
        return reduced

    def _sum(self, tensor: Any) -> None:
        import torch.distributed as dist

        self._ask(lambda: dist.all_reduce(tensor))

    def _sum_together(self, tensors: Sequence[Any]) -> None:
        import torch

        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self._sum(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def _ask(self, question: Callable[[], object]) -> None:
        """Raises `TransientError` where another process does not answer: what became of it, its own end says."""
        try:
            question()
        except RuntimeError as error:
            raise TransientError(GONE, found=str(error).splitlines()[0]) from error


def short_of_memory(what: str) -> Exception:
    """That of a step which some process had no memory for."""
    from torch import OutOfMemoryError

    free_memory()
    error: Exception = OutOfMemoryError(what or "another process of the training is out of memory")
    return error
