"""The model card of an export: front matter that the Hugging Face hub reads, and what a reader
must know of the model. It contains no path of this machine."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import yaml

from vlkd_cli.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from vlkd_cli.reports.result_file import ResultJson

LICENSE = re.compile(r"[a-z0-9][a-z0-9.\-]*")
LANGUAGE = re.compile(r"[a-z]{2,3}|multilingual|code")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
TASKS = {
    ("image", "text"): "zero-shot-image-classification",
    ("image",): "image-feature-extraction",
    ("text",): "sentence-similarity",
}
"""The hub's task of models with these modalities."""
SUITE_TASKS = {
    "zero_shot": "zero-shot-image-classification",
    "knn": "image-classification",
    "linear_probe": "image-classification",
    "few_shot": "image-classification",
    "fine_tune": "image-classification",
    "elevater": "image-classification",
    "sts": "sentence-similarity",
    "senteval": "text-classification",
    "passage_retrieval": "text-retrieval",
    "word_similarity": "sentence-similarity",
}
OTHER_TASK = "feature-extraction"
LIBRARIES = {
    "library": "vlkd",
    "onnx": "vlkd",
    "open_clip": "open_clip",
    "hf_clip": "transformers",
    "sentence_transformers": "sentence-transformers",
}
"""The hub's `library_name` of each format."""


class CardFacts(NamedTuple):
    """What a card is written from.

    Args:
        name: of the model.
        modalities: of the towers that are written.
        license: its identifier on the hub, e.g. apache-2.0.
        languages, datasets: as given.
        base_models: hub ids of the pretrained weights.
        results: contents of result files, all of the checkpoint that is exported.
        step: of the checkpoint.
        recipe: the recipe as plain values, `${VARIABLES}` as written.
        digest: of the recipe.
        weights: sha256 of each file of weights.
        samples: how many the training data has; None where it is not here.
        objectives: name and paper of each distiller.
        usage: lines of Python.
        versions: of vlkd and its libraries.
        format: of the export.
    """

    name: str
    modalities: tuple[str, ...]
    license: str
    languages: Sequence[str]
    datasets: Sequence[str]
    base_models: Sequence[str]
    results: Sequence[ResultJson]
    step: int
    recipe: Mapping[str, object]
    digest: str
    weights: Mapping[str, str]
    samples: int | None
    objectives: Sequence[tuple[str, str]]
    usage: str
    versions: Mapping[str, str]
    format: str


def check_card(license: str | None, languages: Sequence[str], datasets: Sequence[str]) -> None:
    """Refuse what the hub would not accept in a card's front matter.

    Raises:
        UserError: no license, or an identifier of another form.
    """
    if license is None:
        raise UserError(
            "a card (--card, --push) needs a license. Add --license ID with an identifier of the"
            " hub, e.g. apache-2.0, mit, cc-by-4.0 or other."
        )
    if not LICENSE.fullmatch(license):
        raise UserError(
            f"--license {license}: not an identifier of the hub, which are lower-case letters,"
            " digits, dots and dashes, e.g. apache-2.0."
        )
    for language in languages:
        if not LANGUAGE.fullmatch(language):
            raise UserError(
                f"--language {language}: not a code of ISO 639, e.g. en or deu; or multilingual."
            )
    for dataset in datasets:
        if not re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?", dataset):
            raise UserError(f"--dataset {dataset}: not an id of the hub, e.g. org/name.")


def card_text(facts: CardFacts) -> str:
    """The card: front matter between two lines of dashes, then Markdown."""
    from huggingface_hub import ModelCardData

    tasks = tuple(each for each in ("image", "text") if each in facts.modalities)
    data = ModelCardData(
        license=facts.license,
        library_name=LIBRARIES[facts.format],
        pipeline_tag=TASKS.get(tasks, OTHER_TASK),
        tags=["vlkd", *(["onnx"] if facts.format == "onnx" else []), *_objective_tags(facts)],
        language=list(facts.languages) or None,
        datasets=list(facts.datasets) or None,
        base_model=list(facts.base_models) or None,
        model_name=facts.name,
        eval_results=list(_eval_results(facts)) or None,
    )
    parts = [
        f"# {facts.name}",
        _opening(facts),
        "## Use",
        f"```python\n{facts.usage.strip()}\n```",
        "## Results",
        *_results(facts),
        "## Data",
        _data(facts),
        "## Objectives",
        *[f"- `{name}`: {_linked(paper)}" for name, paper in facts.objectives],
        "## Limits",
        *_limits(facts),
        "## Recipe",
        f"Paths on the author's machine are shortened to their last name. Digest `{facts.digest}`.",
        f"```yaml\n{_recipe_text(facts.recipe)}```",
        "## Weights and versions",
        *[f"- `{file}`: sha256 `{digest}`" for file, digest in facts.weights.items()],
        "- " + ", ".join(f"{name} {version}" for name, version in facts.versions.items()),
    ]
    lines = [part if part.startswith("- ") else f"\n{part}\n" for part in parts]
    body = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    return f"---\n{data.to_yaml()}\n---\n\n{body}\n"


