"""Messages that are learned in part: which tokens have which weight, and the loss and gradients that follow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from job.training.methods.sft import SFT
from job.training.weighted import taken_out, weighing, weighted, with_weights
from tests.data_rows import Row, byte_tokenizer_dir, prepare, turns
from tests.specs import parse
from tests.tiny import tiny_dir

if TYPE_CHECKING:
    from job.data.build import Prepared

WEIGHED: Row = {"role": "assistant", "content": "bb", "weight": 0.25}
TALK = [
    *turns("one", "a"),
    {"role": "user", "content": "two"},
    WEIGHED,
    {"role": "user", "content": "no", "weight": 0.5},
]
END = "<|im_end|>"


def by_weight(prepared: Prepared) -> list[tuple[str, float]]:
    """Texts of the first row's tokens that have one weight, one after the other; _ for a token that is not learned."""
    import torch

    row = with_weights(prepared.train)[0]
    labels, weights = taken_out(torch.tensor(row["labels"]))
    assert labels.tolist() == prepared.train[0]["labels"]
    found: list[tuple[str, float]] = []
    for token, label, weight in zip(row["input_ids"], labels.tolist(), weights.tolist(), strict=True):
        assert (label == -100) == (weight == 0.0)
        text = prepared.tokenizer.decode([token]) if weight else "_"
        if found and found[-1][1] == weight:
            text = found.pop()[0] + text
        found.append((text.replace("__", "_"), weight))
    return found


def test_tokens_of_an_answer_have_its_weight(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, [{"messages": TALK}], "messages", byte_tokenizer_dir())
    assert by_weight(prepared) == [("_", 0.0), (f"a{END}", 1.0), ("_", 0.0), (f"bb{END}", 0.25), ("_", 0.0)]
    assert "1 messages are learned in part, by their weight" in prepared.report.notes
    assert any("1 messages are marked to be learned but are not answers" in note for note in prepared.report.notes)


def test_so_have_those_of_any_role_where_all_is_learned_and_what_is_cut_has_none(tmp_path: Path) -> None:
    (tmp_path / "cut").mkdir()
    prepared = prepare(tmp_path, [{"messages": TALK}], "messages", byte_tokenizer_dir(), train_on="all")
    parts = [(text, weight) for text, weight in by_weight(prepared) if weight not in (0.0, 1.0)]
    assert parts == [(f"bb{END}", 0.25), ("no", 0.5)]
    length = 1 + next(n for n, (_, weight) in enumerate(every_token(prepared)) if weight == 0.25)
    cut = prepare(tmp_path / "cut", [{"messages": TALK}], "messages", byte_tokenizer_dir(), length=length)
    assert by_weight(cut)[-1] == ("b", 0.25)
    assert len(cut.train[0]["weights"]) == 3, "what is beyond the longest sequence has no weight"


def every_token(prepared: Prepared) -> list[tuple[int, float]]:
    import torch

    row = with_weights(prepared.train)[0]
    return list(zip(row["input_ids"], taken_out(torch.tensor(row["labels"]))[1].tolist(), strict=True))


def test_rows_without_weights_are_trained_as_ever(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, [{"messages": turns("a", "b")}], "messages", byte_tokenizer_dir())
    trainer, rows = weighing(dict, prepared.train)
    assert trainer is dict
    assert rows.column_names == ["input_ids", "labels"]


# ------------------------------------------------------------------------------------------------------- the loss

ROWS: list[Row] = [
    {"messages": [*turns(f"Say {n}"), {"role": "assistant", "content": "word " * (n + 1), "weight": weight},
                  *turns("Again", "yes " * (n % 3 + 1))]}
    for n, weight in enumerate([0.25, 1, 0.0, 0.5, 0.125, 1])
]  # fmt: skip


def tiny_model() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_dir(), attn_implementation="sdpa", dtype=torch.float32)


def trainer_of(prepared: Prepared, folder: Path, passes: int, **changes: Any) -> Any:
    """TRL's trainer with the weights of the rows, on the tiny model, two rows at a time, which learns nothing."""
    spec = parse({"/model/max_seq_length": 256})
    config_class, trainer_class = SFT.trainer_classes()
    arguments = SFT.arguments(spec) | changes
    config = config_class(
        output_dir=str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=passes, max_steps=1,
        use_cpu=True, report_to="none", learning_rate=0.0, train_sampling_strategy="sequential", bf16=False,
        gradient_checkpointing=False, disable_tqdm=True, logging_steps=1, max_grad_norm=0.0, save_strategy="no",
        **arguments,
    )  # fmt: skip
    trainer_class, rows = weighing(trainer_class, prepared.train)
    return trainer_class(model=tiny_model(), args=config, train_dataset=rows, processing_class=prepared.tokenizer)


