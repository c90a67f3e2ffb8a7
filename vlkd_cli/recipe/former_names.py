"""Spellings of this project's ancestor and of the libraries, understood and replaced by the
catalogue's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


KEYS: dict[str, dict[str, str]] = {
    # The libraries' words -> ours, for every method that has the key.
    "": {"r": "rank", "lora_alpha": "alpha", "reduction": "reduction_factor"},
    "prefix_tuning": {"prefix_length": "length"},
    "prompt_tuning": {"prompt_length": "length"},
}


def replace_former_names(recipe: Any) -> list[str]:
    """Replace former names and keys in a recipe's plain values, in place, and return a line about
    each. Other shapes are left alone."""
    towers = recipe.get("towers") if isinstance(recipe, Mapping) else None
    notices = []
    for name, tower in towers.items() if isinstance(towers, Mapping) else ():
        if not isinstance(tower, dict):
            continue
        if isinstance(tower.get("adapter"), str) and tower["adapter"] in ADAPTERS:
            tower["adapter"] = {"name": tower["adapter"]}
        if isinstance(tower.get("adapter"), dict):
            notices += [
                f"towers.{name}.adapter: {notice}"
                for notice in _replace_in_adapter(tower["adapter"])
            ]
    return notices


def _replace_in_adapter(adapter: dict[str, Any]) -> Iterator[str]:
    former = adapter.get("name")
    if isinstance(former, str) and former in ADAPTERS:
        now = ADAPTERS[former]
        adapter.update(
            {
                "name": now.name,
                **{key: value for key, value in now.keys.items() if key not in adapter},
            }
        )
        written = ", ".join(
            f"{key}: {value}" for key, value in {"name": now.name, **now.keys}.items()
        )
        yield f"'{former}' is now called {{{written}}}."
    for key, present in {**KEYS[""], **KEYS.get(str(adapter.get("name")), {})}.items():
        if key in adapter and present not in adapter:
            adapter[present] = adapter.pop(key)
            yield f"key '{key}' is now called '{present}'."
