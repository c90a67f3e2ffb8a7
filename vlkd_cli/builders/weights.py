"""Where weights lie on disk, how they are read, and what is said when they are missing or do not
fit."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlkd_cli.builders.cache import cache_folder
from vlkd_cli.errors import WeightsError

__all__ = [
    "cache_folder",
    "fit_weights",
    "is_local",
    "locate",
    "read_weights",
    "unfetchable",
    "weights_file",
    "write_weights",
]

WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
    "model.pth",
    "model.pt",
)
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".th", ".npz")
WRAPPERS = ("state_dict", "model_state_dict", "model")


def is_local(source: str) -> bool:
    """Whether a `pretrained:` or `model:` value is a file or folder here rather than a tag or hub
    id."""
    return (
        Path(source).expanduser().exists()
        or source.startswith((".", "/", "~"))
        or Path(source).suffix in SUFFIXES
    )


def locate(source: str, what: str) -> Path:
    """The file or folder that a recipe names by path, or the model folder inside an installed
    package (`package:NAME`).

    Raises:
        WeightsError: it is not there.
    """
    if source.startswith("package:"):
        return _folder_in_package(source.removeprefix("package:"), what)
    path = Path(source).expanduser()
    if not path.exists():
        raise WeightsError(
            f"{what}: no file or folder '{source}'. Put the weights there or correct the path."
        )
    return path


def _folder_in_package(package: str, what: str) -> Path:
    # find_spec of a top-level package runs none of its code.
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise WeightsError(
            f"{what}: no installed package '{package}'. Install the package that carries the model."
        )
    root = Path(next(iter(found.submodule_search_locations)))
    for marker in ("modules.json", "config.json"):
        folders = sorted(
            (path.parent for path in root.rglob(marker)),
            key=lambda folder: (len(folder.parts), str(folder)),
        )
        if folders:
            return folders[0]
    raise WeightsError(
        f"{what}: package '{package}' carries no model (no modules.json or config.json in it)."
    )


def weights_file(path: Path, what: str) -> Path:
    """The weights file that a path means: itself, or the one inside a folder.

    Raises:
        WeightsError: the folder holds none.
    """
    if path.is_file():
        return path
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    others = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if len(others) == 1:
        return others[0]
    if others:
        raise WeightsError(
            f"{what}: '{path}' holds several weights ({', '.join(file.name for file in others)})."
            " Name one of the files."
        )
    raise WeightsError(
        f"{what}: '{path}' holds no weights. Put {WEIGHT_FILES[3]} or {WEIGHT_FILES[4]} into it."
    )


def read_weights(path: Path, what: str) -> dict[str, Tensor]:
    """Tensors by name of a .safetensors, torch or TorchScript file, freed of wrappers
    (`state_dict`, `module.`).

    Raises:
        WeightsError: the file cannot be read or holds no tensors.
    """
    try:
        state = _read(path)
    # Damaged bytes make the unpickler fail in any way there is.
    except Exception as error:
        raise WeightsError(
            f"{what}: '{path}' cannot be read as weights ({_first_line(error)}). Replace the file."
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    tensors = (
        {name: value for name, value in state.items() if isinstance(value, Tensor)}
        if isinstance(state, Mapping)
        else {}
    )
    if not tensors:
        raise WeightsError(
            f"{what}: '{path}' holds no tensors. Give a file of weights (a state dict)."
        )
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
    try:
        return load_pickled(path)
    except RuntimeError as error:
        if "TorchScript" not in str(error):
            raise
        # OpenAI publishes its CLIP weights as TorchScript archives.
        return torch.jit.load(str(path), map_location="cpu").state_dict()


def load_pickled(path: Path) -> Any:
    """What torch.save wrote, on the CPU; only tensors and plain values are unpickled.

    Raises:
        Exception: of any kind, where the file is damaged. ValueError where a checksum differs,
            which torch.load does not look at.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if altered := archive.testzip():
                raise ValueError(f"the checksum of {altered} differs")
    return torch.load(path, map_location="cpu", weights_only=True)


def write_weights(state: Mapping[str, Tensor], file: Path) -> None:
    """Write a safetensors file as the libraries do, in which no two tensors share memory."""
    from safetensors.torch import save_file

    own = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()
    }
    save_file(own, file, metadata={"format": "pt"})


def fit_weights(
    module: nn.Module,
    state: Mapping[str, Tensor],
    what: str,
    *,
    source: str,
    ignore: Callable[[str], bool] = lambda name: False,
) -> None:
    """Load weights into a module, every parameter and persistent buffer of it.

    Args:
        what: the model in the user's words.
        source: file or tag that the weights come from.
        ignore: names in `state` that may be left over.

    Raises:
        WeightsError: names or shapes differ; the line says the first that does.
    """
    wanted = module.state_dict()
    given = {name: value for name, value in state.items() if name in wanted or not ignore(name)}
    for name, tensor in wanted.items():
        if name not in given:
            # Old files do not count batches; the number is only used by norms without a fixed
            # momentum.
            if name.endswith("num_batches_tracked"):
                given[name] = tensor
                continue
            raise WeightsError(
                f"{what}: weights of '{source}' do not fit: '{name}' {_shape(tensor)} is not in"
                f" them. {_REMEDY}"
            )
        if given[name].shape != tensor.shape:
            raise WeightsError(
                f"{what}: weights of '{source}' do not fit: '{name}' is {_shape(given[name])} in"
                f" them and {_shape(tensor)} in the model. " + _REMEDY
            )
    for name, tensor in given.items():
        if name not in wanted:
            raise WeightsError(
                f"{what}: weights of '{source}' do not fit: the model has no '{name}'"
                f" {_shape(tensor)}. {_REMEDY}"
            )
    module.load_state_dict(given)


_REMEDY = "Choose the model that they were made for."


def unfetchable(
    what: str, *, files: str, folder: Path, error: BaseException | None = None
) -> WeightsError:
    """The one line for weights that are neither on disk nor to be had."""
    reason = f" ({_first_line(error)})" if error is not None else ""
    return WeightsError(
        f"{what}: weights are not on disk and cannot be fetched{reason}. Put {files} into {folder}."
    )


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    line = lines[0] if lines else type(error).__name__
    return line if len(line) <= 160 else line[:157] + "..."
