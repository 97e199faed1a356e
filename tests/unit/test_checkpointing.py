"""Layers that keep their activations, and what a run on a CPU does by default."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from job.host.micro_batch import MicroBatch
from job.plan.model_size import ModelSize
from job.training.backend import PeftBackend
from job.training.checkpointing import Chooser, checkpointing_of
from tests.specs import parse
from tests.tiny import tiny_dir

LAYERS = 2
SPEC = parse(
    {"/model": {"source": "m", "backend": "peft", "precision": "16bit", "max_seq_length": 64}, "/lora": {"r": 2}}
)


def passes(model: Any) -> tuple[Counter[int], dict[str, Any]]:
    """How often each layer is run for one forward and backward pass, and the gradients."""
    counted: Counter[int] = Counter()
    layers = model.get_base_model().model.layers
    hooks = [
        layer.self_attn.register_forward_hook(lambda *_, number=number: counted.update([number]))
        for number, layer in enumerate(layers)
    ]
    model.train()
    ids = torch.arange(3, 35).reshape(2, 16)
    model(input_ids=ids, labels=ids).loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    for hook in hooks:
        hook.remove()
    return counted, gradients


def test_only_the_other_layers_are_computed_again_and_the_gradients_are_the_same() -> None:
    backend = PeftBackend("cpu")
    model = backend.load(tiny_dir(), SPEC.model, SPEC.lora, True)
    assert backend.loaded_with is True
    found = {}
    for kept in (0, 1, LAYERS, 0):
        backend.keep_activations(model, kept)
        again, found[kept] = passes(model)
        assert sorted(again.values()) == [1] * kept + [2] * (LAYERS - kept)
    for gradients in found.values():
        assert all(torch.equal(gradients[name], wanted) for name, wanted in found[0].items())


@pytest.mark.parametrize(("parameters", "recomputed"), [(10**8, False), (10**12, True)])
def test_on_a_cpu_everything_is_kept_where_there_is_room(parameters: int, recomputed: bool) -> None:
    size = ModelSize(parameters, 1024, 16, 32_000, quantised=False, local=True, origin="")
    assert checkpointing_of(SPEC, size, "cpu") is recomputed
    for value in (True, False):
        assert (
            checkpointing_of(replace(SPEC, training=replace(SPEC.training, gradient_checkpointing=value)), size, "cpu")
            is value
        )


def test_on_a_gpu_it_is_the_engines_own() -> None:
    size = ModelSize(10**8, 1024, 16, 32_000, quantised=False, local=True, origin="")
    assert checkpointing_of(SPEC, size, "cuda") is True
    assert checkpointing_of(parse({}), size, "cuda") == "unsloth"


@pytest.mark.parametrize(
    ("parameters", "lengths", "micro_batch", "rows"),
    [
        (10**8, [20] * 16, "auto", 8),
        (10**8, [20, 400] * 8, "auto", 1),  # several at once would be padded for longer than more passes take
        (10**8, [20, 400] * 8, 4, 4),
        (10**12, [20] * 16, "auto", 2),  # no way is small enough: the spec's own
        (10**12, [20] * 16, 8, 8),
    ],
)
def test_a_step_on_a_cpu_is_cut_as_it_is_quickest(
    parameters: int, lengths: list[int], micro_batch: Any, rows: int
) -> None:
    training = replace(SPEC.training, batch_size=2, gradient_accumulation_steps=4, micro_batch=micro_batch)
    size = ModelSize(parameters, 1024, 16, 32_000, quantised=False, local=True, origin="")
    choice, _ = Chooser(replace(SPEC, training=training), size, PeftBackend("cpu"), lengths).first()
    assert choice.batch == MicroBatch(rows, 8 // rows)
