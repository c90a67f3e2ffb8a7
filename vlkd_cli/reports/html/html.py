"""`reports: [html]`."""

from __future__ import annotations

from collections.abc import Mapping

from vlkd_cli.reports.sink import Sink


class HTMLSink(Sink):
    """A page for people: `report.html` in the run folder, written when the run ends, failed runs
    included.

    It is made from `metrics.csv` and the results, so this sink takes no values; the process that
    started the run writes the page once it is certain how the run ended.
    """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing: the csv is the record."""
