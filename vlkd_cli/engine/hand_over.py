"""What `vlkd export --card` gathers for a model card, and `--push` to the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from vlkd_cli import console
from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.errors import UserError
from vlkd_cli.recipe.modality import is_named
from vlkd_cli.recipe.params import attributes_of
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.recipe.snapshot import recipe_to_json, recipe_to_yaml, versions
from vlkd_cli.reports.card import REPOSITORY, CardFacts, card_text, check_card, is_path
from vlkd_cli.reports.records import read_run
from vlkd_cli.reports.result_file import ResultJson
from vlkd_cli.towers.export import ExportedTower
from vlkd_cli.towers.tower import Tower

CARD = "README.md"
WEIGHTS = (".safetensors", ".onnx", ".bin", ".txt")
LOGIN = "Set HF_TOKEN, or log in with `hf auth login`"


class HandOver(NamedTuple):
    """The options of `vlkd export` about the card and the hub."""

    card: bool = False
    license: str | None = None
    languages: Sequence[str] = ()
    datasets: Sequence[str] = ()
    push: str | None = None
    private: bool = False

    def check(self) -> None:
        """Refuse options without effect, and values that the hub would refuse.

        Raises:
            UserError: see above.
        """
        given = {
            "--license": self.license,
            "--language": self.languages,
            "--dataset": self.datasets,
        }
        if not self.wants_card:
            for option, value in given.items():
                if value:
                    raise UserError(f"{option} has no effect without --card or --push. Add one.")
        else:
            check_card(self.license, self.languages, self.datasets)
        if self.private and self.push is None:
            raise UserError("--private has no effect without --push. Leave it out.")
        if self.push is not None and not REPOSITORY.fullmatch(self.push):
            raise UserError(f"--push {self.push}: a model's name on the hub is ORG/NAME.")

    @property
    def wants_card(self) -> bool:
        return self.card or self.push is not None


def write_card(
    wanted: HandOver,
    recipe: Recipe,
    checkpoint: Checkpoint,
    run: Path,
    towers: Mapping[str, Tower],
    written: Sequence[ExportedTower],
    folder: Path,
    destination: Path,
    format: str,
) -> None:
    """Write `README.md` into the folder of an export.

    Args:
        run: the folder of the run, whose result files of this step are reported.
        towers: those that were written.
        destination: where the folder will be when it is done.
    """
    assert wanted.license is not None
    step = checkpoint.step
    facts = CardFacts(
        name=(wanted.push or checkpoint.source.run).rpartition("/")[2],
        modalities=tuple(dict.fromkeys(tower.modality for tower in towers.values())),
        license=wanted.license,
        languages=wanted.languages,
        datasets=wanted.datasets,
        base_models=list(_base_models(recipe, towers)),
        results=list(_results(run, step)),
        step=step,
        recipe=yaml.safe_load(recipe_to_yaml(recipe)),
        digest=hashlib.sha256(recipe_to_json(recipe).encode()).hexdigest(),
        weights=dict(_digests(written, folder)),
        samples=_num_samples(recipe),
        objectives=[
            (spec.name, str(attributes_of("distiller", spec.name).get("paper", "")))
            for spec in recipe.distillers
        ],
        usage=_usage(wanted, written, towers, destination, format),
        versions=_versions(),
        format=format,
    )
    text = card_text(facts)
    token = _token()
    # A recipe may hold it, e.g. in a key of a reader.
    text = text.replace(token, "(token)") if token else text
    (folder / CARD).write_text(console.without_secrets(text), encoding="utf-8")


def push(wanted: HandOver, output: Path, written: Sequence[ExportedTower]) -> str:
    """Send an export to the hub; returns the page's address.

    Raises:
        UserError: there is no token, it may not write there, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import logging as hub_logging

    assert wanted.push is not None
    logging: Any = hub_logging
    token = _token()
    if token is None:
        raise UserError(f"--push {wanted.push}: no token of the hub. {LOGIN}, then repeat.")
    console.hide(token, "(token)")
    api = HfApi(token=token)
    verbosity = logging.get_verbosity()
    # It reports each attempt; what remains is one line.
    logging.set_verbosity_error()
    try:
        api.create_repo(wanted.push, private=wanted.private, exist_ok=True)
        api.upload_folder(
            folder_path=str(output),
            repo_id=wanted.push,
            allow_patterns=[CARD, *(f"{tower.name}/*" for tower in written)],
            commit_message="Upload with vlkd",
        )
    # Which exceptions there are depends on the library's version and the network.
    except Exception as error:
        raise UserError(_reason(wanted.push, output, error, token)) from None
    finally:
        logging.set_verbosity(verbosity)
    return f"{api.endpoint}/{wanted.push}"


