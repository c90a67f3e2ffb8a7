"""Record the golden traces again: `python -m tests.golden.record_traces [FAMILY ...]`.

Commit the result only together with the change that moves the numbers, and say there why.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

from tests.golden.trace_recipes import FAMILIES, trace_recipe
from tests.support.traces import Trace, read_trace, train, train_on_ranks

TRACES = Path(__file__).parent / "traces.json"
WORLD_SIZES = (1, 2)


def load_traces() -> dict[str, dict[str, Trace]]:
    """Family -> number of processes, as a string -> its trace."""
    traces: dict[str, dict[str, Trace]] = json.loads(TRACES.read_text(encoding="utf-8"))
    return traces


def record(families: list[str]) -> None:
    """Train the families on one and on two processes and write what they leave."""
    traces = load_traces() if TRACES.is_file() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipes = {family: trace_recipe(family, folder / family) for family in families}
        train_on_ranks(recipes, folder, 2)
        for family, recipe in recipes.items():
            alone = train(recipe, folder / f"{family}_alone")
            traces[family] = {"1": read_trace(alone), "2": read_trace(folder / family / "run")}
    TRACES.write_text(_to_json({family: traces[family] for family in FAMILIES if family in traces}))


def _to_json(traces: dict[str, dict[str, Trace]]) -> str:
    """One line per metric and per tensor, so that a difference can be read."""
    text = json.dumps(traces, indent=1)
    innermost = re.compile(r"\[\s+([^][{}]*?)\s+\]")
    return innermost.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text) + "\n"


if __name__ == "__main__":
    record(sys.argv[1:] or list(FAMILIES))
