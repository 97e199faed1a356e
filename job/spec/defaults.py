"""What a spec means where it says nothing. A run stores its spec with every default filled in, and that one can be run
and opened again: a default beside what makes it pointless is nothing that anybody has asked for.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from job.spec.strict import load_schema

Json = dict[str, Any]
EPOCHS = 1.0  # where there are neither epochs nor steps


@cache
def job_schema() -> Json:
    return load_schema("job")


def form_of(section: str) -> Json:
    """The part of the schema for /`section`."""
    form: Json = job_schema()["definitions"][section]
    return form


def form_of_tasks() -> Json:
    """For a benchmark of /evaluation/tasks that is no name alone."""
    form: Json = form_of("evaluation")["properties"]["tasks"]["items"]
    return form


def asked_for(given: Json, key: str, form: Json) -> bool:
    """Whether `given`, a section, has the key with another value than its default in `form`."""
    default = EPOCHS if key == "epochs" else form["properties"].get(key, {}).get("default")
    return key in given and given[key] != default
