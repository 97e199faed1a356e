"""Which of TRL's trainers are Unsloth's after its import, as on a GPU, in a process that ends with it."""

from __future__ import annotations

import json
import os
from pathlib import Path


def main(name: str, found: str) -> int:
    """Writes to the file `found` the trainers of trl that are not TRL's any more."""
    os.environ["UNSLOTH_ALLOW_CPU"] = "1"  # the path of a GPU, with the trainers left out of the import
    from job.training.one_trainer import only_trainer

    with only_trainer(name):
        import unsloth  # noqa: F401
    import trl
    from trl.experimental.orpo import ORPOTrainer
    from unsloth.models.rl import patch_trl_rl_trainers

    patch_trl_rl_trainers()
    trainers = [ORPOTrainer, *(getattr(trl, each) for each in dir(trl) if each.endswith("Trainer"))]
    theirs = [each.__name__ for each in trainers if each.__module__.split(".")[0] != "trl"]
    Path(found).write_text(json.dumps(theirs))
    return 0
