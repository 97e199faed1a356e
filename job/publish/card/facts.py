"""What a model card says, as plain values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from job.export.kinds import kind_of, left_by_training
from job.source import FetchedModel, FetchedSource
from job.spec import JobSpec

USES = {"/data/train": "training", "/data/held_out": "held-out", "/data/replay": "mixed in", "/evaluation": "measured"}
HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True)
class Sample:
    """A prompt, what the base and the trained model answered, and what the spec expects, if it says so."""

    prompt: str
    base: str
    trained: str
    reference: str | None = None


@dataclass(frozen=True)
class CardFacts:
    """What the card says. `stats` is the document of stats.json.

    `exports`: artefacts as in report/exports.json (name, files, bytes, figures, limits). `answers`: of each artefact,
    by its name, to the first prompts of `samples`, None where it was not asked. `chat`: whether it was trained on
    conversations.
    """

    spec: JobSpec
    base: FetchedModel
    sources: Sequence[FetchedSource]
    stats: Mapping[str, Any]
    exports: Sequence[Mapping[str, Any]]
    samples: Sequence[Sample]
    answers: Mapping[str, Sequence[str | None]]
    chat: bool

    @property
    def hub_base(self) -> str | None:
        """The base's id, if it is one of the Hub."""
        name = self.base.public_id
        return name if self.base.revision and HUB_ID.fullmatch(name) else None

    @property
    def kinds(self) -> set[str]:
        """What there is, of `EXPORTS`."""
        kinds = {kind_of(artefact["name"]).name for artefact in self.exports}
        return kinds | {left_by_training(whole=self.spec.lora is None)}


def use_of(source: FetchedSource) -> str:
    """What a source of rows is for, in a word or two."""
    return next(use for pointer, use in USES.items() if source.pointer.startswith(pointer))
