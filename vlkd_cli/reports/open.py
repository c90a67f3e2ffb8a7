"""The sinks of a recipe, as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.schema import Component
from vlkd_cli.reports.sink import Sink


class Sinks(Sink):
    """Hands every value to each sink of the recipe; the csv is always among them."""

    def __init__(
        self, folder: Path, reports: Sequence[str | Component], *, resume_step: int | None = None
    ) -> None:
        super().__init__(folder, resume_step)
        chosen = {
            component.name: component.keys
            for component in (Component(name=r) if isinstance(r, str) else r for r in reports)
        }
        self._sinks: list[Sink] = [
            make("sink", name, keys, folder, resume_step)
            for name, keys in {"csv": {}, **chosen}.items()
        ]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for sink in self._sinks:
            sink.log(step, values)

    def finish(self) -> None:
        for sink in self._sinks:
            sink.finish()
