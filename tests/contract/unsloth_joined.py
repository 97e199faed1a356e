"""What Unsloth's trainer makes of rows that are to be computed one behind the other, in a process that ends with it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

LONGEST = 32


def main(folder: str) -> int:
    """Writes `found.json` to `folder`: whether the trainer pads, and its first forward pass of rows of 5, 3 and 4."""
    os.environ["UNSLOTH_ALLOW_CPU"] = "1"  # the path of a GPU, with the trainers left out of the import
    from job.training.one_trainer import only_trainer

    with only_trainer("sft"):
        import unsloth  # noqa: F401
    from unsloth.models.rl import patch_trl_rl_trainers
    from unsloth.trainer import _patch_trl_trainer

    patch_trl_rl_trainers()
    _patch_trl_trainer()
    trainer = joined(Path(folder))
    batch = next(iter(trainer.get_train_dataloader()))
    found = {name: batch[name].tolist() for name in ("input_ids", "labels", "packed_seq_lengths")}
    found |= {"padding_free": trainer.data_collator.padding_free, "names": sorted(batch)}
    (Path(folder) / "found.json").write_text(json.dumps(found))
    return 0


def joined(folder: Path) -> Any:
    """The trainer, as a run on a GPU makes it."""
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from job.host.micro_batch import MicroBatch
    from job.training.methods import METHODS
    from job.training.trainer_arguments import join_rows, trainer_arguments
    from tests.specs import parse
    from tests.tiny import narrow_dir

    spec = parse({"/model/max_seq_length": LONGEST, "/data/shuffle": False, "/training/batch_size": 3})
    batch = MicroBatch(3, 1)
    config_class, trainer_class = METHODS["sft"].trainer_classes()
    rows = [[11, 12, 13, 14, 15], [21, 22, 23], [31, 32, 33, 34]]
    dataset = datasets.Dataset.from_dict({"input_ids": rows, "labels": rows})
    model = narrow_dir()
    arguments = trainer_arguments(spec, batch, "cpu", folder, False)
    arguments |= METHODS["sft"].arguments(spec) | join_rows(spec, batch, "cuda", dataset)
    return trainer_class(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=config_class(**arguments),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(model),
    )
