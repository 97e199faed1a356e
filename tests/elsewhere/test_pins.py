"""`make pin-actions` against repositories of this machine instead of GitHub's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.elsewhere.pins import commit_of, pins

GIT = ["git", "-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "commit.gpgsign=false"]


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        [*GIT, "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_tag_that_names_another_commit_is_reported(tmp_path: Path) -> None:
    known = {action: tag for action, _, tag in pins()}
    assert {"actions/checkout", "actions/setup-python", "actions/cache"} == set(known)
    for number, (action, tag) in enumerate(known.items()):
        folder = tmp_path / action
        folder.mkdir(parents=True)
        git(folder, "init", "--quiet")
        git(folder, "commit", "--quiet", "--allow-empty", "--message", "one")
        commit = git(folder, "rev-parse", "HEAD")
        git(folder, "tag", *(["--annotate", "--message", tag] if number else []), tag)
        git(folder, "commit", "--quiet", "--allow-empty", "--message", "two")
        assert commit_of(tag, str(folder)) == commit, "of an annotated tag, too, the commit and not the tag's own id"
        assert commit_of("v0.0.0", str(folder)) == ""
    done = subprocess.run(
        [sys.executable, "-m", "tests.elsewhere.pins", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout.count("differs; the tag names ") == 3
