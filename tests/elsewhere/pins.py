"""Whether each action's pinned commit is the one its version's tag names: `python -m tests.elsewhere.pins [ADDRESS]`.

The commits in .github were taken from public records of these tags, since github.com cannot be reached from everywhere;
where it can, `make pin-actions` asks it. Exit 1 if one differs, and the line to write is printed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

GITHUB = Path(__file__).parents[2] / ".github"
PIN = re.compile(r"uses: ([\w.-]+/[\w.-]+)@([0-9a-f]{40}) # (v[\w.]+)")


def pins(folder: Path = GITHUB) -> set[tuple[str, str, str]]:
    """Action, commit and tag of every pin."""
    return {found for path in folder.rglob("*.yml") for found in PIN.findall(path.read_text("utf-8"))}


def commit_of(tag: str, repository: str) -> str:
    """The commit that a tag names there now, an annotated tag's own target; empty if there is no such tag."""
    command = ["git", "ls-remote", repository, f"refs/tags/{tag}", f"refs/tags/{tag}^{{}}"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
    found = dict(reversed(line.split("\t")) for line in lines if line)
    return found.get(f"refs/tags/{tag}^{{}}") or found.get(f"refs/tags/{tag}", "")


def main(address: str) -> int:
    wrong = 0
    for action, commit, tag in sorted(pins()):
        now = commit_of(tag, f"{address}/{action}")
        wrong += now != commit
        verdict = "as tagged" if now == commit else f"differs; the tag names {now or 'nothing'}"
        print(f"{action}@{commit} # {tag}  {verdict}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "https://github.com"))