def reference(prepared: Prepared, rows: list[int]) -> tuple[float, Any]:
    """Each token by itself, in plain torch: the loss of these rows, and its gradient in the output layer."""
    import torch

    model, total = tiny_model(), torch.zeros(())
    count = 0
    for row in (prepared.train[number] for number in rows):
        weights = dict.fromkeys(range(len(row["labels"])), 1.0)
        parts = row["weights"]
        for first, after, millionths in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            weights |= dict.fromkeys(range(first, after), millionths / 1e6)
        said = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for place, label in enumerate(row["labels"]):
            if label != -100:
                total = total - weights[place] * said[place - 1, label]
                count += 1
    (total / count).backward()
    return float(total) / count, model.get_output_embeddings().weight.grad


@pytest.mark.parametrize("padding_free", [False, True])
def test_loss_and_gradients_are_those_of_plain_torch(padding_free: bool, tmp_path: Path) -> None:
    """Over the passes of a step, padded and in one row without padding."""

    prepared = prepare(tmp_path, ROWS, "messages", tiny_dir(), shuffle=False)
    trainer = trainer_of(prepared, tmp_path / "out", passes=2, padding_free=padding_free, max_length=None)
    gradients: list[Any] = []
    trainer.create_optimizer().register_step_pre_hook(
        lambda *_: gradients.append(trainer.model.get_output_embeddings().weight.grad.clone())
    )
    trainer.train()
    loss, gradient = reference(prepared, [0, 1, 2, 3])
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, abs=1e-5)
    apart, largest = float((gradients[0] - gradient).abs().max()), float(gradient.abs().max())
    assert apart < 1e-4 * largest


def test_weights_go_with_their_tokens_into_packs(tmp_path: Path) -> None:
    """Of all rows in one pack each token has the weight that it has in its own row; the loss is that of the rows."""
    prepared = prepare(tmp_path, ROWS, "messages", tiny_dir(), shuffle=False)
    changes = {"packing": True, "dataset_kwargs": None, "max_length": 512}
    trainer = trainer_of(prepared, tmp_path / "out", passes=1, **changes)
    batch = next(iter(trainer.get_train_dataloader()))
    labels, weights = taken_out(batch["labels"])
    assert batch["input_ids"].shape[0] == 1
    found = {(token, label, weight) for token, label, weight in zip(
        batch["input_ids"][0].tolist(), labels[0].tolist(), weights[0].tolist(), strict=True)}  # fmt: skip
    import torch

    rows = with_weights(prepared.train)
    own = [(row["input_ids"], *taken_out(torch.tensor(row["labels"]))) for row in rows]
    assert found == {each for ids, known, of in own for each in zip(ids, known.tolist(), of.tolist(), strict=True)}
    learned = [
        (label, weight)
        for _, known, of in own
        for label, weight in zip(known.tolist(), of.tolist(), strict=True)
        if weight
    ]
    packed = [(label, weight) for label, weight in zip(labels[0].tolist(), weights[0].tolist(), strict=True) if weight]
    assert sorted(packed) == sorted(learned)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(reference(prepared, list(range(6)))[0], abs=1e-5)


def test_whole_weights_are_the_loss_of_the_trainer_itself(tmp_path: Path) -> None:
    """Also of a mixture of experts, whose config adds how evenly they are asked."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    prepared = prepare(tmp_path, ROWS, "messages", tiny_dir(), shuffle=False)
    config = MixtralConfig(
        vocab_size=len(prepared.tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=2, output_router_logits=True,
        router_aux_loss_coef=0.5,
    )  # fmt: skip
    torch.manual_seed(1)
    model = MixtralForCausalLM(config)
    row = prepared.train[1]
    batch = {"input_ids": torch.tensor([row["input_ids"]]), "labels": torch.tensor([row["labels"]])}
    from trl.trainer.utils import add_fused_lm_head

    from job.training.methods.plain import compute_on_cpus

    class Bare:
        model_accepts_loss_kwargs = True
        current_gradient_accumulation_steps = 1

    own = float(model(**batch).loss)
    plain = float(model(**batch, output_router_logits=False).loss)
    add_fused_lm_head(model)
    compute_on_cpus(type("", (), {"use_cpu": True}))
    count = int((batch["labels"] != -100).sum())
    bare = weighted(Bare).__new__(weighted(Bare))
    bare.model = model
    assert float(bare.compute_loss(model, batch, num_items_in_batch=count)) == pytest.approx(own, abs=1e-5)
    assert own - plain > 0.1, "else the experts add nothing"
