"""What `kubectl apply -k` would send: overlays, the base, and every component on the base."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
TOOLS = ROOT / ".venv-k8s" / "bin"
# These replace the Job by another kind, so they come last.
FORMS = ("scheduled", "scheduled-from-newest", "jobset", "trainer")
Document = dict[str, Any]


class KustomizeError(AssertionError):
    pass


def names(kind: str) -> list[str]:
    """Folders of `k8s/overlays` or `k8s/components`."""
    return sorted(path.parent.name for path in (K8S / kind).glob("*/kustomization.yaml"))


def render(folder: Path) -> list[Document]:
    """Documents of a kustomization. Raises `KustomizeError` with what kustomize says."""
    done = subprocess.run([TOOLS / "kubectl", "kustomize", folder], capture_output=True, text=True)
    if done.returncode or done.stderr:
        raise KustomizeError(done.stderr)
    return list(yaml.safe_load_all(done.stdout))


def overlay(folder: Path, *components: str, **more: Any) -> Path:
    """A throwaway overlay in `folder`: the base with components, forms last."""
    chosen = sorted(components, key=lambda name: FORMS.index(name) if name in FORMS else -1)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(K8S / "base", folder.resolve())],
        "components": [os.path.relpath(K8S / "components" / name, folder.resolve()) for name in chosen],
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folder


def shipped(folder: Path) -> dict[str, list[Document]]:
    """Everything that is shipped, rendered: the base, each overlay, each component on the base (in `folder`)."""
    all_of_it = {"base": render(K8S / "base")}
    all_of_it |= {f"overlays/{name}": render(K8S / "overlays" / name) for name in names("overlays")}
    all_of_it |= {f"components/{name}": render(overlay(folder / name, name)) for name in names("components")}
    return all_of_it


def only(documents: list[Document], kind: str) -> Document:
    (document,) = (document for document in documents if document["kind"] == kind)
    return document
