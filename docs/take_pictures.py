"""Take the pictures of README.md and docs/: `make docs-pictures`, or
`python -m docs.take_pictures [RUN]` for a run of the quickstart that there is.

The results on the run's report page, in light and dark colors. They are shown 720 pixels wide.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.support.browser import browser

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
WIDTH, HEIGHT = 1080, 620
SECTION = "document.querySelector('#results').getBoundingClientRect().top + scrollY"
MOST_BYTES = 120_000


def main() -> None:
    """Write `quickstart.png` and `quickstart_dark.png`."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(sys.argv[1]) if len(sys.argv) > 1 else _trained(Path(folder))
        take(run / "report.html", Path(folder))


def take(page: Path, scratch: Path) -> None:
    """Both pictures of a page.

    Raises:
        SystemExit: one of them is larger than a first screen should load.
    """
    with browser() as tab:
        for name, dark in (("quickstart.png", False), ("quickstart_dark.png", True)):
            tab.open(page, width=WIDTH, dark=dark)
            tab.screenshot(scratch / name, top=tab.value(SECTION), height=HEIGHT)
            picture = Image.open(scratch / name).convert("RGB").quantize(64, dither=0)
            picture.save(PICTURES / name, optimize=True)
            size = (PICTURES / name).stat().st_size
            print(f"{name}: {size:,} bytes")
            if size > MOST_BYTES:
                sys.exit(f"{name} is larger than {MOST_BYTES:,} bytes. Show less of the page.")


def _trained(folder: Path) -> Path:
    """The run folder of the quickstart, trained on one thread as README.md says."""
    run = folder / "quickstart"
    recipe = ROOT / "recipes" / "quickstart.yaml"
    words = [sys.executable, "-m", "vlkd_cli", "train", str(recipe), "--run", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(words, check=True, env=environment)
    return run


if __name__ == "__main__":
    main()
