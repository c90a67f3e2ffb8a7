"""Tasks of mteb: the towers as one of its encoders."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vlkd_cli import catalog
from vlkd_cli.distributed.runtime import world_size
from vlkd_cli.errors import DataError, MissingPackageError, RecipeError, UserError
from vlkd_cli.evaluation.mteb_encoder import mteb_encoder, towers_of
from vlkd_cli.evaluation.results import DataIdentity, Result
from vlkd_cli.evaluation.suite import Measures, Suite
from vlkd_cli.features.subject import Subject

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

FOLDER = "mteb"
"""Below the results: mteb's own files, `results/vlkd__RUN/REVISION/TASK.json`."""


class MTEB(Suite):
    """Run tasks of mteb with the text tower, the image tower, or both, as the task asks.

    Features are of unit length and compared by cosine; of an input with text and image, the
    L2-normalized sum of both is taken (mteb's own CLIP encoders add them as they are). mteb
    downloads its data from the Hugging Face hub. What it computed before, it takes from its files.

    Args:
        tasks: names of tasks, e.g. NFCorpus; or `module:Class` of a task of your own.
    """

    modalities = frozenset()
    libraries = ("mteb", "datasets")

    def __init__(self, *, tasks: list[str]) -> None:
        self.tasks = list(dict.fromkeys(tasks))
        if not tasks:
            raise RecipeError("suite 'mteb': tasks is empty. Name some, e.g. [NFCorpus].")

    def open(self, subject: Subject) -> list[AbsTask]:
        """The tasks."""
        if (extra := catalog.missing_extra("suite", "mteb")) is not None:
            raise MissingPackageError("suite 'mteb'", extra)
        if world_size() > 1:
            raise UserError("suite 'mteb' runs in one process. Leave --gpus and --cpu-workers out.")
        self.uses = frozenset(towers_of(subject))  # type: ignore[arg-type]
        found = [_task(name) for name in self.tasks]
        for task in found:
            missing = sorted(set(task.metadata.modalities) - set(towers_of(subject)))
            if missing:
                raise UserError(
                    f"mteb task '{task.metadata.name}' needs a tower for {' and '.join(missing)},"
                    " and the recipe has none."
                )
        return found

    def measures(self, opened: list[AbsTask]) -> Measures:
        return Measures([task.metadata.name for task in opened], ["main_score"])

    def identity(self, opened: list[AbsTask]) -> DataIdentity | None:
        return _identity(opened[0]) if len(opened) == 1 else None

    def run(self, subject: Subject) -> list[Result]:
        opened = self.open(subject)
        encoder = mteb_encoder(subject)
        with _folder(subject) as folder:
            return [self._measured(subject, task, encoder, folder) for task in opened]

    def _measured(self, subject: Subject, task: AbsTask, encoder: object, folder: Path) -> Result:
        import mteb

        name = task.metadata.name
        try:
            (found,) = mteb.evaluate(
                encoder,
                task,
                co2_tracker=False,
                cache=mteb.ResultCache(folder),
                overwrite_strategy="only-missing",
                encode_kwargs={"batch_size": subject.batch_size},
                show_progress_bar=False,
            ).task_results
        except OSError as error:
            # Data sets that do not exist, a hub that is out of reach, a full disk.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"mteb task '{name}': {reason}. mteb downloads its data from the Hugging Face hub;"
                " run it once where the hub is within reach."
            ) from error
        return self.result(
            subject,
            _identity(task),
            protocol=str(task.metadata.type),
            metrics={"main_score": float(found.get_score())},
            primary_metric="main_score",
            chance={},
            num_items=sum(len(scores) for scores in found.scores.values()),
            settings={
                "task": name,
                "task_revision": found.dataset_revision,
                "main_score": task.metadata.main_score,
                "text_and_image": "sum of unit features, L2-normalized",
            },
            details={"scores": found.scores, "mteb_version": found.mteb_version},
        )


def _identity(task: AbsTask) -> DataIdentity:
    metadata = task.metadata
    what = f"{metadata.name}@{metadata.dataset.get('revision')}"
    rows = hashlib.sha256(what.encode()).hexdigest()[:16]
    return DataIdentity(metadata.name, "+".join(task.eval_splits), {"rows": rows})


def _task(name: str) -> AbsTask:
    import mteb

    if ":" not in name:
        try:
            return mteb.get_task(name)
        except KeyError as error:
            problem = str(error).strip("\"'").removeprefix("KeyError: ")
            raise RecipeError(f"suite 'mteb': task {problem}") from None
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"suite 'mteb': task '{name}': {error}.") from error


@contextlib.contextmanager
def _folder(subject: Subject) -> Iterator[Path]:
    """The folder of mteb's files; a temporary one if results are not written."""
    if subject.output is not None:
        yield subject.output / FOLDER
        return
    with tempfile.TemporaryDirectory(prefix="vlkd-mteb-") as folder:
        yield Path(folder)
