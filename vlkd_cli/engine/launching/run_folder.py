"""The layout of a run folder, and how a run is found again."""

from __future__ import annotations

import contextlib
import csv
import errno
import os
import shlex
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.errors import CheckpointError
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.recipe.snapshot import recipe_to_yaml, write_snapshot
from vlkd_cli.reports.state import read_state
from vlkd_cli.whole_file import whole_file

if TYPE_CHECKING:
    from vlkd_cli.data.batch import Lost, Skipped

LOCK = ".lock"


class RunFolder:
    """One run: `recipe.yaml`, `versions.json`, `metrics.csv`, `checkpoints/`, `results/`, `logs/`,
    `skipped.csv`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._skipped: dict[Path, dict[str, str]] = {}

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def results(self) -> Path:
        return self.path / "results"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    def create(self) -> RunFolder:
        """Make the folders.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        with self._writing():
            for folder in (self.path, self.checkpoints, self.results, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK):
                raise PermissionError("permission denied")
        return self

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, so that no second run writes into it. The system lets go of it when this
        process ends, however it ends.

        Raises:
            CheckpointError: another process holds it; names host and process.
        """
        import fcntl

        with self._writing():
            file = (self.path / LOCK).open("a+", encoding="utf-8")
        with file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                # Some network file systems have no locks; there the recipe alone protects a run.
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise self._in_use(file) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)

    def refuse_another_run(self) -> None:
        """A new run takes a folder without a recipe, or one whose run failed before it trained.

        Raises:
            CheckpointError: there is a run.
        """
        if self.recipe.exists() and not self._failed_early():
            raise CheckpointError(
                f"{self.path} holds a run already. Continue it with --resume"
                f" {shlex.quote(str(self.path))}, or choose another --run."
            )

    def _failed_early(self) -> bool:
        state = read_state(self.path)
        if state is None or state.state != "failed" or state.total_steps is not None:
            return False
        return not any(self.checkpoints.iterdir()) and not (self.path / "metrics.csv").exists()

    def write_recipe(self, recipe: Recipe) -> None:
        """Write `recipe.yaml` and `versions.json`.

        Raises:
            CheckpointError: the disk is full or the folder cannot be written.
        """
        with self._writing():
            write_snapshot(recipe, self.path)

    def rewrite_recipe(self, recipe: Recipe) -> None:
        """Replace `recipe.yaml`; `versions.json` still records how the run was started.

        Raises:
            CheckpointError: the disk is full or the folder cannot be written.
        """
        with self._writing(), whole_file(self.recipe) as partial:
            partial.write_text(recipe_to_yaml(recipe), encoding="utf-8")

    def note_skipped(self, skipped: Sequence[Skipped | Lost], rank: int) -> None:
        """Append samples that could not be read, and shards that are left out, to `skipped.csv` (of
        this rank, where there are several), each once, however often it was sampled.

        Raises:
            CheckpointError: the disk is full or the folder cannot be written.
        """
        if not skipped:
            return
        path = self.path / ("skipped.csv" if rank == 0 else f"skipped_rank_{rank}.csv")
        noted = self._skipped_in(path)
        new = {item.name: item for item in skipped if item.name not in noted}
        # Names of files may hold bytes that are not text.
        with (
            self._writing(),
            path.open("a", newline="", encoding="utf-8", errors="backslashreplace") as file,
        ):
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(("sample", "reason"))
            writer.writerows((item.name, _reason(item)) for item in new.values())
        noted |= {name: _reason(item) for name, item in new.items()}

    def skipped_summary(self) -> str | None:
        """A line on the samples that could not be read, of all ranks; None where there are none."""
        found: dict[str, str] = {}
        for path in sorted(self.path.glob("skipped*.csv")):
            found |= self._skipped_in(path)
        if not found:
            return None
        name, reason = next(iter(found.items()))
        each = "1 sample" if len(found) == 1 else f"{len(found):,} samples"
        return (
            f"{each} could not be read and {'was' if len(found) == 1 else 'were'} replaced or left"
            f" out, e.g. {name}: {reason}. See {self.path / 'skipped.csv'}."
        )

    def _skipped_in(self, path: Path) -> dict[str, str]:
        """Reason by name of what a list names; lines that are damaged do not count."""
        if path not in self._skipped:
            self._skipped[path] = {}
            if path.is_file():
                text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "")
                with contextlib.suppress(csv.Error):
                    rows = [row for row in csv.reader(text.split("\n")) if len(row) == 2]
                    self._skipped[path] = dict(rows[1:])
        return self._skipped[path]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise CheckpointError(
                f"cannot write the run folder {self.path}: {error.strerror or error}."
                f" {'Free space' if is_full else 'Choose another with --run'}."
            ) from error

    def _in_use(self, file: IO[str]) -> CheckpointError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        return CheckpointError(
            f"{self.path} is in use by {holder}. Wait for that run to end, or choose another --run."
        )


def _reason(item: Skipped | Lost) -> str:
    if item.num_samples == 1:
        return item.reason
    return f"{item.reason}; about {item.num_samples:,} samples"


def fresh_run(recipe_name: str, base: Path) -> RunFolder:
    """A new folder under `base`, named after the recipe and the time."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path = base / f"{recipe_name}-{stamp}"
    number = 2
    while path.exists():
        path = base / f"{recipe_name}-{stamp}-{number}"
        number += 1
    return RunFolder(path)


def latest_run(base: Path, recipe_name: str | None = None) -> RunFolder:
    """The run under `base` that was worked on last, of one recipe or of any.

    Raises:
        CheckpointError: there is none.
    """
    pattern = f"{recipe_name}-*" if recipe_name else "*"
    found = [path.parent for path in base.glob(f"{pattern}/recipe.yaml")]
    if recipe_name:
        # quickstart-2 is another recipe than quickstart: what follows the name must be the time
        # stamp.
        found = [path for path in found if path.name.removeprefix(f"{recipe_name}-")[:8].isdigit()]
    if not found:
        of_recipe = f" of recipe '{recipe_name}'" if recipe_name else ""
        raise CheckpointError(
            f"no run{of_recipe} under {base}/. Start one with `vlkd train`, or name its folder."
        )
    return RunFolder(max(found, key=lambda path: (path / "recipe.yaml").stat().st_mtime_ns))


def existing_run(path: Path, base: Path) -> RunFolder:
    """A run by its folder, or by its name under `base`.

    Raises:
        CheckpointError: there is no such run.
    """
    for candidate in (path, base / path):
        if (candidate / "recipe.yaml").is_file():
            return RunFolder(candidate)
    names = [folder.parent.name for folder in base.glob("*/recipe.yaml")]
    raise CheckpointError(
        f"{path} is not a run folder (it has no recipe.yaml).{did_you_mean(path.name, names)}"
    )


def runs_of(targets: Sequence[str], base: Path) -> list[Path]:
    """The run folders that are meant: runs by folder or name, and all runs of a folder that holds
    runs.

    Raises:
        CheckpointError: a target is neither.
    """
    found: list[Path] = []
    for target in targets:
        path = Path(target)
        inside = [] if (path / "recipe.yaml").is_file() else runs_under(path)
        found += inside or [existing_run(path, base).path]
    return list(dict.fromkeys(found))


def runs_under(folder: Path) -> list[Path]:
    """Every run in a folder and in its folders (a sweep), by name."""
    files = [*folder.glob("*/recipe.yaml"), *folder.glob("*/*/recipe.yaml")]
    return sorted(file.parent for file in files)
