"""How others came to their figures, in words: a judge, benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from job.report.markdown import figure

Shown = Callable[[object], str]  # a name or an address of whatever origin


def sentences(evaluation: Mapping[str, Any], shown: Shown = str) -> list[str]:
    """Sentences on what others have said, from that part of the statistics."""
    known = {"judge": verdicts, "benchmarks": documents}
    return [words(evaluation[name], shown) for name, words in known.items() if evaluation.get(name)]


def documents(facts: Mapping[str, Any], shown: Shown = str) -> str:
    """What the benchmarks' figures are of."""
    about = [
        f"{shown(task['name'])}, {task['documents']} of {task['of']} documents with "
        f"{task['few_shot']} example{'' if task['few_shot'] == 1 else 's'} each, "
        "from " + " and ".join(dict.fromkeys(shown(_place(one)) for one in task["data"]))
        for task in facts["tasks"]
    ]
    return f"Benchmarks by lm-eval {shown(facts['lm_eval'])}: {'; '.join(about)}."


def _place(data: Mapping[str, Any]) -> str:
    return f"{data['source']}@{data['revision']}" if data["revision"] else str(data["source"])


def verdicts(facts: Mapping[str, Any], shown: Shown = str) -> str:
    """Sentences on the judge's part of the statistics."""
    asked = facts["pairs"] - facts["equal"] - facts["unasked"]
    said = (
        f"{shown(facts['model'])} at {shown(facts['endpoint'])} judged {asked} of {facts['pairs']} pairs of answers, "
        f"each in both orders: the tuned model's was better in {facts['better']}, worse in {facts['worse']}, neither "
        f"in {facts['even']}; in {facts['swayed']} the verdict changed with the order"
    )
    if facts["swayed"]:
        said += f", where the first place won {facts['first_place']} times and the second {facts['second_place']}"
    more = {
        "equal": "pairs were equal and count as even",
        "unread": "had no verdict that can be read",
        "declined": "were declined by the endpoint",
        "unasked": "were not asked about, as a cap of the spec was reached",
    }
    rest = "".join(f"; {facts[name]} {words}" for name, words in more.items() if facts[name])
    if facts["agreement"] is not None and facts["agreement"] < facts["min_agreement"]:
        rest += (
            f". It said the same twice for a share of {figure(facts['agreement'])}, and evaluation.judge.min_agreement "
            f"is {figure(facts['min_agreement'])}: its win rate is not measured"
        )
    return f"{said}{rest}."
