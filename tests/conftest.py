"""Fixtures only: servers that live for the whole session, and an environment without the user's own credentials."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from job.host import child
from job.store import s3 as s3_store
from tests.budget import Budget
from tests.forking import server
from tests.servers import SMALLEST_PART, Hub, S3Server, hub_server, s3_server
from tests.workers import fork_workers, make_models

yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same documents in a tenth of the time
STORE = "s3_server"  # of all workers, in what each is given
SHARED: pytest.StashKey[S3Server] = pytest.StashKey()
PERSONAL = ("AWS_", "HF_", "HUGGING_FACE_", "TUNEJOB_S3")


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # before torch is imported: tests that run beside each other share the cores
    config.pluginmanager.register(Budget(config), "budget")
    if config.getoption("tx", None) and not hasattr(config, "workerinput"):
        folder = Path(tempfile.mkdtemp(prefix="workers-"))
        forking = fork_workers(folder, config.args)
        ended = ExitStack()
        config.add_cleanup(ended.close)
        config.stash[SHARED] = ended.enter_context(s3_server(folder))
        make_models(forking, folder / "models.log")


def pytest_configure_node(node: Any) -> None:
    """One S3 server for all workers: each takes half a gigabyte, and two hundredths of a core while nobody asks."""
    node.workerinput[STORE] = node.config.stash[SHARED].addresses()


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> pytest.MonkeyPatch:
    """No address, credential or profile of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith(PERSONAL)]:
        monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("TUNEJOB_HUB_PAUSE_SECONDS", "0.05")  # 0.75 s for five tries instead of 15
    return monkeypatch


@pytest.fixture(scope="session")
def s3(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    if given := getattr(request.config, "workerinput", {}).get(STORE):
        yield S3Server.at(**given)
        return
    with s3_server(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def bucket(s3: S3Server, clean_environment: pytest.MonkeyPatch) -> str:
    """A fresh bucket's name, the environment pointing at its server over HTTP."""
    for name, value in s3.environment().items():
        clean_environment.setenv(name, value)
    return s3.new_bucket()


@pytest.fixture
def forked_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children of this process are forked, as those of a run are."""
    monkeypatch.setattr(child, "_SERVERS", [server(())])


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads in parts of `SMALLEST_PART`: as many requests as with the parts that ship, and a third of the bytes."""
    monkeypatch.setattr(s3_store, "PART_BYTES", SMALLEST_PART)


@pytest.fixture
def hub(clean_environment: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub, the environment pointing at it, no token set."""
    with hub_server() as server:
        clean_environment.setenv("HF_ENDPOINT", server.endpoint)
        yield server
