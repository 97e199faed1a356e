"""The built image, really run: `make image-test`. Skipped unless TUNEJOB_IMAGE names one (`tests.image.build`)."""

from __future__ import annotations

import json
import mmap
import subprocess
from pathlib import Path
from typing import Any

import pytest

from job import __version__
from job.ledger.manifest import verify
from job.spec.strict import StrictValidator, load_schema
from job.store import open_store
from tests.drivers import libcuda
from tests.image.build import BUILD_CANARY
from tests.image.container import IMAGE, Container, Ended
from tests.servers import S3Server

pytestmark = [pytest.mark.skipif(not IMAGE, reason="TUNEJOB_IMAGE is not set"), pytest.mark.timeout(2400)]

ROOT = Path(__file__).parents[2]
MODEL, ROWS = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct", ROOT / "tests" / "demo"
INPUTS = {MODEL: "/input/model", ROWS: "/input/rows"}
CPU = {"TUNEJOB_DEVICE": "cpu"}
ANY_UID = 1_234_567
QUICK = {"/evaluation/gates": [], "/evaluation/exact_match_rows": 0, "/export": {}}


def spec(output: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The demo's spec with the container's paths."""
    demo = json.loads((ROOT / "schemas" / "examples" / "demo.json").read_bytes())
    places = {
        "/model/source": "/input/model",
        "/data/train/0/source": "/input/rows/train.jsonl",
        "/data/held_out/sources/0/source": "/input/rows/held_out.jsonl",
        "/output/uri": output,
    }
    for pointer, value in (places | (changes or {})).items():
        *path, last = pointer.split("/")[1:]
        place = demo
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place[part]
        place[last] = value
    return demo


def container(folder: Path, document: Any, **settings: Any) -> Container:
    """One with `document` as its spec where the image's default command looks for it."""
    path = folder / "spec.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    settings["mounts"] = {**INPUTS, path: "/etc/tunejob/spec.json", **settings.get("mounts", {})}
    return Container(folder, **{"environment": CPU, **settings})


def facts(ended: Ended, code: int) -> dict[str, Any]:
    """The termination message of a failure."""
    assert ended.exit_code == code, ended.said
    message: dict[str, Any] = json.loads(ended.last_words)
    StrictValidator(load_schema("failure")).validate(message)
    return message


def published(manifest: Any) -> set[str]:
    """The demo's artefacts, as in its README."""
    keys = {file.key for file in manifest.files}
    assert {"adapter/adapter_model.safetensors", "merged/model.safetensors", "stats.json"} <= keys
    return {key for key in keys if key.endswith(".gguf")}


def test_the_demo_to_s3_as_the_images_own_user(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    trust = {s3.ca: "/etc/tunejob-ca/ca.pem"}
    environment = CPU | s3.environment(secure=True) | {"AWS_CA_BUNDLE": "/etc/tunejob-ca/ca.pem"}
    running = container(tmp_path, spec(f"s3://{bucket}/demo"), network="host", mounts=trust, environment=environment)
    ended = running.run()
    assert ended.exit_code == 0, ended.said
    assert published(verify(open_store(f"s3://{bucket}/demo"))) == {"gguf/demo-Q8_0.gguf", "gguf/demo-Q4_K_M.gguf"}
    print(f"demo to S3: {ended.seconds:.0f} s")


def test_the_demo_without_a_network_as_a_user_nobody_knows(tmp_path: Path) -> None:
    running = container(tmp_path, spec("/scratch/out"), user=ANY_UID)
    ended = running.run()
    assert ended.exit_code == 0, ended.said
    assert published(verify(open_store(str(running.scratch / "out")))) == {
        "gguf/demo-Q8_0.gguf",
        "gguf/demo-Q4_K_M.gguf",
    }
    assert {path.stat().st_uid for path in (running.scratch / "out").rglob("*")} == {ANY_UID}
    print(f"demo without a network: {ended.seconds:.0f} s")


@pytest.mark.parametrize("user", [10001, ANY_UID])
def test_a_bad_spec(user: int, tmp_path: Path) -> None:
    ended = container(tmp_path, spec("/scratch/out", {"/lora/rank": 8}), user=user).run()
    assert facts(ended, 10)["class"] == "SpecError"
    assert "/lora/rank" in ended.last_words


def test_a_missing_spec(tmp_path: Path) -> None:
    ended = Container(tmp_path).run()
    assert facts(ended, 10)["class"] == "SpecError"
    assert "/etc/tunejob/spec.json" in ended.stdout


def test_a_stop_signal_reaches_it(tmp_path: Path) -> None:
    running = container(tmp_path, spec("/scratch/out", QUICK | {"/training/epochs": 1000}), user=ANY_UID).start()
    running.wait_until_it_says('"event": "train"')
    assert facts(running.stop(), 30)["class"] == "Interrupted"
    assert not (running.scratch / "out" / "manifest.json").exists()


def test_too_little_memory_is_not_a_success(tmp_path: Path) -> None:
    limit = ("--memory", "700m", "--memory-swap", "700m")
    ended = container(tmp_path, spec("/scratch/out", QUICK), options=limit).run()
    assert ended.exit_code in (13, 137), ended.said


def test_no_gpu_and_nobody_said_cpu(tmp_path: Path) -> None:
    ended = container(tmp_path, spec("/scratch/out"), environment={}).run()
    message = facts(ended, 21)
    assert message["class"] == "DeviceError"
    assert "no NVIDIA driver on this machine" in message["message"]
    assert "TUNEJOB_DEVICE=cpu" in ended.last_words


@pytest.mark.parametrize(
    ("answers", "code", "cpu_says", "cuda_says"),
    [
        ({}, 13, "wrong image", ""),
        ({"version": 12080}, 21, "", "it speaks CUDA 12.8"),
        ({"status": 100}, 21, "", "the NVIDIA driver shows no GPU"),
        ({"major": 6}, 13, "", "first, compute capability 6.6"),
    ],
)
def test_a_driver_that_does_not_fit(
    answers: dict[str, int], code: int, cpu_says: str | None, cuda_says: str | None, tmp_path: Path
) -> None:
    """Each cause in the variant of the image that can meet it: torch is a CPU build in one, CUDA 13 in the other."""
    says = cpu_says if IMAGE.endswith(":cpu") else cuda_says
    if not says:
        pytest.skip("the other variant's cause")
    driver = {libcuda(tmp_path, **answers): "/usr/local/nvidia/lib64/libcuda.so.1"}
    ended = container(
        tmp_path, spec("/scratch/out"), mounts=driver, environment={"LD_LIBRARY_PATH": "/usr/local/nvidia/lib64"}
    ).run()
    assert facts(ended, code)
    assert says in ended.stdout


def test_it_says_its_version(tmp_path: Path) -> None:
    assert Container(tmp_path).run("--version").stdout == f"tunejob {__version__}\n"


SEARCH = r"""
for tool in cmake curl git make ninja pip pip3 sudo unsloth wget; do command -v $tool; done
find / -xdev -perm /6000 -type f
find / -xdev -not -path '/scratch*' -not -path '/tmp*' -type f -writable
find /opt /root /etc -iname '*pip.conf*' -size +0
find / -xdev -type d \( -name pip -o -name studio -o -name unsloth_cli -o -path '*/.cache' \)
find /var/lib/apt/lists /var/cache -type f
find /opt/tunejob/lib -name '*.py' -path '*/unsloth/*' | head -1 | grep -q . || echo no sources
"""


def shell(folder: Path, script: str) -> str:
    ended = Container(folder, options=("--entrypoint", "/bin/sh"), user=ANY_UID).run("-c", script + "\ntrue")
    assert ended.exit_code == 0, ended.said
    return ended.stdout


def test_only_what_runs_is_in_it(tmp_path: Path) -> None:
    assert shell(tmp_path, SEARCH) == ""


def test_the_first_process_is_the_job_and_has_no_powers(tmp_path: Path) -> None:
    program = "print(open('/proc/self/status').read(), open('/proc/1/cmdline').read())"
    said = Container(tmp_path, options=("--entrypoint", "/opt/tunejob/bin/python")).run("-c", program).stdout
    assert {
        line.split()[0]: line.split()[1]
        for line in said.splitlines()
        if line.startswith(("CapEff", "CapPrm", "NoNewPrivs"))
    } == {"CapPrm:": "0000000000000000", "CapEff:": "0000000000000000", "NoNewPrivs:": "1"}
    config = inspect()["Config"]
    assert (config["Entrypoint"], config["Cmd"]) == (["/opt/tunejob/bin/tunejob"], ["run", "/etc/tunejob/spec.json"])
    assert (config["User"], config["WorkingDir"]) == ("10001:0", "/scratch")
    assert config["Labels"]["org.opencontainers.image.version"] == __version__


def test_bytecode_and_notices_are_there(tmp_path: Path) -> None:
    count = "find lib -name '*.py' | wc -l; find lib -name '*.pyc' | wc -l"
    script = f"cd /opt/tunejob; {count}; cat share/doc/tunejob/NOTICE-packages.txt"
    sources, bytecode, notices = shell(tmp_path, script).split("\n", 2)
    assert int(bytecode) > 0.98 * int(sources), "a few files of the vendors are templates and no Python"
    assert "unsloth_zoo" in notices
    assert "LGPL-3.0-or-later" in notices


COMPILES = """
import subprocess, sysconfig, torch
double = torch.compile(lambda rows: (rows * 2).relu().sum())
print(double(torch.ones(8)).item())
headers = sysconfig.get_paths(scheme="posix_prefix")["include"]
command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", f"-I{headers}", "-o", "/scratch/module.so"]
subprocess.run(command, input=b"#include <Python.h>", check=True)
"""


def test_what_a_gpu_compiles_can_be_compiled(tmp_path: Path) -> None:
    """torch.compile's C++, and C against Python's headers as Triton's, into caches that an unknown user may write."""
    ended = Container(tmp_path, user=ANY_UID, options=("--entrypoint", "/opt/tunejob/bin/python")).run("-c", COMPILES)
    assert (ended.exit_code, ended.stdout) == (0, "16.0\n"), ended.said


def inspect() -> dict[str, Any]:
    said = subprocess.run(["podman", "image", "inspect", IMAGE], check=True, capture_output=True, text=True).stdout
    document: dict[str, Any] = json.loads(said)[0]
    return document


def test_nothing_of_the_build_machine_is_in_a_layer(tmp_path: Path) -> None:
    """Its pip settings, which hold a canary, are in no layer and not in the history."""
    saved = tmp_path / "image.tar"
    subprocess.run(["podman", "save", "--quiet", "--format", "docker-archive", "-o", saved, IMAGE], check=True)
    history = subprocess.run(
        ["podman", "history", "--no-trunc", "--format", "json", IMAGE], check=True, capture_output=True
    ).stdout
    with saved.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as layers:
        assert layers.find(BUILD_CANARY.encode()) == -1
    assert BUILD_CANARY.encode() not in history
    saved.unlink()
