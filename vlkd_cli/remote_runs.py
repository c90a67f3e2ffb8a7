"""Run folders at a URL that fsspec reaches: s3://, gs://, file://, memory://, ...

A run works in a local folder; after each checkpoint its files are copied to the URL, and resuming
copies them back. The URL is the run: what reached it is what continues. A file there appears under
its name when it is whole, and `checkpoints/names.json` is written last, so that a copy that was cut
off leaves the former checkpoint.
"""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlkd_cli.cache_folder import cache_folder
from vlkd_cli.errors import CheckpointError

RECIPE, NAMES = "recipe.yaml", "checkpoints/names.json"
_STEPS = "step_*.pt"
_NAMED = ("last.pt", "best.pt", "before_cooldown.pt")
_PARTIAL = ".partial"


def is_url(path: object) -> bool:
    """Whether a run is at a URL."""
    return "://" in str(path)


class RemoteRun:
    """A run folder at a URL, with its local folder.

    Args:
        url: of the folder.

    Raises:
        CheckpointError: fsspec does not know the protocol.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        name = self.url.rpartition("/")[2]
        digest = hashlib.sha256(self.url.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        self.folder = cache_folder() / "runs" / f"{name}-{digest}"
        self._files = _filesystem(self.url)
        self._root = self._files._strip_protocol(self.url).rstrip("/")
        # Another process of the run may have copied files before this one.
        self._copied: dict[str, list[int]] = {}
        self._note_file = self.folder / ".copied.json"

    def exists(self) -> bool:
        """Whether the URL holds a run."""
        with self._reaching("read"):
            return bool(self._files.exists(self._at(RECIPE)))

    def begin(self) -> Path:
        """The local folder of a new run, emptied of one that was at this URL before.

        Raises:
            CheckpointError: the URL holds a run.
        """
        if self.exists():
            raise CheckpointError(
                f"{self.url} holds a run already. Continue it with --resume {self.url}, or choose"
                " another --run."
            )
        shutil.rmtree(self.folder, ignore_errors=True)
        return self.folder

    def fetch(self) -> Path:
        """The local folder, with the recipe, the metrics and the checkpoints that the URL has.
        Checkpoints that are there already are not copied again.

        Raises:
            CheckpointError: the URL holds no run, or cannot be read.
        """
        with self._locked(), self._reaching("read"), self._noting():
            if not self._files.exists(self._at(RECIPE)):
                raise CheckpointError(f"no run at {self.url} (it has no {RECIPE}).")
            self._drop_another_run()
            names = self._names()
            for path, size in self._listed():
                if not path.startswith("checkpoints/"):
                    self._get(path)
                elif re.fullmatch(r"checkpoints/step_\d+\.pt", path):
                    local = self.folder / path
                    if not (local.is_file() and local.stat().st_size == size):
                        self._get(path)
            self._restore_names(names)
        return self.folder

    def push(self) -> None:
        """Copy what is new in the local folder to the URL; checkpoints that are gone go there, too.

        Raises:
            CheckpointError: the URL cannot be written; the local files are whole.
        """
        with self._reaching("written"), self._noting():
            steps = {path.name: path for path in (self.folder / "checkpoints").glob(_STEPS)}
            names = self._names()
            for _, path in sorted(steps.items()):
                self._put(path)
            for name in _NAMED:
                file = self.folder / "checkpoints" / name
                target = _same_file(file, steps) if file.is_file() else None
                if target is not None and names.get(name) != target:
                    self._replace(f"checkpoints/{name}", self._at(f"checkpoints/{target}"))
                    names[name] = target
            if names:
                self._write(NAMES, json.dumps(names).encode())
            for path in sorted(self.folder.rglob("*")):
                if path.is_file() and path.suffix != ".pt" and _is_part_of_run(path):
                    self._put(path)
            for there, _ in self._listed("checkpoints"):
                name = there.rpartition("/")[2]
                if name.endswith(_PARTIAL) or (name.startswith("step_") and name not in steps):
                    self._files.rm(self._at(there))

    # -- one file ----------------------------------------------------------------------------------

    def _put(self, path: Path) -> None:
        """Upload a file that has changed since it was uploaded last."""
        status = path.stat()
        name, state = path.relative_to(self.folder).as_posix(), [status.st_size, status.st_mtime_ns]
        if self._copied.get(name) == state:
            return
        self._make_folder(name)
        self._files.put_file(str(path), self._at(name + _PARTIAL))
        self._move(name)
        self._copied[name] = state

    def _replace(self, name: str, source: str) -> None:
        self._files.cp_file(source, self._at(name + _PARTIAL))
        self._move(name)

    def _write(self, name: str, content: bytes) -> None:
        self._make_folder(name)
        self._files.pipe_file(self._at(name + _PARTIAL), content)
        self._move(name)

    def _move(self, name: str) -> None:
        self._files.mv(self._at(name + _PARTIAL), self._at(name))

    def _make_folder(self, name: str) -> None:
        self._files.makedirs(self._at(name).rpartition("/")[0], exist_ok=True)

    def _get(self, name: str) -> None:
        local = self.folder / name
        local.parent.mkdir(parents=True, exist_ok=True)
        partial = local.with_name(local.name + _PARTIAL)
        self._files.get_file(self._at(name), str(partial))
        os.replace(partial, local)
        status = local.stat()
        self._copied[name] = [status.st_size, status.st_mtime_ns]

    # -- what is where -----------------------------------------------------------------------------

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _listed(self, folder: str = "") -> list[tuple[str, int]]:
        """Path below the URL and size of each file, sorted."""
        self._files.invalidate_cache()
        root = self._at(folder).rstrip("/")
        if not self._files.exists(root):
            return []
        found = self._files.find(root, detail=True)
        start = len(self._root.strip("/")) + 1
        return sorted((path.strip("/")[start:], each["size"]) for path, each in found.items())

    def _names(self) -> dict[str, str]:
        """Which step each named checkpoint is."""
        self._files.invalidate_cache()
        if not self._files.exists(self._at(NAMES)):
            return {}
        names: dict[str, str] = json.loads(self._files.cat_file(self._at(NAMES)))
        return names

    def _drop_another_run(self) -> None:
        own = self.folder / RECIPE
        if own.is_file() and own.read_bytes() != self._files.cat_file(self._at(RECIPE)):
            shutil.rmtree(self.folder)
            self._copied = {}

    def _restore_names(self, names: dict[str, str]) -> None:
        """Give the local checkpoints the names that they have at the URL, and remove later ones."""
        checkpoints = self.folder / "checkpoints"
        marks = checkpoints / Path(NAMES).name
        before = json.loads(marks.read_bytes()) if marks.is_file() else {}
        last = names.get("last.pt", "")
        for file in checkpoints.glob(_STEPS):
            if file.name > last:
                file.unlink()
        for name, step in names.items():
            target = checkpoints / step
            if target.is_file():
                partial = checkpoints / (name + _PARTIAL)
                partial.unlink(missing_ok=True)
                shutil.copyfile(target, partial)
                os.replace(partial, checkpoints / name)
            elif before.get(name) != step or not (checkpoints / name).is_file():
                self._get(f"checkpoints/{name}")
        if names:
            marks.write_text(json.dumps(names))

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """Record next to the files which versions are at the URL."""
        if self._note_file.is_file():
            self._copied = json.loads(self._note_file.read_bytes())
        try:
            yield
        finally:
            if self.folder.is_dir():
                self._note_file.write_text(json.dumps(self._copied))

    @contextlib.contextmanager
    def _reaching(self, what: str) -> Iterator[None]:
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:  # every fsspec protocol has exceptions of its own
            reason = str(error).partition("\n")[0]
            raise CheckpointError(
                f"{self.url} cannot be {what} ({type(error).__name__}: {reason}). The run's own"
                f" files are in {self.folder}."
            ) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process of a machine at a time."""
        import fcntl

        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self.folder.with_suffix(".lock").open("a") as file:
            with contextlib.suppress(OSError):
                fcntl.lockf(file, fcntl.LOCK_EX)
            yield


def local_run(path: str) -> str:
    """A run as a local path: what is at a URL is copied first.

    Raises:
        CheckpointError: there is no run at the URL.
    """
    if not is_url(path):
        return path
    if path.endswith(".pt"):
        from vlkd_cli.data.files.remote import local_copy

        return str(local_copy(path, "checkpoint"))
    return str(RemoteRun(path).fetch())


def _filesystem(url: str) -> Any:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)[0]
    except (ImportError, ValueError) as error:
        raise CheckpointError(
            f"{url}: {error}. Install the fsspec package of this protocol."
        ) from None


def _same_file(file: Path, steps: dict[str, Path]) -> str | None:
    """The step that a named checkpoint is a link to, or a copy of."""
    for name, path in steps.items():
        if file.samefile(path):
            return name
    return next((n for n, path in steps.items() if filecmp.cmp(file, path, shallow=False)), None)


def _is_part_of_run(path: Path) -> bool:
    names = (NAMES.rpartition("/")[2], ".lock", ".copied.json")
    return path.name not in names and path.suffix != _PARTIAL