def _reason(repository: str, output: Path, error: Exception, token: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    again = f"{output} is complete; repeat with --force to send it again."
    if status == 401:
        return f"--push {repository}: the hub does not accept the token. {LOGIN}. {again}"
    if status == 403:
        owner = repository.partition("/")[0]
        return (
            f"--push {repository}: the token may not write to '{owner}'. Use a token with the right"
            f" to write, or another name. {again}"
        )
    lines = [line.strip() for line in str(error).replace(token, "(token)").splitlines()]
    first = next((line for line in lines if line), type(error).__name__)
    return (
        f"--push {repository}: the hub was not reached, or ended the upload:"
        f" {first[:200].rstrip('.')}. {again}"
    )


def _token() -> str | None:
    """Of the environment, or of the hub's own login."""
    from huggingface_hub import get_token

    token: str | None = get_token()
    return token


def _results(run: Path, step: int) -> Iterator[ResultJson]:
    """Contents of the run's result files of this step, each measurement once."""
    seen = set()
    for result in read_run(run).results:
        content = result.content
        known = {"name", "suite", "dataset", "split", "metrics", "primary_metric", "num_items"}
        if (content.get("model") or {}).get("step") != step or not known <= set(content):
            continue
        if content.get("key") not in seen:
            seen.add(content.get("key"))
            yield content


def _digests(written: Sequence[ExportedTower], folder: Path) -> Iterator[tuple[str, str]]:
    for tower in written:
        for name in tower.files:
            file = folder / tower.name / name
            if file.suffix in WEIGHTS and file.is_file():
                with file.open("rb") as content:
                    digest = hashlib.file_digest(content, "sha256").hexdigest()
                yield f"{tower.name}/{name}", digest


def _num_samples(recipe: Recipe) -> int | None:
    if recipe.data is None:
        return None
    try:
        reader = open_reader(recipe.data)
    except UserError:
        return None
    return len(reader) if isinstance(reader, Reader) else None


def _base_models(recipe: Recipe, towers: Mapping[str, Tower]) -> Iterator[str]:
    """Hub ids of the weights that the towers started from."""
    seen = set()
    for tower in towers.values():
        section = tower.section
        keys = {} if section is None else section.keys
        builder = "" if section is None else str(section.builder)
        model, pretrained = keys.get("model"), keys.get("pretrained")
        found = _hub_id(builder, model, pretrained)
        if found and found not in seen:
            seen.add(found)
            yield found


def _hub_id(builder: str, model: object, pretrained: object) -> str | None:
    """The hub id of a tower's weights; None where they are local, random, or not known to be
    there."""
    if not isinstance(model, str) or pretrained is False or is_path(model):
        return None
    if builder in ("huggingface", "adapters", "sbert"):
        source = pretrained if isinstance(pretrained, str) else model
        if builder == "sbert" and "/" not in source:
            source = f"sentence-transformers/{source}"
        return source if REPOSITORY.fullmatch(source) and not Path(source).exists() else None
    if builder == "openclip" and model.startswith("hf-hub:"):
        return model.removeprefix("hf-hub:")
    if builder == "openclip" and isinstance(pretrained, str):
        from open_clip.pretrained import get_pretrained_cfg

        known = get_pretrained_cfg(model.replace("/", "-"), pretrained) or {}
        return str(known.get("hf_hub") or "").strip("/") or None
    if builder == "timm" and pretrained:
        import timm

        name = model.removeprefix("hf-hub:")
        return (
            name
            if "/" in name
            else _timm_id(timm.get_pretrained_cfg(name, allow_unregistered=True))
        )
    return None


def _timm_id(known: object) -> str | None:
    found = getattr(known, "hf_hub_id", None)
    return str(found) if found and "/" in str(found) else None


def _usage(
    wanted: HandOver,
    written: Sequence[ExportedTower],
    towers: Mapping[str, Tower],
    destination: Path,
    format: str,
) -> str:
    """Five lines that use what was written; with `--push`, from the hub."""
    first = written[0].name
    folder = f'"{destination.name}"  # the folder of this card'
    lines = [f"folder = {folder}"]
    if wanted.push is not None:
        lines = [
            "from huggingface_hub import snapshot_download",
            f'folder = snapshot_download("{wanted.push}")',
        ]
    texts = [name for name, tower in towers.items() if is_named(tower.modality)]
    if format == "library" and texts:
        use = [
            "import vlkd_cli",
            f'encoder = vlkd_cli.load(folder, "{texts[0]}")',
            'print(encoder.encode(["a photo of a dog"]).shape)',
        ]
    elif format == "library":
        use = [
            "import numpy, vlkd_cli",
            f'encoder = vlkd_cli.load(folder, "{first}")',
            'print(encoder.encode(numpy.zeros((32, 32, 3), "uint8")).shape)',
        ]
    elif format == "onnx":
        use = [
            "import onnxruntime",
            f'session = onnxruntime.InferenceSession(f"{{folder}}/{first}/model.onnx")',
            "print([(each.name, each.shape) for each in session.get_inputs()])",
        ]
    elif format == "open_clip":
        use = [
            "import open_clip",
            f'name = f"local-dir:{{folder}}/{first}"',
            "model, _, preprocess = open_clip.create_model_and_transforms(name)",
            'print(model.encode_text(open_clip.get_tokenizer(name)(["a dog"])).shape)',
        ]
    elif format == "hf_clip":
        use = [
            "from transformers import AutoTokenizer, CLIPModel",
            f'model = CLIPModel.from_pretrained(f"{{folder}}/{first}")',
            f'tokenize = AutoTokenizer.from_pretrained(f"{{folder}}/{first}")',
            'print(model.text_model(**tokenize(["a dog"], return_tensors="pt"))[1].shape)',
        ]
    else:
        use = [
            "from sentence_transformers import SentenceTransformer",
            f'model = SentenceTransformer(f"{{folder}}/{first}")',
            'print(model.encode(["a photo of a dog"]).shape)',
        ]
    return "\n".join([*lines, *use])


def _versions() -> dict[str, str]:
    found = versions()
    return {"vlkd": found["vlkd"], "python": found["python"], **found["packages"]}