def nameless(value: object, key: str = "") -> object:
    """A recipe's values with each path on this machine replaced by its last name."""
    if isinstance(value, Mapping):
        return {name: nameless(own, str(name)) for name, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [nameless(own, key) for own in value]
    if isinstance(value, str) and is_path(value):
        return Path(value.rstrip("/")).name or "."
    return value


def is_path(text: str) -> bool:
    """Whether a text names a file or folder of this machine."""
    path = Path(text)
    if "://" in text or "\n" in text:
        return False
    return path.is_absolute() or text.startswith(("~", "./", "../")) or (
        "/" in text and not text.startswith("${") and path.exists()
    )  # fmt: skip


def _opening(facts: CardFacts) -> str:
    what = " and ".join(facts.modalities)
    start = f", starting from {', '.join(facts.base_models)}" if facts.base_models else ""
    return (
        f"Encoder{'s' if len(facts.modalities) > 1 else ''} of {what}, trained with vlkd for"
        f" {facts.step:,} steps{start}."
    )


def _objective_tags(facts: CardFacts) -> list[str]:
    return list(dict.fromkeys(name for name, _ in facts.objectives if ":" not in name))


def _eval_results(facts: CardFacts) -> Iterator[EvalResult]:
    from huggingface_hub import EvalResult

    for result in facts.results:
        for metric, value in result["metrics"].items():
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                continue
            yield EvalResult(
                task_type=SUITE_TASKS.get(str(result["suite"]), OTHER_TASK),
                task_name=str(result["name"]),
                dataset_type=str(result["dataset"]),
                dataset_name=f"{result['dataset']} {result['split']}".strip(),
                dataset_split=str(result["split"]) or None,
                dataset_revision=_rows(result) or None,
                metric_type=metric,
                metric_name=f"{result['name']} {metric}",
                metric_value=round(float(value), 6),
            )


def _results(facts: CardFacts) -> list[str]:
    if not facts.results:
        return [f"Nothing was evaluated at step {facts.step:,}."]
    rows = [
        "| suite | data | metric | value | chance | items | rows |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    for result in facts.results:
        for metric, value in result["metrics"].items():
            chance = result.get("chance", {}).get(metric)
            cells = [
                result["name"],
                f"{result['dataset']} {result['split']}".strip(),
                f"**{metric}**" if metric == result["primary_metric"] else metric,
                _number(value),
                _number(chance),
                f"{result['num_items']:,}",
                f"`{_rows(result)[:12]}`" if _rows(result) else "",
            ]
            rows.append(f"| {' | '.join(cells)} |")
    digests = {
        f"`{tower['name']}` {tower['weights'][:12]}"
        for result in facts.results
        for tower in result.get("towers", {}).values()
    }
    note = (
        f"At step {facts.step:,}. `chance` is what random vectors reach; `rows` is a digest of the"
        f" evaluated rows. Digests of the towers: {', '.join(sorted(digests))}."
    )
    return [note, "\n".join(rows)]


def _data(facts: CardFacts) -> str:
    data = nameless(facts.recipe.get("data") or {})
    parts = (data.get("readers") or [data]) if isinstance(data, dict) else []
    named = [
        f"`{part.get('path') or part.get('urls') or part.get('reader')}`"
        f" (reader `{part.get('reader')}`{_split(part)})"
        for part in parts
        if part.get("reader")
    ]
    counted = "" if facts.samples is None else f", {facts.samples:,} samples"
    hub = f" On the hub: {', '.join(facts.datasets)}." if facts.datasets else ""
    return f"Trained on {', '.join(named) or 'nothing'}{counted}.{hub}"


def _split(part: Mapping[str, object]) -> str:
    return f", split `{part['split']}`" if part.get("split") else ""


def _limits(facts: CardFacts) -> list[str]:
    measured = sorted({f"{result['dataset']}" for result in facts.results})
    where = f"only on {', '.join(measured)}" if measured else "on nothing"
    return [
        f"- It was evaluated {where}; other data was not measured.",
        "- Biases of its data and of the pretrained weights were not examined.",
        "- Vectors are not L2-normalized unless their program does so; compare them by cosine.",
    ]


def _recipe_text(recipe: Mapping[str, object]) -> str:
    text: str = yaml.safe_dump(nameless(recipe), sort_keys=False, allow_unicode=True, width=100)
    return text


def _linked(paper: str) -> str:
    """A paper with its arXiv number as a link."""
    number = r"arXiv:(\d{4}\.\d{4,5})"
    linked = re.sub(number, r"[arXiv:\1](https://arxiv.org/abs/\1)", paper)
    return linked or "of this repository"


def _rows(result: ResultJson) -> str:
    return str((result.get("hashes") or {}).get("rows", ""))


def _number(value: object) -> str:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return ""
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"
