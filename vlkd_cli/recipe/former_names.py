"""Former keys of this project, and spellings of its ancestor and of the libraries: understood and
replaced by the catalogue's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple


class Now(NamedTuple):
    """The present name of a former one, and the keys that go with it."""

    name: str
    keys: Mapping[str, object] = {}


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


_FEATURES = {"point": "features"}

KEYS: dict[str, dict[str, dict[str, str]]] = {
    "augment": {
        "byol": {"grey": "grayscale", "solarise": "solarize"},
        "patch_grid": {"grey": "grayscale"},
        "simclr": {"grey": "grayscale"},
        "standard": {"grey": "grayscale", "solarise": "solarize"},
    },
    "distiller": {
        "affinity": {"alpha": "affinity_weight"},
        "barlow_twins": {"lambd": "off_diagonal_weight"},
        "compress": {"queues": "num_queues"},
        "deepcluster": {"kmeans_iterations": "num_iterations"},
        "dino": {
            "prototypes": "num_prototypes",
            "student_temp": "student_temperature",
            "teacher_temp": "teacher_temperature",
        },
        "gradient_match": {"gd_temperature": "gradient_temperature"},
        "ibot": {"student_temp": "student_temperature", "teacher_temp": "teacher_temperature"},
        "npid": {"negatives": "num_negatives"},
        "odc": {"kmeans_iterations": "num_iterations"},
        "protoclip": {
            "w_clip": "contrastive_weight",
            "w_proto": "prototype_weight",
            "w_external": "external_weight",
            "kmeans_iterations": "num_iterations",
            "kmeans_tries": "num_restarts",
        },
        "protocpc": {
            "prototypes": "num_prototypes",
            "student_temp": "student_temperature",
            "teacher_temp": "teacher_temperature",
            "sinkhorn_iterations": "num_iterations",
        },
        "reinforced": {"teacher_dims": "teacher_widths"},
        "simcse": {"temp": "temperature"},
        "swav": {"prototypes": "num_prototypes", "sinkhorn_iterations": "num_iterations"},
        "vicreg": {
            "sim_coeff": "invariance_weight",
            "std_coeff": "variance_weight",
            "cov_coeff": "covariance_weight",
        },
    },
    "head": {
        "patches": {"normalise": "normalize"},
        "prototypes": {"prototypes": "num_prototypes"},
    },
    "suite": {
        "captioned": _FEATURES,
        "clustering": {
            **_FEATURES,
            "clusters": "num_clusters",
            "restarts": "num_restarts",
            "iterations": "num_iterations",
        },
        "feature_analysis": {"items": "limit"},
        "few_shot": {**_FEATURES, "normalise": "normalize"},
        "fine_tune": _FEATURES,
        "knn": _FEATURES,
        "linear_probe": _FEATURES,
        "passage_retrieval": {**_FEATURES, "max_passages": "limit"},
        "senteval": _FEATURES,
        "sts": _FEATURES,
        "wiki_sections": _FEATURES,
        "word_similarity": _FEATURES,
        "zero_shot": {"topk": "k"},
    },
}
"""Former keys of a component -> present ones, by kind and name."""


VALUES: dict[str, dict[str, dict[str, object]]] = {
    "ensemble": {"normalise": {"ensemble": "normalize"}},
    "features": {
        "projected": {"features": "head"},
        "normalised": {"features": "head", "normalize": True},
    },
}
"""Former values of a suite's keys, by present key and value -> the keys to write instead."""


ADAPTER_KEYS: dict[str, dict[str, str]] = {
    # The libraries' words -> ours, for every method that has the key.
    "": {"r": "rank", "lora_alpha": "alpha", "reduction": "reduction_factor"},
    "lora": {"rank_stabilised": "rank_stabilized"},
    "prefix_tuning": {"prefix_length": "length"},
    "prompt_tuning": {"prompt_length": "length"},
}


def replace_former_names(recipe: object) -> list[str]:
    """Replace former names and keys in a recipe's plain values, in place, and return a line about
    each. Other shapes are left alone."""
    notices = []
    for key_path, kind, component in _components(recipe):
        notices += [f"{key_path}: {notice}" for notice in _replace(kind, component)]
    return notices


def replace_in_suite(entry: dict[str, object]) -> list[str]:
    """Replace former keys and values of one entry of `evals`, in place, and return a line about
    each."""
    return list(_replace("suite", entry))


def replace_in_adapter(section: dict[str, object]) -> list[str]:
    """Replace a former name and former keys of an `adapter:` section, in place, and return a line
    about each."""
    return list(_replace("adapter", section))


def former_keys(suite: str) -> Mapping[str, str]:
    """Former keys of a suite -> present ones."""
    return KEYS["suite"].get(suite, {})


def _replace(kind: str, component: dict[str, object]) -> Iterator[str]:
    if kind == "adapter":
        yield from _replace_in_adapter(component)
        return
    name = component.get("suite" if kind == "suite" else "name")
    yield from _rename_keys(component, KEYS.get(kind, {}).get(str(name), {}))
    if kind == "suite":
        yield from _rename_values(component)


def _components(recipe: object) -> Iterator[tuple[str, str, dict[str, object]]]:
    """(path, kind, keys) of the components that may have former names."""
    if not isinstance(recipe, Mapping):
        return
    towers = recipe.get("towers")
    for name, tower in towers.items() if isinstance(towers, Mapping) else ():
        if not isinstance(tower, dict):
            continue
        if isinstance(tower.get("adapter"), str) and tower["adapter"] in ADAPTERS:
            tower["adapter"] = {"name": tower["adapter"]}
        parts = [("adapter", "adapter", tower.get("adapter")), ("head", "head", tower.get("head"))]
        heads = tower.get("heads")
        if isinstance(heads, Mapping):
            parts += [(f"heads.{key}", "head", head) for key, head in heads.items()]
        for key_path, kind, part in parts:
            if isinstance(part, dict):
                yield f"towers.{name}.{key_path}", kind, part
    for section, kind in (("distillers", "distiller"), ("evals", "suite")):
        entries = recipe.get(section)
        for number, entry in enumerate(entries if isinstance(entries, list) else ()):
            if isinstance(entry, dict):
                yield f"{section}[{number}]", kind, entry
    data = recipe.get("data")
    if isinstance(data, Mapping):
        views = data.get("views")
        augments = {"augment": data.get("augment")}
        if isinstance(views, Mapping):
            augments |= {f"views.{name}": view for name, view in views.items()}
        for key_path, augment in augments.items():
            if isinstance(augment, dict):
                yield f"data.{key_path}", "augment", augment


def _replace_in_adapter(adapter: dict[str, object]) -> Iterator[str]:
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
    keys = {**ADAPTER_KEYS[""], **ADAPTER_KEYS.get(str(adapter.get("name")), {})}
    yield from _rename_keys(adapter, keys)


def _rename_keys(component: dict[str, object], keys: Mapping[str, str]) -> Iterator[str]:
    for former, present in keys.items():
        # Today a key of every distiller, null in the recipes that checkpoints hold.
        if former == "negatives" and component.get(former) is None:
            continue
        if former in component and present not in component:
            component[present] = component.pop(former)
            yield f"key '{former}' is now called '{present}'."


def _rename_values(suite: dict[str, object]) -> Iterator[str]:
    for key, values in VALUES.items():
        former = suite.get(key)
        if isinstance(former, str) and former in values:
            suite.update({**values[former], **{k: v for k, v in suite.items() if k != key}})
            written = ", ".join(f"{k}: {str(v).lower()}" for k, v in values[former].items())
            yield f"'{key}: {former}' is now written '{written}'."
