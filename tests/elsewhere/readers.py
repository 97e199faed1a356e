"""What others' own readers make of a file, as JSON: `.venv-elsewhere` runs `readers.py skypilot|dstack|junit FILE`."""

from __future__ import annotations

import json
import sys


def skypilot(path: str) -> dict[str, object]:
    import sky

    task = sky.Task.from_yaml(path)
    cards = {name: count for resource in task.resources for name, count in (resource.accelerators or {}).items()}
    first = next(iter(task.resources))
    return {
        "name": task.name, "cards": cards, "disk_size": first.disk_size, "memory": first.memory, "cpus": first.cpus,
        "secrets": sorted(task.secrets), "envs": sorted(task.envs), "run": task.run, "spot": first.use_spot,
    }  # fmt: skip


def dstack(path: str) -> dict[str, object]:
    import yaml
    from dstack._internal.core.models.configurations import parse_run_configuration

    with open(path) as file:
        task = parse_run_configuration(yaml.safe_load(file))
    return {
        "type": task.type, "name": task.name, "image": task.image,
        "commands": task.commands, "env": sorted(task.env.model_dump()),
        "gpu_memory": task.resources.gpu.memory.min,
        "gpus": [task.resources.gpu.count.min, task.resources.gpu.count.max],
        "shm_size": task.resources.shm_size,
        "retry": [event.value for event in task.retry.on_events], "seconds": task.max_duration,
    }  # fmt: skip


def junit(path: str) -> dict[str, object]:
    from junitparser import JUnitXml

    read = JUnitXml.fromfile(path)
    cases = [
        {"suite": suite.name, "class": case.classname, "name": case.name, "said": case.system_out,
         "results": [[type(result).__name__, result.message, result.text] for result in case.result]}
        for suite in read for case in suite
    ]  # fmt: skip
    written = [[suite.name, suite.tests, suite.failures, suite.skipped, suite.errors] for suite in read]
    read.update_statistics()
    counted = [[suite.name, suite.tests, suite.failures, suite.skipped, suite.errors] for suite in read]
    return {"cases": cases, "written": written, "counted": counted, "name": read.name, "seconds": read.time}


print(json.dumps({"skypilot": skypilot, "dstack": dstack, "junit": junit}[sys.argv[1]](sys.argv[2])))
