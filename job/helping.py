"""A machine that helps another: it prepares what the training needs, lends its GPUs to it, and stores nothing."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from job.asked import ToTrain
from job.data.build import build_dataset
from job.host.child import CHILDREN_IMPORT, preload, start_imports
from job.host.device import choose_device, gpu_capability, require_wanted_device
from job.host.log import Log
from job.host.pulse import HELPS
from job.host.signals import deferred
from job.host.stats import arithmetic, describe_device
from job.ledger.claim import examine
from job.ledger.compiled import Compiled
from job.plan.require import processes, require_device
from job.run import Confirm, run_job
from job.several import MODULE, load_request, train_together
from job.source import check_config, fetch_bases, fetch_model_weights, fetch_rows, go_offline
from job.source.place import pointed
from job.spec import JobSpec
from job.store import open_store
from job.training.environment import prepare_environment
from job.training.machines import FirstMachine, Machine, this_machine
from job.training.team import Team
from job.tuning import origin_of


def run_or_help(spec: JobSpec, workdir: Path, log: Log, replaces: Confirm | None) -> None:
    """Runs the job, on the first machine or the only one; on another, helps that one. Raises a `JobError`."""
    machine = this_machine(spec.resources.nodes)
    if machine.number:
        help_run(spec, machine, workdir, log, anew=replaces is not None)
    else:
        run_job(spec, workdir, log, replaces)


def help_run(spec: JobSpec, machine: Machine, workdir: Path, log: Log, anew: bool) -> None:
    """Helps the run of `spec` on the first machine until it needs nobody any more. Raises what either ends with.

    A run that is published already, and not made `anew`, needs nobody: its first machine may be gone by now.
    """
    prepare_environment(workdir)
    Compiled()  # is for the first machine: here nobody needs its key
    preload(CHILDREN_IMPORT, gpu_capability())
    log.heard(HELPS, {})
    with pointed("/output/uri"):
        published = None if anew else examine(open_store(spec.output.uri), spec)
    if published:
        log("note", text="already published; nothing was left to train")
        return
    require_wanted_device()
    log("note", text=f"machine {machine.number + 1} of {machine.count} of run {spec.run_id}: the first one runs it")
    rows = fetch_rows(spec, workdir, {})
    start_imports()
    device = choose_device()
    require_device(spec, device)
    count = processes(spec, device)
    base, _ = fetch_bases(spec, workdir, check_config)
    with log.bar("data") as bar:
        prepared = build_dataset(
            spec, rows.train, rows.held_out, base.path, workdir, bar.update_total, beside=rows.beside
        )
    fetch_model_weights(base)
    first = FirstMachine(machine)
    go_offline()
    os.chdir(workdir)
    request = ToTrain(str(workdir / "store"), origin_of(spec, base, prepared), arithmetic(describe_device(device)))
    with Team(MODULE, count, replace(spec, tracking=()), device, workdir, log, machine) as team:
        team.ask("load", load_request(base, None, prepared, workdir), log.live, look=first.require)
        if not first.trains():
            log("note", text="nothing was left to train")
            return
        with deferred():
            train_together(team, request, log, lambda: None, first.require)
        team.end()
    first.until_over()
    log("note", text="the first machine has stored what was trained")
