"""How long the steps of a training took, whatever is logged and whatever happens between them."""

from __future__ import annotations

import time
from io import StringIO
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

from job.host.log import Log
from job.host.watchdog import Watchdog
from job.training.callbacks import LossWatch, TokenCounter

STEP_SECONDS, BESIDE_SECONDS = 0.02, 0.2


@pytest.fixture
def watch() -> LossWatch:
    found = LossWatch(TokenCounter(SimpleNamespace(training_step=None)), Watchdog(), {})
    found.bar = Log(StringIO(), json_lines=True).bar("train")
    return found


def take(watch: LossWatch, steps: range, logging_steps: int, aside: bool = False) -> None:
    """The trainer's calls of these steps; `aside`: with a held-out loss after each."""
    state, control = TrainerState(max_steps=steps[-1], global_step=steps[0] - 1), TrainerControl()
    watch.on_train_begin(None, state, control)
    for step in steps:
        watch.on_step_begin(None, state, control)
        time.sleep(STEP_SECONDS)
        state.global_step = step
        watch.on_step_end(None, state, control)
        if aside:
            with watch.aside():
                time.sleep(BESIDE_SECONDS)
        if step == 1 or step % logging_steps == 0:
            watch.on_log(None, state, control, {"loss": 1.0})


def test_a_resumed_run_that_logs_none_of_its_steps_has_their_time(watch: LossWatch) -> None:
    take(watch, range(13, 16), logging_steps=10)
    assert STEP_SECONDS <= (watch.median_step_seconds() or 0) < BESIDE_SECONDS


def test_a_resumed_run_without_a_step_has_none(watch: LossWatch) -> None:
    assert watch.median_step_seconds() is None


@pytest.mark.parametrize("logging_steps", [1, 5])
def test_a_held_out_loss_is_not_a_part_of_a_step(watch: LossWatch, logging_steps: int) -> None:
    take(watch, range(1, 11), logging_steps, aside=True)
    assert STEP_SECONDS <= (watch.median_step_seconds() or 0) < BESIDE_SECONDS


def test_the_wait_for_the_loss_is_a_part_of_the_steps(watch: LossWatch) -> None:
    """A GPU is still at work when its kernels are queued."""
    state, control = TrainerState(max_steps=4), TrainerControl()
    watch.on_train_begin(None, state, control)
    for _ in range(4):
        watch.on_step_begin(None, state, control)
        watch.on_step_end(None, state, control)
    time.sleep(BESIDE_SECONDS)
    watch.on_log(None, state, control, {"loss": 1.0})
    assert (watch.median_step_seconds() or 0) >= BESIDE_SECONDS / 4
