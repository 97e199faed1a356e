"""Takes packages that the job never imports out of an installed distribution: `python locks/trim.py DISTRIBUTION
PACKAGE…`.

Files, their bytecode and the commands that need them go, and so do their lines in the distribution's own records, so
that what is listed is what is there.
"""

import configparser
import io
import shutil
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path


def drop_commands(found: Distribution, packages: set[str]) -> set[str]:
    """Names of the console scripts that call into `packages`; the distribution's list no longer holds them."""
    scripts = [point for point in found.entry_points if point.group == "console_scripts"]
    gone = {point.name for point in scripts if point.module.split(".")[0] in packages}
    listed = configparser.ConfigParser(delimiters="=")
    listed.optionxform = str  # type: ignore[assignment,method-assign]  # names keep their case
    listed.read_string(found.read_text("entry_points.txt") or "")
    for name in gone:
        listed.remove_option("console_scripts", name)
    text = io.StringIO()
    listed.write(text, space_around_delimiters=False)
    Path(str(found.locate_file(f"{_info(found)}/entry_points.txt"))).write_text(text.getvalue(), "utf-8")
    return gone


def _info(found: Distribution) -> str:
    return next(str(file.parent) for file in found.files or [] if file.name == "RECORD")


def main(name: str, *packages: str) -> None:
    found = distribution(name)
    here = Path(str(found.locate_file("")))
    missing = [package for package in packages if not (here / package).is_dir()]
    if missing:
        sys.exit(f"{name} has no {', '.join(missing)}: see what this version brings instead")
    gone = drop_commands(found, set(packages))
    record = here / _info(found) / "RECORD"
    kept = []
    for line in record.read_text("utf-8").splitlines(keepends=True):
        path = Path(line.split(",")[0])
        if path.name in gone and path.parent.name == "bin":
            Path(str(found.locate_file(path))).unlink()
        elif path.parts[0] not in packages:
            kept.append(line)
    record.write_text("".join(kept), "utf-8")
    for package in packages:
        shutil.rmtree(here / package)


if __name__ == "__main__":
    main(*sys.argv[1:])
