"""What whoever runs the machine can watch without reading the log: a file that is touched while the process lives, and
the figures of the run as OpenMetrics, in a file and at a push gateway.

It hears the log's events. What is written is written by a thread, and nothing of it can end a run; what could not be
is kept in `faults`, for the log.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote

from job.host.known_secrets import learn
from job.host.requests import request

HEARTBEAT, METRICS, GATEWAY = "TUNEJOB_HEARTBEAT", "TUNEJOB_METRICS_FILE", "TUNEJOB_PUSHGATEWAY"
BEAT_SECONDS, PUSH_SECONDS, PUSH_TIMEOUT_SECONDS = 5.0, 15.0, 10.0
# Events from which on a thread does it: processes are forked before. One that helps a run speaks for itself alone: its
# heartbeat and its file; gateway and receiver hear of the run from the machine that runs it.
BEGUN, HELPS = "start", "helps"
OF_STEPS = ("step", "loss", "learning_rate", "grad_norm", "tokens_per_second", "eta_seconds")
UNITS = ("seconds", "bytes")
MODELS = {"baseline": "base", "evaluate": "trained"}  # events whose fields are figures of a model
HELP = {
    "tunejob_run_info": "The run: its id and the name in its spec.",
    "tunejob_stage": "The stage that the run is in.",
    "tunejob_stage_seconds": "For how long it has been in that stage.",
    "tunejob_run_seconds": "For how long the run has lasted.",
    "tunejob_stage_done": "How far a stage is that counts what it does.",
    "tunejob_stage_total": "Of how much.",
    "tunejob_train_step": "Steps of the training so far.",
    "tunejob_train_loss": "Loss of the last step that was logged, nats a token.",
    "tunejob_train_learning_rate": "Learning rate of that step.",
    "tunejob_train_grad_norm": "Norm of its gradients.",
    "tunejob_train_tokens_per_second": "Tokens a second since the training began.",
    "tunejob_train_eta_seconds": "Time that the training will take yet.",
    "tunejob_evaluation": "A measure of a model or of what is delivered.",
    "tunejob_finished": "1 once the run has ended.",
    "tunejob_exit_code": "Its exit code.",
}


@dataclass
class State:
    """What is known of the run."""

    run_id: str
    name: str
    stage: str = "look"
    begun: float = field(default_factory=time.monotonic)
    stage_begun: float = field(default_factory=time.monotonic)
    done: float = 0.0
    total: float | None = None
    steps: dict[str, float] = field(default_factory=dict)
    figures: dict[tuple[str, str], float] = field(default_factory=dict)
    exit_code: int | None = None

    def hear(self, event: str, fields: Mapping[str, Any]) -> None:
        if event == "begin" and fields.get("stage") != self.stage:
            self.stage, self.stage_begun, self.done, self.total = str(fields["stage"]), time.monotonic(), 0.0, None
        if _is_number(fields.get("done")):
            total = fields.get("total")
            self.done, self.total = float(fields["done"]), float(total) if total else None
        if event == "train":
            self.steps |= {name: float(fields[name]) for name in OF_STEPS if _is_number(fields.get(name))}
        model = MODELS.get(event) or (str(fields["artefact"]) if event == "delivered" else "")
        if model and "done" not in fields:
            self.figures |= {(model, name): float(value) for name, value in fields.items() if _is_number(value)}

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Name, labels and value of each."""
        now, stage = time.monotonic(), {"stage": self.stage}
        yield "tunejob_run_info", {"run_id": self.run_id, "name": self.name}, 1.0
        yield "tunejob_stage", stage, 1.0
        yield "tunejob_stage_seconds", stage, round(now - self.stage_begun, 3)
        yield "tunejob_run_seconds", {}, round(now - self.begun, 3)
        yield "tunejob_stage_done", stage, self.done
        if self.total is not None:
            yield "tunejob_stage_total", stage, self.total
        yield from ((f"tunejob_train_{name}", {}, value) for name, value in dict(self.steps).items())
        yield from (
            ("tunejob_evaluation", {"model": model, "metric": metric}, value)
            for (model, metric), value in dict(self.figures).items()
        )
        yield "tunejob_finished", {}, float(self.exit_code is not None)
        if self.exit_code is not None:
            yield "tunejob_exit_code", {}, float(self.exit_code)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def open_metrics(state: State) -> str:
    """OpenMetrics text, version 1.0; gauges alone, so that what reads the older Prometheus text reads it as well."""
    lines: list[str] = []
    family = ""
    for name, labels, value in state.samples():
        if name != family:
            family = name
            lines.append(f"# TYPE {name} gauge")
            lines += [f"# UNIT {name} {unit}" for unit in UNITS if name.endswith(f"_{unit}")]
            lines.append(f"# HELP {name} {HELP[name]}")
        inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        lines.append(f"{name}{{{inner}}} {_spelled(value)}" if inner else f"{name} {_spelled(value)}")
    return "\n".join([*lines, "# EOF\n"])


