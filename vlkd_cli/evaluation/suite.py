"""What every evaluation suite is."""

from __future__ import annotations

from typing import ClassVar

from vlkd_cli.evaluation.results import Result
from vlkd_cli.features.subject import Subject


class Suite:
    """Base of the suites: keyword-only constructor arguments are the recipe keys of an `evals:`
    entry.

    A perfect encoder scores 1 and a random one scores chance; a contract test brackets every suite
    so.
    """

    modalities: ClassVar[frozenset[str]]
    """The towers that it needs: "image", "text" or both."""

    def run(self, subject: Subject) -> list[Result]:
        """Evaluate; the same list on every rank.

        Raises:
            DataError: files are missing or damaged; the message names them and what to do.
        """
        raise NotImplementedError
