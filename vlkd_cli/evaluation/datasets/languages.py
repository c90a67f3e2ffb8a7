"""Data in many languages, one data set for each."""

from __future__ import annotations

from collections.abc import Sequence

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.data.readers.multilingual import Multilingual
from vlkd_cli.errors import DataError
from vlkd_cli.evaluation.datasets.dataset import Dataset, open_dataset
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.types import DataSource

ALL = "all"


def in_languages(
    subject: Subject, data: DataSource, dataset: Dataset, languages: Sequence[str]
) -> list[Dataset]:
    """The same data in each of the languages, called `NAME/LANGUAGE`.

    Args:
        data: the suite's `data:` key, which `dataset` was opened with.
        languages: as the data spells them, or `all`.

    Raises:
        DataError: the data is in one language only, or lacks one of them.
    """
    reader = dataset.reader
    if not isinstance(reader, Multilingual):
        raise DataError(
            f"data '{dataset.name}': `languages` needs data in several languages, in the layout of"
            " XTD or Crossmodal-3600 (reader multilingual). Leave languages out."
        )
    wanted = reader.languages if list(languages) == [ALL] else list(dict.fromkeys(languages))
    for language in wanted:
        if language not in reader.languages:
            raise DataError(
                f"data '{dataset.name}': has no captions in '{language}'."
                f"{did_you_mean(language, reader.languages)} Languages:"
                f" {', '.join(reader.languages)}."
            )
    keys = {"dataset": data} if isinstance(data, str) else dict(data or {"dataset": dataset.name})
    name = without_language(dataset.name)
    return [
        open_dataset(subject, {**keys, "language": language, "name": f"{name}/{language}"})
        for language in wanted
    ]


def without_language(name: str) -> str:
    """`xtd10` of `xtd10/de`."""
    return name.partition("/")[0]
