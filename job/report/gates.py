"""What became of every gate and of the test of every export, for a CI: JUnit XML and Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.evaluation.gates import bounds, judged
from job.export.kinds import variant_of
from job.gguf.types import TYPES
from job.report.figures import BASE, TUNED, title_of
from job.report.kept import write_whole
from job.report.markdown import NOTHING, code, figure, table
from job.report.page.markup import Html, joined, tag
from job.spec import JobSpec

Json = Mapping[str, Any]
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
GATES, EXPORTS, RUN = "gates", "exports", "run"
GATES_POINTER = "/evaluation/gates/"


@dataclass(frozen=True)
class Gate:
    """One thing that had to hold. `suite`: GATES of the spec, the test of EXPORTS, or the RUN as a whole. `said`: what
    was found, or why it was not.
    """

    suite: str
    about: str  # the trained model, an artefact, or the run
    asked: str
    result: str
    said: str
    pointer: str = ""

    @property
    def name(self) -> str:
        return f"{self.about}: {self.asked}"


def gates_of(spec: JobSpec, stats: Json) -> list[Gate]:
    """The spec's gates on everything they are about: the trained model, and what is delivered of it."""
    evaluation, artefacts = stats.get("evaluation") or {}, (stats.get("delivered") or {}).get("artefacts") or {}
    base, tuned = evaluation.get(BASE), evaluation.get(TUNED)
    if not base and not tuned:
        return [
            Gate(GATES, "the trained model", gate.metric, SKIPPED, "the run ended before it", f"{GATES_POINTER}{i}")
            for i, gate in enumerate(spec.evaluation.gates)
        ]
    found = {TUNED: tuned or {}}
    here = artefacts.get(TUNED) or {}
    found |= {name: judged(found[TUNED], here, known) for name, known in artefacts.items() if name not in (BASE, TUNED)}
    return [
        Gate(
            GATES,
            "the trained model" if name == TUNED else name,
            f"{title_of(bound.metric).partition(', ')[0].lower()} {bound.expected}",
            PASSED if bound.holds else FAILED,
            bound.found,
            bound.pointer,
        )
        for name, figures in found.items()
        for bound in bounds(spec.evaluation.gates, name, base or {}, figures)
    ]


def tests_of(spec: JobSpec, exports: Json) -> list[Gate]:
    """The test of each export that the spec asks for, against what it is made of."""
    made = {fact["name"]: fact for fact in exports.get("artefacts", [])}
    missing = [name for name in spec.artefacts if name not in made]
    found = [
        Gate(EXPORTS, name, _limits(fact["limits"]), PASSED, _figures(fact["figures"])) for name, fact in made.items()
    ]
    for fault in exports.get("refused", []):
        if fault["file"].startswith(GATES_POINTER):  # is among the gates
            continue
        said = f"{fault['message']}, found {fault['found']}" if fault["found"] else fault["message"]
        found.append(Gate(EXPORTS, _artefact(fault["file"], missing), fault["limit"] or "its test", FAILED, said))
    reported = {gate.about for gate in found}
    why = "it did not pass a gate, or the run ended before it"
    return [*found, *(Gate(EXPORTS, name, "its test", SKIPPED, why) for name in missing if name not in reported)]


def _artefact(file: str, missing: Sequence[str]) -> str:
    """The artefact that a refused `file` was to be, if its name says so: gguf/name-Q8_0.gguf is gguf-q8_0."""
    labels = {name: TYPES[variant_of(name)].label for name in missing if variant_of(name) in TYPES}
    return next((name for name, label in labels.items() if f"-{label}." in file or f"-{label}-0" in file), file)


def all_gates(spec: JobSpec, stats: Json, exports: Json) -> list[Gate]:
    """Everything that had to hold, the run itself at first."""
    failure = stats.get("failure")
    said = (
        f"exit code {failure['exit_code']} at {failure.get('stage')}: {failure['message']}"
        if failure
        else "exit code 0"
    )
    run = Gate(RUN, spec.name, "ends with exit code 0", FAILED if failure else PASSED, said)
    return [run, *gates_of(spec, stats), *tests_of(spec, exports)]


def write_gates(spec: JobSpec, stats: Json, exports: Json, folder: Path) -> None:
    """`gates.junit.xml` and `gates.md`."""
    gates = all_gates(spec, stats, exports)
    seconds = float(stats.get("wall_seconds") or 0.0)
    write_whole(folder / "gates.junit.xml", junit(spec.name, str(stats.get("run_id", "")), seconds, gates))
    write_whole(folder / "gates.md", "\n".join(markdown(spec.name, gates)))


def junit(name: str, run_id: str, seconds: float, gates: Sequence[Gate]) -> str:
    """JUnit XML as Jenkins, GitLab and others read it: a suite for the run, its gates and its exports."""
    suites = [_suite(name, suite, run_id, [gate for gate in gates if gate.suite == suite], seconds)
              for suite in dict.fromkeys(gate.suite for gate in gates)]  # fmt: skip
    whole = tag("testsuites", *suites, name=f"tunejob {name}", **_counts(gates), time=f"{seconds:.3f}")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{whole}\n'


def _suite(name: str, suite: str, run_id: str, gates: Sequence[Gate], seconds: float) -> Html:
    properties = tag("properties", tag("property", name="run_id", value=run_id))
    took = seconds if suite == RUN else 0.0
    cases = (_case(f"{name}.{suite}", gate, took) for gate in gates)
    return tag("testsuite", properties, *cases, name=suite, **_counts(gates), errors="0", time=f"{took:.3f}")


def _case(group: str, gate: Gate, seconds: float) -> Html:
    said = Html()
    if gate.result == FAILED:
        place = f" ({gate.pointer})" if gate.pointer else ""
        said = tag("failure", f"{gate.name}: found {gate.said}{place}", message=f"found {gate.said}", type="GateError")
    elif gate.result == SKIPPED:
        said = tag("skipped", message=gate.said)
    output = tag("system-out", gate.said) if gate.result == PASSED else ""
    return tag("testcase", joined(said, output), name=gate.name, classname=group, time=f"{seconds:.3f}")


def _counts(gates: Sequence[Gate]) -> dict[str, str]:
    results = [gate.result for gate in gates]
    return {
        "tests": str(len(gates)),
        "failures": str(results.count(FAILED)),
        "skipped": str(results.count(SKIPPED)),
    }


def markdown(name: str, gates: Sequence[Gate]) -> Iterator[str]:
    """For a job summary or a pull request: what failed at first."""
    failed = sum(gate.result == FAILED for gate in gates)
    yield f"### {code(name)}: " + (f"{failed} of {len(gates)} checks failed" if failed else "every check passed")
    yield ""
    order = [FAILED, SKIPPED, PASSED]
    shown = sorted(gates, key=lambda gate: order.index(gate.result))
    rows = [(gate.result, code(gate.about), code(gate.asked), code(gate.said)) for gate in shown]
    yield from table(("result", "of", "asked", "found"), rows)


def _limits(limits: Json) -> str:
    words = [f"{name.removeprefix('max_')} at most {figure(limit)}" for name, limit in limits.items()]
    return ", ".join(words) or "its test"


def _figures(figures: Json) -> str:
    known = [f"{name} {figure(value)}" for name, value in figures.items() if isinstance(value, int | float)]
    return ", ".join(known) or NOTHING
