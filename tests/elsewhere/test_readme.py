"""README, "Troubleshooting" and "Four ways to run it": the codes are those of `job.errors`, the commands are ones that exist."""

from __future__ import annotations

import json
import re
import shlex

from job.__main__ import parser
from job.errors import TREE
from job.reference import README, exit_code_table
from job.render import TARGETS
from tests.elsewhere.examples import FOLDER, ROOT

RETRIES = {"Count": "yes, counted", "FailJob": "no", "Ignore": "yes, not counted"}
KILLED = 137  # not ours: no class has it, and no rule of the pod failure policy names it


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.strip().splitlines()[2:]]


def section(title: str) -> str:
    return README.read_text("utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_every_exit_code_has_its_row() -> None:
    block = re.search(r"<!-- troubleshooting -->\n(.*?)<!-- /troubleshooting -->", section("Troubleshooting"), re.DOTALL)
    assert block
    told = rows(block[1])
    assert [int(row[0]) for row in told] == [*(kind.exit_code for kind in TREE), KILLED]
    assert all(len(row) == 5 and all(row) for row in told)
    actions = {row[0]: RETRIES[row[-1]] for row in rows(exit_code_table()) if row[-1] in RETRIES}
    assert {row[0]: row[-1] for row in told} == actions | {str(KILLED): RETRIES["Count"]}


def commands(title: str) -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", section(title), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in re.split(r"&&|\|(?!\|)", line.partition("  #")[0])]
    return [shlex.split(part) for part in parts if part.startswith("tunejob ")]


def test_the_commands_of_the_four_ways_exist() -> None:
    told = commands("Four ways to run it")
    assert {words[1] for words in told} == {"validate", "render", "wait", "report"}
    for words in told:
        arguments = parser().parse_args(words[1:])
        assert getattr(arguments, "to", "job") in TARGETS
    assert len(told) >= 9


def test_each_way_is_five_lines() -> None:
    blocks = re.findall(r"^\*\*(.*?)\*\*.*?```sh\n(.*?)```", section("Four ways to run it"), re.DOTALL | re.MULTILINE)
    assert [way for way, _ in blocks] == ["Kubernetes", "docker or podman", "CI", "A rented GPU"]
    assert {way: len(block.splitlines()) for way, block in blocks} == {way: 5 for way, _ in blocks}


def test_the_files_that_are_named_are_there() -> None:
    text = section("Four ways to run it")
    overlays = re.findall(r"-f (\w[\w-]*\.yaml)", text)
    named = re.findall(r"(?<=`)(?:k8s|job|\.github)/[\w./-]+", text)
    assert overlays
    assert named
    assert all((FOLDER / name).is_file() for name in overlays)
    assert all((ROOT / path).exists() for path in named)


def test_the_lifecycle_rule_is_one_that_s3_takes() -> None:
    import boto3
    from botocore.stub import Stubber

    given = re.search(r"--lifecycle-configuration '(.*?)'", section("What the machine needs"))
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
    assert f"CUDA {locked[1]}.{locked[2]}" in section("What the machine needs")
    assert "| NVIDIA driver | 580 |" in section("What the machine needs")
