"""Everything that a recipe can contain, read from the signatures: the pages of `vlkd show` and of
docs/catalogue.md."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

from vlkd_cli import catalog
from vlkd_cli.catalog import did_you_mean
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe import schema
from vlkd_cli.recipe.contract import Form, contract_of
from vlkd_cli.recipe.key_rows import key_rows
from vlkd_cli.recipe.model_options import list_model_options, section_text
from vlkd_cli.recipe.named_models import named_models
from vlkd_cli.recipe.optimizers import optimizer_keys, optimizer_names
from vlkd_cli.recipe.params import Signature, signature_of
from vlkd_cli.recipe.shape import section_keys

SECTIONS: dict[str, type[Any]] = {
    "towers": schema.TowerSpec,
    "distillers": schema.DistillerSpec,
    "data": schema.DataSpec,
    "train": schema.TrainSpec,
    "optimizer": schema.OptimizerSpec,
    "schedule": schema.ScheduleSpec,
    "evals": schema.EvalSpec,
    "synthesis": schema.SynthesisSpec,
}
WITH_FORMULA = ("distiller", "head", "pooler")
_PLURALS = {"suite": "Suites", "section": "Sections"}


class Page(NamedTuple):
    """The reference of one component or section."""

    text: str
    facts: list[tuple[str, str]]
    keys: list[tuple[str, str, str, str]]
    """Rows of (key, type, default, meaning)."""
    formula: str = ""
    """TeX of what a distiller, head, pooler or schedule computes."""


def kinds() -> list[str]:
    """What `vlkd show` can be asked about."""
    return ["section", *catalog.CATALOG, "optimizer", "model"]


def names_of(kind: str) -> list[str]:
    """The names of a kind.

    Raises:
        RecipeError: no such kind.
    """
    if kind not in kinds():
        raise RecipeError(
            f"unknown kind '{kind}'.{did_you_mean(kind, kinds())} Known: {', '.join(kinds())}."
        )
    if kind == "section":
        return list(SECTIONS)
    if kind == "model":
        return list(named_models())
    return list(optimizer_names()) if kind == "optimizer" else catalog.names(kind)


def kind_of(name: str) -> str:
    """The kind of the component of this name.

    Raises:
        RecipeError: no kind has it, or several have.
    """
    found = [kind for kind in kinds() if name.lower() in names_of(kind)]
    if not found:
        known = [*kinds(), *(name for kind in kinds() for name in names_of(kind))]
        raise RecipeError(
            f"'{name}' is neither a kind nor a name.{did_you_mean(name, known)} Kinds:"
            f" {', '.join(kinds())}."
        )
    if len(found) > 1:
        ways = " or ".join(f"`vlkd show {kind} {name}`" for kind in found)
        raise RecipeError(f"'{name}' is the name of several components. Use {ways}.")
    return found[0]


def about(kind: str, name: str) -> Page:
    """The page of one component or section.

    Raises:
        RecipeError: unknown kind or name.
    """
    known = names_of(kind)
    if kind == "model":
        return _about_model(name)
    if kind in ("section", "optimizer"):
        if name.lower() not in known:
            raise RecipeError(
                f"unknown {kind} '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}."
            )
        if kind == "section":
            section = SECTIONS[name]
            formula = getattr(section, "formula", "")
            return Page(inspect.getdoc(section) or "", [], key_rows(section_keys(section)), formula)
        shared = [key for key in section_keys(schema.OptimizerSpec) if key.name != "name"]
        return Page(
            f"The optimizer {name}, with its own keys and those of every optimizer.",
            [],
            key_rows([*optimizer_keys(name), *shared]),
        )
    signature = signature_of(kind, name)
    facts = _facts(kind, name, signature)
    if name in catalog.CATALOG[kind] and (extra := catalog.CATALOG[kind][name].extra):
        facts.append(("installed by", f"pip install 'vlkd[{extra}]'"))
    formula = signature.attributes.get("formula", "") if kind in WITH_FORMULA else ""
    return Page(_without_arguments(signature.docstring), facts, key_rows(signature.keys), formula)


def _about_model(name: str) -> Page:
    model = list_model_options(name)
    facts = [("tasks", ", ".join(model["tasks"]))] if model["tasks"] else []
    facts += [(f"{word} tower", section_text(own)) for word, own in model["towers"].items()]
    if model["scorer"]:
        facts.append(("scorer", section_text(model["scorer"])))
    if model["missing"]:
        facts.append(("not usable yet", f"needs {model['missing']}"))
    several = len(model["towers"]) > 1
    rows = []
    for each in model["options"]:
        only = f" ({each['towers'][0]} tower)" if several and len(each["towers"]) == 1 else ""
        rows.append((f"{each['key']}{only}", each["type"], each["default"], each["meaning"]))
    return Page(model["about"] or f"The model {name}.", facts, rows)


def distiller_rows() -> list[tuple[str, str, str, str, str, str]]:
    """(name, paper, direction, what it wants, state, what crosses ranks) of each distiller."""
    rows = []
    for name in catalog.names("distiller"):
        signature = signature_of("distiller", name)
        facts = dict(_facts("distiller", name, signature))
        rows.append(
            (
                name,
                facts["paper"],
                facts["direction"],
                facts["wants"],
                facts["state"],
                facts["crosses ranks"],
            )
        )
    return rows


def catalogue_page() -> str:
    """docs/catalogue.md: every section of a recipe and every component, with keys, types, defaults
    and meanings."""
    parts = [
        "# Recipe reference",
        "",
        (
            "Written by `vlkd recipes reference` from the schema and the components' signatures; do"
            " not edit it by hand."
        ),
        "`vlkd show KIND NAME` prints the same for one component.",
        "",
    ]
    for kind in kinds():
        if kind in ("optimizer", "model"):
            continue
        parts += [f"## {_PLURALS.get(kind, kind.capitalize() + 's')}", ""]
        for name in names_of(kind):
            page = about(kind, name)
            parts += [f"### {kind} `{name}`" if kind != "section" else f"### `{name}:`", ""]
            parts += [page.text, ""]
            parts += ["```math", page.formula, "```", ""] if page.formula else []
            parts += [f"- {fact}: {value}" for fact, value in page.facts]
            parts += [""] if page.facts else []
            parts += markdown_table(page.keys)
    parts += [
        "## Optimizers",
        "",
        (
            f"`optimizer.name` is one of: {', '.join(optimizer_names())}. `vlkd show optimizer"
            " NAME` lists the keys."
        ),
        "",
    ]
    return "\n".join(parts).rstrip("\n") + "\n"


def _facts(kind: str, name: str, signature: Signature) -> list[tuple[str, str]]:
    attributes = signature.attributes
    if kind == "distiller":
        contract = contract_of(name)
        return [
            ("paper", attributes.get("paper", "")),
            ("direction", attributes.get("direction", "")),
            ("student", _forms(contract.student)),
            ("teacher", _forms(contract.forms("teacher")) or "none"),
            ("wants", ", ".join(contract.wants) or "nothing else"),
            ("state", ", ".join(signature.state) or "none"),
            ("crosses ranks", attributes.get("crosses_ranks", "nothing")),
            ("smallest batch", f"{attributes.get('minimum_batch', 1)} over all ranks"),
        ]
    if kind in ("builder", "suite") and attributes.get("modalities"):
        return [("modalities", ", ".join(sorted(attributes["modalities"])))]
    return []


def _forms(forms: Sequence[Form]) -> str:
    """The shapes of a side's alternatives."""
    return " or ".join(form.shape for form in forms)


def _without_arguments(docstring: str) -> str:
    """The docstring without its list of arguments, which the table of keys repeats."""
    lines, skipping = [], False
    for line in docstring.splitlines():
        if line.strip() == "Args:":
            skipping = True
            continue
        if skipping and line.strip() and not line.startswith(" "):
            skipping = False
        if not skipping:
            lines.append(line)
    text = "\n".join(lines)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.strip()


def markdown_table(rows: Sequence[tuple[str, str, str, str]]) -> list[str]:
    """Rows of (key, type, default, meaning) as a table."""
    if not rows:
        return ["Takes no keys.", ""]
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, kind, default, meaning in rows:
        cells = [f"`{name}`", kind, f"`{default}`", meaning]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]
