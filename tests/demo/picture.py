"""A picture of the demo's report, as a browser shows it: `python -m tests.demo.picture OUTPUT FILE.png [dark]`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.browser import browser

WIDTH, HEIGHT = 1060, 820


def main() -> None:
    output, target, *dark = sys.argv[1:]
    with browser() as chromium:
        tab = chromium.page()
        tab.look(Path(output) / "report" / "report.html", WIDTH, bool(dark))
        tab.picture(Path(target), HEIGHT)
        assert tab.complaints == [], tab.complaints


if __name__ == "__main__":
    main()
