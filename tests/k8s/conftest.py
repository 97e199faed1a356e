from __future__ import annotations

import pytest

from tests.k8s.render import TOOLS, Document, shipped

SETUP = "the Kubernetes tools are not set up: make k8s-test"


@pytest.fixture(scope="session", autouse=True)
def tools() -> None:
    if not (TOOLS.parent / ".packages").exists():
        pytest.skip(SETUP)


@pytest.fixture(scope="session")
def manifests(tools: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Document]]:
    """Everything shipped, rendered; only to be read."""
    return shipped(tmp_path_factory.mktemp("overlays"))
