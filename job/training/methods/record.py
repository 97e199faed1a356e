"""What a training method is."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WEIGHTS = "weights"
TOKENS = ("input_ids", "labels", WEIGHTS)  # the last as `job.training.weighted` has it, mostly nothing
LABELLED = ("input_ids", "labels", "desirable")  # the last is one number, 1 or 0
PAIRS = ("input_ids", "labels", "rejected_input_ids", "rejected_labels")  # the first two are the chosen answer's

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Rewards:
    """How much a model likes an answer, by what it was trained with.

    `of`: from the settings of the method, an answer's log-probability (nats), the reference's, and its learned tokens.
    `by_reference`: whether there is one, the base with the adapter off; without, its log-probability is 0.
    """

    of: Callable[[Any, float, float, int], float]
    by_reference: bool


@dataclass(frozen=True)
class HeldOut:
    """The loss of held-out rows by which weights are chosen and a training is stopped early: `name`, and its mean from
    (trainer, rows, rows at once).
    """

    name: str
    measure: Callable[[Any, Any, int], float]


@dataclass(frozen=True)
class Method:
    """One way to learn from prepared rows; a new one is a module here and a line in `METHODS`. The rules of the spec
    ask them, so nothing of a spec is imported here; `spec` is a `JobSpec`.

    `trl_name` is what the config and the trainer of trl, as the engine has patched them, are called by; `trl_module`,
    which has them, is imported when they are asked for, and `own_trainer` makes ours of that trainer. `arguments` are
    those of its config beyond `trainer_arguments`, or in their place. `collator` makes a batch of rows, given the id
    that pads and the tokens of the longest sequence (None: trl's own). `check` raises `CapacityError` where the
    trainer, once it is made, is not set as the spec says. `kernel_loss`: trl's loss of it is a kernel that CPUs lack,
    and transformers' own takes its place. `further`: keyword arguments of the trainer, of the spec and the prepared
    rows, in the place of or beyond the common ones. `look` raises `InputError` for prepared rows that it cannot use;
    its last argument says whether it may ask others, and run what the operator allows, to find out.
    `remarks`: of the spec and the history of a training, what people should know. `answers`: how many sequences a step
    takes of a row, of the spec. `joins`: whether, of the spec, an engine on a GPU can compute rows one behind the
    other, each of which sees itself alone. `end` gives back what a trainer whose training has ended holds beside the
    model. `may_begin_anew`: whether, of the spec, a process can have another trainer where a step did not fit.
    """

    name: str
    title: str  # in what people read
    formats: tuple[str, ...]  # of rows that it learns from
    columns: tuple[str, ...]  # of a prepared row
    trl_name: str
    arguments: Callable[[Any], dict[str, Any]]
    check: Callable[[Any, Any], None]
    trl_module: str = "trl"
    own_trainer: Callable[[type], type] = lambda trainer_class: trainer_class
    collator: Callable[[int, int], Callable[[list[Row]], dict[str, Any]]] | None = None
    kernel_loss: bool = False
    loss_of_step: bool = False  # the same however a step is cut into passes, never with all logits at once
    held_out: HeldOut | None = None  # None: the loss of the labels, nats a token
    rewards: Rewards | None = None
    curves: Mapping[str, str] = field(default_factory=dict)  # of trl's log, and what we call them
    learning_rate: float | None = None  # where the spec has none; None: the schema's
    needs_adapter: bool = False
    learns_answers: bool = True  # of its rows; else they are what the model's own are compared with
    packs: bool = False
    joins: Callable[[Any], bool] = lambda spec: False
    further: Callable[[Any, Any], dict[str, Any]] | None = None
    look: Callable[[Any, Any, bool], None] = lambda spec, prepared, asks: None
    remarks: Callable[[Any, Sequence[Mapping[str, float]]], list[str]] = lambda spec, history: []
    answers: Callable[[Any], int] = lambda spec: 1
    end: Callable[[Any], None] = lambda trainer: None
    may_begin_anew: Callable[[Any], bool] = lambda spec: True
    least_rows: int = 1  # of a micro-batch
    sequences: int = 1  # of a row, in one forward pass
    further_passes: int = 0  # forward passes of a step beside the one that is learned from

    def trainer_classes(self) -> tuple[type, type]:
        """The config and the trainer."""
        module = importlib.import_module(self.trl_module)
        return getattr(module, f"{self.trl_name}Config"), self.own_trainer(getattr(module, f"{self.trl_name}Trainer"))
