"""The scripts, run in the tests' own process: to start one takes seconds."""

import runpy
import sys
from pathlib import Path

from tiny import own_state

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run_script(name: str, *argv, monkeypatch) -> int | str:
    """What it exits with: 0, a code, or a message."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPTS / name), *map(str, argv)])
    with own_state():
        try:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        except SystemExit as stop:
            return stop.code or 0
    return 0
