"""`python -m vlkd_cli` is `vlkd`."""

from __future__ import annotations

import os
import sys


def forget_the_current_folder() -> None:
    """Take the current folder off the front of the import path, where `python -m` puts it.

    A `typing.py` or `yaml.py` that happens to be next to a recipe must not be imported instead of
    the library. The folder that holds vlkd itself stays, last: spawned workers import vlkd by it.
    """
    if sys.flags.safe_path or not sys.path or sys.path[0] not in ("", os.getcwd()):
        return
    first = sys.path.pop(0) or os.getcwd()
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.path.realpath(first) == os.path.realpath(here) and here not in sys.path:
        sys.path.append(here)


if __name__ == "__main__":
    forget_the_current_folder()
    from vlkd_cli.app import main

    main()
