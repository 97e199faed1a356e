"""Rendered files for tests: specs that try to break out of them, and how each target gives its spec back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from job.render import TARGETS, render
from job.render.options import RenderArguments, RenderOptions, options
from tests.specs import changed

REMOTE = {
    "/data/train/0/source": "s3://data/rows.jsonl",
    "/output/uri": "s3://models/small",
    "/model/source": "hf://org/llama-8b",
}
HOSTILE = [
    "it's 'quoted' \"twice\"", "$(touch pwned) `touch pwned` $HOME ${HOME} $$ !!", "'; touch pwned; '", "; exit 0",
    "${{", "}}", "${{ secrets.AWS_SECRET_ACCESS_KEY }}", "$${{ secrets.X }}", "'\"'\"'${{ x }}'",
    "{{ SECRET_key }} {% raw %}", "a\nEOF\nSPEC\n---\nkind: Secret\n",
    "&anchor *anchor !!python/object:os.system <<: {}", "# comment\n: - [ ] { } | > % @ `", "\\n \\\\ \\u0024 %s %d",
    "tab\there", "trailing space \n  leading", "é ü 漢字 😀 \u2028 \u0085 \ufeff \u200b",
]  # fmt: skip


def hostile(style: dict[str, Any]) -> bytes:
    """A valid spec with all of it in prompts, in the given layout of JSON."""
    return json.dumps(changed({**REMOTE, "/evaluation/prompts": HOSTILE}), **style).encode()


LAYOUTS = {
    "one line": hostile({}),
    "lines": hostile({"indent": 2}),
    "tabs": hostile({"indent": "\t"}),
    "as it is": hostile({"indent": 1, "ensure_ascii": False}),
    "line ends of Windows": hostile({"indent": 2}).replace(b"\n", b"\r\n"),
    "line at the end": hostile({"indent": 2}) + b"\n",
    "space at line ends": hostile({"indent": 2}).replace(b",\n", b", \n") + b" \n\n",
}


# What a target cannot do without, as long as no release is out.
PUSHED = "registry.example.com/tunejob:0.1.0"
NEEDED: dict[str, dict[str, str]] = {
    "skypilot": {"image": PUSHED},
    "dstack": {"image": PUSHED},
    "actions": {"source": "https://git.example.com/tunejob@v0.1.0"},
}


def options_of(target: str, **given: Any) -> RenderOptions:
    return options(RenderArguments(**NEEDED.get(target, {}) | given))


def rendered(raw: bytes, target: str, **given: Any) -> str:
    return render(raw, target, options_of(target, **given))


def objects(text: str) -> dict[str, Any]:
    """Kubernetes objects by kind."""
    return {part["kind"]: part for part in yaml.safe_load_all(text)}


NOTE = """#!{python}
import json, pathlib, sys
seen = json.dumps([sys.argv[1:], sys.stdin.buffer.read().decode("latin-1")])
pathlib.Path({folder!r}, pathlib.Path(sys.argv[0]).name).write_text(seen)
sys.exit(14)
"""


def ran(
    script: str, folder: Path, engine: str = "docker", shell: str = "bash", arguments: tuple[str, ...] = (), **env: str
) -> tuple[int, list[str], bytes]:
    """Really runs a script; programs in place of engines and clients note what they get: exit code, arguments, input.

    They exit with 14, so that a lost exit code shows.
    """
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    light = folder / "light" / "bin"  # where a workflow puts its Python
    light.mkdir(parents=True, exist_ok=True)
    for program in (tools / "docker", tools / "podman", tools / "kubectl", light / "python"):
        program.write_text(NOTE.format(python=sys.executable, folder=str(folder)))
        program.chmod(0o755)
    file = folder / "script"
    file.write_text(script, "utf-8", newline="")
    path = {"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run([shell, str(file), *arguments], cwd=folder, env=path | env, capture_output=True, check=False)
    noted = folder / engine
    seen, given = json.loads(noted.read_text()) if noted.exists() else ([], "")
    return done.returncode, seen, given.encode("latin-1")


def step(workflow: dict[str, Any], name: str) -> str:
    """What the step of a rendered workflow runs."""
    return next(
        str(step["run"]) for work in workflow["jobs"].values() for step in work["steps"] if step["name"] == name
    )


def spec_inside(target: str, text: str, folder: Path) -> bytes:
    """The spec that a job would read, got the way the target's reader gets it."""
    if target in ("docker", "podman"):
        return ran(text, folder, target)[2]
    parsed = yaml.safe_load_all(text) if "ConfigMap" in text and target != "actions" else yaml.safe_load(text)
    if target == "skypilot":
        lines = parsed["run"].splitlines(keepends=True)
        assert lines[0].startswith("docker info")
        return ran("".join(lines[1:]), folder)[2]
    if target == "actions":
        return ran(step(parsed, "Check the spec"), folder, "python", RUNNER_TEMP=str(folder))[2]
    if target in ("dstack", "compose"):
        command = (
            parsed["commands"][0]
            if target == "dstack"
            else parsed["services"]["tunejob"]["command"][0].replace("$$", "$")
        )
        wrote = command.split(" > /tmp/spec.json")
        assert len(wrote) == 2
        assert subprocess.run(["sh", "-n", "-c", command], check=False).returncode == 0
        return subprocess.run(
            ["sh", "-c", wrote[0]], capture_output=True, check=True, cwd=folder, env={"PATH": "/usr/bin:/bin"}
        ).stdout
    return next(part["data"]["spec.json"] for part in parsed if part["kind"] == "ConfigMap").encode()


EVERY_TARGET = tuple(TARGETS)
