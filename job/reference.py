"""The tables of the spec, the metrics, the GGUF types, the exit codes and the common jobs, generated from the schema,
`job.evaluation.metrics`, `job.gguf.types`, `job.errors` and `job.preview`.

    python -m job.reference        rewrites them in the documents that `TABLES` names

Each is between `<!-- name -->` and `<!-- /name -->`; `tests/contract/test_readme.py` compares.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from job import errors
from job.evaluation.metrics import METRICS
from job.gguf.types import TYPES
from job.preview.common import jobs_table
from job.report.markdown import table
from job.spec import job_schema

Json = dict[str, Any]
ROOT = Path(__file__).parent.parent
REQUIRED = "**required**"


def spec_table() -> str:
    """Every key of the spec: name, value, default, meaning."""
    return _table(("key", "value", "default", "meaning"), (_row(*key) for key in _keys("", job_schema())))


def _keys(prefix: str, schema: Json) -> Iterator[tuple[str, Json, bool]]:
    """Name, schema and whether it is required, of every key below `schema`; shared definitions are followed once."""
    for name, sub in schema["properties"].items():
        required = name in schema.get("required", ())
        resolved = _resolve(sub)
        items = _resolve(resolved.get("items", {}))
        yield prefix + name, resolved, required
        if "properties" in resolved:
            yield from _keys(f"{prefix}{name}.", resolved)
        if "properties" in items and name != "sources":
            yield from _keys(f"{prefix}{name}[].", items)


def _resolve(schema: Json) -> Json:
    if "$ref" not in schema:
        return schema
    resolved: Json = job_schema()["definitions"][schema["$ref"].rsplit("/", 1)[1]]
    return resolved


def _row(name: str, schema: Json, required: bool) -> tuple[str, ...]:
    default = (
        REQUIRED if required else _code(schema["default"]) if "default" in schema and not _is_section(schema) else "–"
    )
    return f"`{name}`", _value(schema), default, schema["description"]


def _is_section(schema: Json) -> bool:
    return "properties" in schema and "anyOf" not in schema


def _value(schema: Json) -> str:
    if "const" in schema:
        return _code(schema["const"])
    if "enum" in schema:
        return ", ".join(_code(choice) for choice in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_value(option) for option in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_value(_resolve(schema['items']))}" if "items" in schema else "list"
    if schema.get("type") in ("integer", "number"):
        return f"{schema['type']} {_range(schema)}"
    return {"string": "string", "boolean": "true, false", "object": "object"}.get(schema.get("type", ""), "Jinja")


def _range(schema: Json) -> str:
    low = f"≥ {schema['minimum']}" if "minimum" in schema else f"> {schema['exclusiveMinimum']}"
    high = f"≤ {schema['maximum']}" if "maximum" in schema else f"< {schema['exclusiveMaximum']}"
    return f"{low}, {high}"


def _code(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(table(head, rows)).rstrip()


def exit_code_table() -> str:
    """Every exit code: class, when, and what `podFailurePolicy` should do with it."""
    rows = [("0", "–", "done: manifest published and read again", "–", "–")]
    for name, code, when in re.findall(r"(\w+) +(\d+) +(.+)", errors.__doc__ or ""):
        kind: type[errors.JobError] = getattr(errors, name)
        action = "Ignore" if kind is errors.Interrupted else "Count" if kind.retryable else "FailJob"
        rows.append((code, f"`{name}`", when, "yes" if kind.retryable else "no", action))
    return _table(("code", "class", "when", "retry", "Kubernetes"), rows)


def gguf_table() -> str:
    """Every GGUF type with the limits that hold unless the spec sets others."""
    head = ("type", "bits a weight, about", "KL at most, nats a token", "perplexity rise at most", "needs imatrix")
    rows = [
        (f"`{name}`", f"{kind.bits_per_weight:g}", f"{kind.max_kl:g}", f"{kind.max_perplexity_rise:.0%}",
         "yes" if kind.needs_imatrix else "")
        for name, kind in TYPES.items()
    ]  # fmt: skip
    return _table(head, rows)


def metrics_table() -> str:
    """Every metric: what it is, which way is better, which key of `evaluation` it reads."""
    rows = []
    for metric in METRICS.values():
        values = (
            f"{metric.lowest:g} and more" if metric.highest == math.inf else f"{metric.lowest:g} to {metric.highest:g}"
        )
        better = "less" if metric.lower_is_better else "more"
        reads = f"`{metric.option}`" + (" (needed)" if metric.needs_option else "") if metric.option else ""
        rows.append((f"`{metric.name}`", metric.meaning, values, better, reads))
    return _table(("metric", "what it is", "values", "better", "reads"), rows)


# Name of the block: the document that holds it, and what is in it.
TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "exit codes": ("README.md", exit_code_table),
    "spec table": ("schemas/README.md", spec_table),
    "metrics": ("job/stages.md", metrics_table),
    "gguf types": ("job/export/README.md", gguf_table),
    "common jobs": ("schemas/guide.md", lambda: jobs_table(ROOT)),
}


def replace_block(text: str, name: str, table: str, document: str) -> str:
    """`text`, which is that of `document`, with the block `name` holding `table`. Raises `ValueError` if its markers
    are missing."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{document} has no block {start} … {end}")
    return f"{before}{start}\n{table}\n{end}{after}"


def main() -> None:
    for name, (document, made) in TABLES.items():
        path = ROOT / document
        path.write_text(replace_block(path.read_text("utf-8"), name, made(), document), "utf-8")


if __name__ == "__main__":
    main()
