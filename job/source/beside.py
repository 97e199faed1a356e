"""Rows beside the task's: general ones mixed into the training, and those on which forgetting is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from job.source.data import FetchedSource, fetch_data, fetch_source, fingerprint
from job.spec import JobSpec, SourceSpec
from job.spec.model import GENERAL

REPLAY, FORGETTING = "/data/replay", "/evaluation/forgetting"
ROWS = Path(__file__).with_name("general")
# Its rows as conversations, and as plain text for a model that is tuned on plain text.
CHAT = SourceSpec(GENERAL, "alpaca", "train", None, {}, None, None, 1.0)
TEXT = replace(CHAT, format="prompt_completion", columns={"prompt": "instruction", "completion": "output"})


@dataclass(frozen=True)
class Beside:
    """`replay` goes into the training, `forgetting` is measured; empty where the spec asks for neither."""

    replay: tuple[FetchedSource, ...] = ()
    forgetting: tuple[FetchedSource, ...] = ()

    @property
    def sources(self) -> tuple[FetchedSource, ...]:
        return self.replay + self.forgetting


@dataclass(frozen=True)
class FetchedRows:
    """Every source of rows of a spec; `held_out` is None where it names none."""

    train: list[FetchedSource]
    held_out: list[FetchedSource] | None
    beside: Beside

    @property
    def sources(self) -> list[FetchedSource]:
        return [*self.train, *(self.held_out or []), *self.beside.sources]


def fetch_rows(spec: JobSpec, workdir: Path, revisions: Mapping[str, str]) -> FetchedRows:
    """Raises as `fetch_data` does."""
    train, held_out = fetch_data(spec.data, workdir, revisions)
    return FetchedRows(train, held_out, fetch_beside(spec, workdir, revisions))


def fetch_beside(spec: JobSpec, workdir: Path, revisions: Mapping[str, str] = MappingProxyType({})) -> Beside:
    """What the spec asks for, below `workdir/data` or in this package. Raises as `fetch_data` does."""
    replay, forgetting = spec.data.replay, spec.evaluation.forgetting
    return Beside(
        _fetch(replay.sources, REPLAY, workdir, revisions) if replay else (),
        _fetch(forgetting.sources, FORGETTING, workdir, revisions) if forgetting else (),
    )


def _fetch(
    asked: Sequence[SourceSpec] | str, pointer: str, workdir: Path, revisions: Mapping[str, str]
) -> tuple[FetchedSource, ...]:
    name = pointer.rpartition("/")[2]
    if isinstance(asked, str):
        file = f"{name}.jsonl"
        return (FetchedSource(CHAT, pointer, (ROWS / file,), None, fingerprint(ROWS, [file])),)
    folder = workdir.resolve() / "data"
    return tuple(
        fetch_source(source, f"{pointer}/sources/{index}", folder / f"{name}-{index}", revisions)
        for index, source in enumerate(asked)
    )


def in_the_form(source: FetchedSource, chats: bool) -> FetchedSource:
    """The rows that come with tunejob as the training rows are: conversations or plain text."""
    return source if chats or source.spec is not CHAT else replace(source, spec=TEXT)
