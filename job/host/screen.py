"""Bars on a terminal, below the lines that stay: one for each thing that takes longer than people wait patiently."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any, cast

from job.host.streams import LastingStream

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PATIENCE_SECONDS = 2.0
BAR_WIDTH, REDRAWN_A_SECOND = 24, 4
LIVE = {"loss": "loss", "tokens_per_second": "tokens/s"}  # what a bar has room for
NARROW, NARROW_BAR, NARROW_LIVE = 110, 8, ("loss",)  # below so many columns, so that a bar stays on its line


class Screen:
    """A terminal. Lines go above the bars that are shown; a bar is shown once it is `PATIENCE_SECONDS` old."""

    def __init__(self, stream: IO[str]) -> None:
        self._progress = _progress(stream)
        self._wide = self._progress.console.width >= NARROW
        self._tasks: dict[str, TaskID] = {}

    def line(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def begin(self, label: str) -> bool:
        """A bar of that name. False if there is one: what goes on within a stage fills the stage's own."""
        if label in self._tasks:
            return False
        if not self._tasks and self._progress.console.is_interactive:
            self._progress.start()
        self._tasks[label] = self._progress.add_task(label, total=None, detail="")
        return True

    def update(self, label: str, done: int, total: int | None, fields: Mapping[str, Any]) -> None:
        if label in self._tasks:
            known = {key: unit for key, unit in LIVE.items() if key in fields and (key in NARROW_LIVE or self._wide)}
            detail = "".join(f", {short(fields[key])} {unit}" for key, unit in known.items())
            self._progress.update(self._tasks[label], completed=done, total=total, detail=detail)

    def end(self, label: str) -> None:
        if label in self._tasks:
            self._progress.remove_task(self._tasks.pop(label))
            if not self._tasks and self._progress.live.is_started:
                self._progress.stop()

    def end_all(self) -> None:
        for label in list(self._tasks):
            self.end(label)


def width_of(stream: IO[str]) -> int | None:
    """Columns of the terminal that `stream` is; None where it is none, or one that does not know."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):  # no terminal, closed, no file
        return None


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def clock(seconds: float) -> str:
    """75 as 1:15, and hours where there are any."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _progress(stream: IO[str]) -> Progress:
    from rich.console import Console, RenderableType
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class BarFacts(ProgressColumn):
        """How much is done, and how long it takes, each with its name."""

        def render(self, task: Task) -> Text:
            parts = [] if task.total is None else [f"{task.completed:.0f} of {task.total:.0f}"]
            parts.append(f"{clock(task.elapsed or 0)} so far")
            if task.total is not None and task.time_remaining is not None:
                parts.append(f"{clock(task.time_remaining)} left")
            return Text(", ".join(parts) + task.fields["detail"])

    class Late(Progress):
        """Without what is soon done."""

        def get_renderables(self) -> Any:
            late = [task for task in self.tasks if (task.elapsed or 0) >= PATIENCE_SECONDS]
            if late:
                table: RenderableType = self.make_tasks_table(late)
                yield table

    # rich asks standard input, output and error, which may be elsewhere; who set COLUMNS knows better
    wide = None if os.environ.get("COLUMNS") else width_of(stream)
    console = Console(file=cast("IO[str]", LastingStream(stream)), width=wide)
    width = BAR_WIDTH if console.width >= NARROW else NARROW_BAR
    columns = (TextColumn("         {task.description}", markup=False), BarColumn(bar_width=width), BarFacts())
    return Late(
        *columns,
        console=console,
        refresh_per_second=REDRAWN_A_SECOND,
        redirect_stdout=False,
        redirect_stderr=False,
        transient=True,
    )
