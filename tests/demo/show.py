"""Prints what the demo's base and trained model answered: `python -m tests.demo.show OUTPUT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    output = Path(sys.argv[1])
    answers = json.loads((output / "report" / "answers.json").read_text())
    stats = json.loads((output / "stats.json").read_text())
    prompts = json.loads((output / "spec.json").read_text())["evaluation"]["prompts"]
    for prompt, row in zip(prompts, answers, strict=False):  # the prompts' answers come first
        print(f"\n{prompt}\n  before: {' '.join(row['base'].split())[:100]}\n  after:  {row['trained']}")
    base, trained = stats["evaluation"]["base"], stats["evaluation"]["trained"]
    print(f"\nheld-out exact match: {base['exact_match']:.0%} before, {trained['exact_match']:.0%} after")
    print(f"held-out loss:        {base['held_out_loss']:.3f} before, {trained['held_out_loss']:.4f} after")
    exports = json.loads((output / "report" / "exports.json").read_text())["artefacts"]
    for artefact in exports:
        known, size = artefact["delivered"], f"{artefact['bytes'] / 1e6:.0f} MB"
        match = f"exact match {known['exact_match']:.0%}, KL {known['kl']:.2g} nats a token"
        print(f"{artefact['name']:<22}{size}, {match}")
    print(
        f"whole run:            {stats['wall_seconds']:.0f} s on {stats['device']['name']}; everything is in {output}/"
    )


if __name__ == "__main__":
    main()
