"""Every installed distribution with its licence and where its source is, as text: `python locks/licences.py > FILE`."""

from importlib.metadata import Distribution, distributions

HEAD = """Software in this image that is not tunejob's own, from the metadata of the installed distributions.

Python packages are here as their source; each one's licence texts are in its .dist-info folder beside it. The exact
versions and the hashes of what was installed are in the locks. Modules of unsloth and unsloth_zoo carry their own
licence in their first lines: Apache-2.0, LGPL-3.0-or-later, or AGPL-3.0-only. They are unmodified, except that the
packages `studio` and `unsloth_cli` and the command `unsloth` were taken out. Their complete source is these files and,
at the address below, the same version's source distribution.
"""
ROW = "{:<28} {:<22} {:<44} {}"


def licence(found: Distribution) -> str:
    """The SPDX expression, else the licence field's first line, else the classifiers."""
    data = found.metadata
    classifiers = [c.rsplit(" :: ", 1)[-1] for c in data.get_all("Classifier") or [] if c.startswith("License ::")]
    stated = (data.get("License-Expression") or data.get("License") or "").strip().splitlines()
    return stated[0] if stated and len(stated[0]) <= 60 else ", ".join(classifiers) or "see its licence file"


def source(found: Distribution) -> str:
    name, version = found.metadata["Name"], found.version.split("+")[0]
    return f"https://pypi.org/project/{name}/{version}/"


def rows() -> list[str]:
    found = {d.metadata["Name"].lower(): d for d in distributions()}
    return [ROW.format(name, found[name].version, licence(found[name]), source(found[name])) for name in sorted(found)]


if __name__ == "__main__":
    print(HEAD, *rows(), sep="\n")  # noqa: T201
