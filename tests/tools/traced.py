"""Which files of the package really run: their functions that are called, as a profiler sees it."""

import sys
from collections.abc import Callable
from pathlib import Path

import mtl_diffusion

PACKAGE = Path(mtl_diffusion.__file__).parent


def files_called(function: Callable[[], object]) -> set[str]:
    """Files of the package with a function that is called, such as `pipeline/edit.py`.

    Of this thread alone. A cached answer hides the functions that gave it: call it once before.
    """
    found = set()

    def note(frame, event, argument):
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(str(PACKAGE)) and frame.f_code.co_name[0] != "<":
            found.add(Path(name).relative_to(PACKAGE).as_posix())

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return found
