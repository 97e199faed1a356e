"""Run by `.venv-elsewhere`: what SkyPilot's and dstack's own readers make of a file, as JSON. `python readers.py skypilot|dstack FILE`."""

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
        "type": task.type, "name": task.name, "image": task.image, "commands": task.commands, "env": sorted(task.env.model_dump()),
        "gpu_memory": task.resources.gpu.memory.min, "gpus": [task.resources.gpu.count.min, task.resources.gpu.count.max],
        "shm_size": task.resources.shm_size, "retry": [event.value for event in task.retry.on_events], "seconds": task.max_duration,
    }  # fmt: skip


print(json.dumps({"skypilot": skypilot, "dstack": dstack}[sys.argv[1]](sys.argv[2])))
