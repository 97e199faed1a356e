"""Trackio: a database in a file, under report/ or where TRACKIO_DIR says. No Space of the Hub: its token is forgotten
before the training begins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.tracking.record import PROJECT, Begun, Session, Tracker, flat


@dataclass
class Trackio:
    run: Any

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.run.log(dict(figures), step=step)

    def end(self, figures: Mapping[str, float], address: str, files: Sequence[Path], failure: str) -> None:
        """It keeps no files but what it draws: the report is a text."""
        import trackio

        text = "\n\n".join(path.read_text("utf-8") for path in files if path.suffix == ".md")
        said = {"output": address, "failure": failure}
        self.run.log({f"final/{name}": value for name, value in figures.items()} | said)
        if text:
            self.run.log({"report": trackio.Markdown(text)})
        self.run.finish()

    def close(self) -> None:
        self.run.finish()


def begin(begun: Begun) -> Session:
    os.environ.setdefault("TRACKIO_DIR", str(begun.folder))
    import trackio

    settings = flat(begun.config).items()
    config = {name: value if isinstance(value, int | float | str) else str(value) for name, value in settings}
    name = f"{begun.name}-{begun.run_id}"
    return Trackio(
        trackio.init(project=PROJECT, name=name, config=config, resume="allow", embed=False, auto_log_gpu=False)
    )


TRACKIO = Tracker("trackio", "trackio", begin=begin)
