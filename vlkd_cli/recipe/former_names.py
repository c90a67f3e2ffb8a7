"""Spellings of this project's ancestor and of the libraries, understood and replaced by the catalogue's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Now(NamedTuple):
    """What a former name is called now, and the keys that go with it."""

    name: str
    keys: Mapping[str, Any] = {}


ADAPTERS: dict[str, Now] = {
    # The ancestor's values of --adapter; its "dummy" was Compacter.
    "bottleneck_adapter": Now("bottleneck"),
    "lang_adapter": Now("language"),
    "dummy": Now("compacter"),
    "lora_adapter": Now("lora"),
    "ia3_adapter": Now("ia3"),
    "mam_adapter": Now("mix_and_match"),
    # Names that the libraries and papers use.
    "mam": Now("mix_and_match"),
    "houlsby": Now("bottleneck", {"form": "houlsby"}),
    "double_seq_bn": Now("bottleneck", {"form": "houlsby"}),
    "pfeiffer": Now("bottleneck", {"form": "pfeiffer"}),
    "seq_bn": Now("bottleneck", {"form": "pfeiffer"}),
    "parallel": Now("bottleneck", {"form": "parallel"}),
    "par_bn": Now("bottleneck", {"form": "parallel"}),
    "scaled_par_bn": Now("bottleneck", {"form": "parallel", "scaling": "learned"}),
    "adapter_plus": Now("bottleneck", {"form": "adapter_plus"}),
    "seq_bn_inv": Now("language"),
    "double_seq_bn_inv": Now("language", {"form": "houlsby"}),
    "compacter++": Now("compacter", {"form": "compacter_plus_plus"}),
    "compacter_plus_plus": Now("compacter", {"form": "compacter_plus_plus"}),
    "prefix_tuning_flat": Now("prefix_tuning", {"flat": True}),
    "loreft": Now("reft", {"form": "loreft"}),
    "noreft": Now("reft", {"form": "noreft"}),
    "direft": Now("reft", {"form": "direft"}),
}


def replace_former_names(recipe: Any) -> list[str]:
    """Replace former names in a recipe's plain values, in place, and return a line about each. Whatever has another shape is left alone."""
    towers = recipe.get("towers") if isinstance(recipe, Mapping) else None
    notices = []
    for tower_name, tower in towers.items() if isinstance(towers, Mapping) else ():
        if not isinstance(tower, dict):
            continue
        if isinstance(tower.get("adapter"), str) and tower["adapter"] in ADAPTERS:
            tower["adapter"] = {"name": tower["adapter"]}
        adapter = tower.get("adapter")
        former = adapter.get("name") if isinstance(adapter, dict) else None
        if not isinstance(former, str) or former not in ADAPTERS:
            continue
        now = ADAPTERS[former]
        adapter.update({"name": now.name, **{key: value for key, value in now.keys.items() if key not in adapter}})
        written = ", ".join(f"{key}: {value}" for key, value in {"name": now.name, **now.keys}.items())
        notices.append(f"towers.{tower_name}.adapter: '{former}' is now called {{{written}}}.")
    return notices
