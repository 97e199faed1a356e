"""The READMEs and "Troubleshooting": codes are those of `job.errors`; commands, files and links are ones that exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from job.arguments import parser
from job.errors import TREE
from job.reference import ROOT, exit_code_table
from job.render import TARGETS
from tests.elsewhere.examples import FOLDER

RETRIES = {"Count": "yes, counted", "FailJob": "no", "Ignore": "yes, not counted"}
KILLED = 137  # not ours: no class has it, and no rule of the pod failure policy names it
PAGES = ("README.md", "schemas/guide.md", "schemas/README.md", "job/README.md", "job/stages.md", "job/render/README.md",
         "job/export/README.md", "k8s/README.md", "tests/README.md", "tests/gpu/README.md")  # fmt: skip
# Pages with the ways to run a spec in full.
WAYS = ("k8s/README.md", "job/render/README.md")


def page(path: str) -> str:
    return (ROOT / path).read_text("utf-8")


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.strip().splitlines()[2:]]


def section(path: str, title: str) -> str:
    found = page(path).partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    assert found, f"{path} has no section {title}"
    return found


def test_every_exit_code_has_its_row() -> None:
    text = section("k8s/README.md", "Troubleshooting")
    block = re.search(r"<!-- troubleshooting -->\n(.*?)<!-- /troubleshooting -->", text, re.DOTALL)
    assert block
    listed = rows(block[1])
    assert [int(row[0]) for row in listed] == [*(kind.exit_code for kind in TREE), KILLED]
    assert all(len(row) == 5 and all(row) for row in listed)
    actions = {row[0]: RETRIES[row[-1]] for row in rows(exit_code_table()) if row[-1] in RETRIES}
    assert {row[0]: row[-1] for row in listed} == actions | {str(KILLED): RETRIES["Count"]}


def commands(text: str) -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in re.split(r"&&|\|(?!\|)", line.partition("  #")[0])]
    return [shlex.split(part, comments=True) for part in parts if part.startswith("tunejob ")]


@pytest.mark.parametrize("path", PAGES)
def test_every_command_that_is_named_exists(path: str) -> None:
    for words in commands(page(path)):
        arguments = parser().parse_args(words[1:])
        assert getattr(arguments, "to", "job") in TARGETS


def test_the_commands_of_the_ways_are_all_there() -> None:
    listed = [words for path in WAYS for words in commands(page(path))]
    assert {words[1] for words in listed} == {"validate", "render", "wait", "report"}
    assert len(listed) >= 9
    short = commands(section("README.md", "Where it runs"))
    assert {words[1] for words in short} == {"run", "render", "wait", "report"}
    quick = commands(section("README.md", "Your own data in five minutes"))
    assert [words[1] for words in quick] == ["init", "validate", "plan", "run", "verify", "chat"]


def test_the_page_names_every_command() -> None:
    listed = {words[1] for words in commands(section("job/stages.md", "The command"))}
    every = {"init", "validate", "plan", "run", "verify", "schema", "render", "wait", "report", "compare", "chat"}
    assert listed == every


def ways(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\*\*(.*?)\*\*.*?```sh\n(.*?)```", text, re.DOTALL | re.MULTILINE))


def test_each_way_is_five_lines() -> None:
    blocks = {way: block for path in WAYS for way, block in ways(page(path)).items()}
    assert list(blocks) == ["Kubernetes", "docker or podman", "CI", "A rented GPU"]
    assert {way: len(block.splitlines()) for way, block in blocks.items()} == dict.fromkeys(blocks, 5)


def test_the_readme_has_each_way_in_three_lines_and_says_where_there_is_more() -> None:
    text = section("README.md", "Where it runs")
    blocks = ways(text)
    assert list(blocks) == ["This machine", "docker or podman", "Kubernetes", "CI", "Rented GPUs"]
    assert all(1 <= len(block.splitlines()) <= 3 for block in blocks.values())
    listed = re.findall(r"^\*\*.*?(?=\n\n)", text, re.DOTALL | re.MULTILINE)
    assert len(listed) == len(blocks)
    assert all(re.search(r"\]\((?:job|k8s)/", way) for way in listed)


def test_the_files_that_are_named_are_there() -> None:
    text = "".join(page(path) for path in WAYS) + section("README.md", "Where it runs")
    overlays = re.findall(r"-f (\w[\w-]*\.yaml)", page("job/render/README.md"))
    named = re.findall(r"(?<=`)(?:k8s|job|schemas|tests|\.github)/[\w./-]+", text)
    assert overlays
    assert named
    assert all((FOLDER / name).is_file() for name in overlays)
    assert all((ROOT / path).exists() for path in named)


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings: lower case, spaces as hyphens, other signs left out."""
    titles = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES)
def test_links_lead_somewhere(path: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page(path)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / path).parent / name if name else ROOT / path
        assert target.exists(), f"{path} links to {link}"
        assert not anchor or anchor in anchors(target), f"{path} links to {link}: no such heading"


def test_the_readme_links_to_every_page() -> None:
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", page("README.md"))}
    assert {*PAGES[1:], "CHANGELOG.md"} <= links


def test_the_lifecycle_rule_is_one_that_s3_takes() -> None:
    import boto3
    from botocore.stub import Stubber

    given = re.search(r"--lifecycle-configuration '(.*?)'", section("k8s/README.md", "What the machine needs"))
    assert given
    store = boto3.client("s3", region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret")
    asked = {"Bucket": "my-bucket", "LifecycleConfiguration": json.loads(given[1])}
    with Stubber(store) as checked:
        checked.add_response("put_bucket_lifecycle_configuration", {}, asked)
        store.put_bucket_lifecycle_configuration(**asked)
    assert asked["LifecycleConfiguration"]["Rules"][0]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}


def test_the_driver_is_that_of_the_locks_cuda() -> None:
    """NVIDIA: every CUDA 13 runs on a driver from 580 on."""
    locked = re.search(r"^cuda-toolkit==(\d+)\.(\d+)", (ROOT / "locks" / "cuda.txt").read_text(), re.MULTILINE)
    assert locked
    assert locked[1] == "13"
    needs = section("k8s/README.md", "What the machine needs")
    assert f"CUDA {locked[1]}.{locked[2]}" in needs
    assert "| NVIDIA driver | 580 |" in needs
    assert "driver 580 or newer" in section("README.md", "Limits and needs")