def _spelled(value: float) -> str:
    """As OpenMetrics has numbers that are none, or without end."""
    return repr(value) if math.isfinite(value) else "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Pulse:
    """Hears events, and tells of them where the environment says: nowhere, most often."""

    def __init__(self, run_id: str, name: str) -> None:
        self.state = State(run_id, name)
        self._heartbeat, self._metrics = os.environ.get(HEARTBEAT), os.environ.get(METRICS)
        self._gateway = os.environ.get(GATEWAY)
        learn(self._gateway if self._gateway and "@" in self._gateway else None)
        self._ended, self._thread = threading.Event(), threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._pushed = -PUSH_SECONDS
        self.helps = False
        self.faults: dict[str, str] = {}  # by variable, why nothing goes there; nothing of what has passed
        self._tell()

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        self.state.hear(event, fields)
        if event == HELPS:
            self.helps, self._gateway = True, None
        is_heard = self._heartbeat or self._metrics or self._gateway
        if event in (BEGUN, HELPS) and is_heard and not self._thread.ident:
            self._thread.start()

    def end(self, exit_code: int) -> None:
        """The last words, everywhere."""
        self.state.exit_code = exit_code
        self._ended.set()
        if self._thread.ident:
            self._thread.join(PUSH_TIMEOUT_SECONDS)
        self._pushed = -PUSH_SECONDS
        self._tell(push=True)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self._tell(push=True)

    def _tell(self, push: bool = False) -> None:
        state = self.state
        if self._heartbeat:
            beat = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "run_id": state.run_id,
                    "stage": state.stage, "done": state.done, "total": state.total}  # fmt: skip
            self._note(HEARTBEAT, _replace(Path(self._heartbeat), json.dumps(beat) + "\n"))
        if self._metrics:
            self._note(METRICS, _replace(Path(self._metrics), open_metrics(state)))
        if push and self._gateway and time.monotonic() - self._pushed >= PUSH_SECONDS:
            self._pushed = time.monotonic()
            where = f"{self._gateway.rstrip('/')}/metrics/job/tunejob/run_id/{quote(state.run_id, safe='')}"
            # The older text: gateways read no other, and to it the three lines more are comments
            headers = {"Content-Type": "text/plain; version=0.0.4"}
            try:
                status = request(where, "PUT", open_metrics(state).encode(), headers, PUSH_TIMEOUT_SECONDS)
                self._note(GATEWAY, "" if status < 300 else f"status {status}")
            except (OSError, ValueError, HTTPException) as error:  # a figure less in a graph
                self._note(GATEWAY, str(error) or type(error).__name__)

    def _note(self, variable: str, fault: str) -> None:
        if fault:
            self.faults[variable] = fault
        else:
            self.faults.pop(variable, None)


def _replace(path: Path, text: str) -> str:
    """Whole or not at all, for readers that come at any time; why it is not at all."""
    try:
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(text, "utf-8", "replace")
        beside.replace(path)
    except (OSError, ValueError) as error:  # ValueError: a path that has no name
        return str(error)
    return ""
