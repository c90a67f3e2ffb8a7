"""Files of weights to tensors by name: safetensors, torch and TorchScript files, read so that
nothing in them can run."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlkd_cli.builders.torchscript import is_torchscript, read_torchscript
from vlkd_cli.errors import WeightsError

AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "params_ema")
"""Where training libraries put averaged weights; they are preferred, as timm prefers them."""
PLAIN = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
ARTIFACTS = re.compile(
    r"(?<![^.])(?:_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
"""Parts of names that torch.compile, Lightning, FSDP and activation checkpointing put in."""
HOLDERS = ("module", "model", "net", "network")
"""What modules that wrap a whole model call it."""
COUNTERS = ("n_averaged",)
TERMINAL_CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
COMPRESSION = 4
"""torch stores tensors as they are; an archive that unpacks to more than this many times its size
is not one of torch's."""


def read_weights(path: Path, what: str) -> dict[str, Tensor]:
    """Tensors by name, without the wrappers of training libraries (`state_dict`, `module.`,
    `_orig_mod.`, ...).

    Args:
        what: the model in the user's words.

    Raises:
        WeightsError: the file cannot be read, holds objects that could run code, or no tensors.
    """
    tensors = strip_wrappers(_tensors_of(path, what))
    if not tensors:
        raise WeightsError(
            f"{what}: '{path}' holds no tensors. Give a file of weights (a state dict)."
        )
    return tensors


def weight_names(path: Path, what: str) -> set[str]:
    """Names of a file's tensors as they are in it, wrappers included.

    Raises:
        WeightsError: as `read_weights`.
    """
    if path.suffix != ".safetensors":
        return set(_tensors_of(path, what))
    check_file(path, what)
    with _readable(path, what):
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            return set(file.keys())


def check_file(path: Path, what: str) -> None:
    """Refuse a file without the real content: empty, a Git LFS pointer, a web page; and a pipe,
    which would be waited for.

    Raises:
        WeightsError: it is one of these, or cannot be opened.
    """
    if path.exists() and not path.is_file():
        raise WeightsError(f"{what}: '{path}' is a folder, pipe, socket or device. Name a file.")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise WeightsError(f"{what}: '{path}' cannot be opened ({error.strerror}).") from error
    if not head:
        raise WeightsError(f"{what}: '{path}' is empty. Download the file again.")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{what}: '{path}' is a Git LFS pointer, not the file itself. Fetch it with `git lfs"
            " pull`, or download it again."
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise WeightsError(f"{what}: '{path}' is a web page. Download the file again.")


def load_pickled(path: Path, *, mapped: bool = False) -> object:
    """What torch.save wrote, on the CPU; only tensors and plain values are unpickled.

    Args:
        mapped: map the tensors into memory instead of reading them.

    Raises:
        Exception: of any kind, where the file is damaged. ValueError where a checksum differs,
            which torch.load does not look at.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > COMPRESSION * path.stat().st_size + (1 << 20):
                raise ValueError("it is compressed, which torch.save does not do")
            if altered := archive.testzip():
                raise ValueError(f"the checksum of {altered} differs")
    elif mapped:
        raise ValueError("it is not an archive that torch.save wrote")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def first_line(error: BaseException) -> str:
    """The first line of a library's message, without terminal codes, at most 200 characters."""
    lines = TERMINAL_CODES.sub("", str(error)).strip().splitlines()
    line = lines[0].strip().rstrip(".:!") if lines else ""
    if len(line) > 200:
        line = line[:200].rpartition(" ")[0] + " ..."
    return line or type(error).__name__


def strip_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as the model itself has them: without what compiling, sharding and wrapping modules
    put in, however nested."""
    plain = {
        ARTIFACTS.sub("", name): tensor
        for name, tensor in tensors.items()
        if name not in COUNTERS or len(tensors) == 1
    }
    while plain:
        heads = {name.partition(".")[0] for name in plain if "." in name}
        if len(heads) != 1 or not heads <= set(HOLDERS) or any("." not in name for name in plain):
            break
        plain = {name.partition(".")[2]: tensor for name, tensor in plain.items()}
    return plain


def _tensors_of(path: Path, what: str) -> dict[str, Tensor]:
    check_file(path, what)
    with _readable(path, what):
        return _unwrapped(_read(path), path, what)


@contextmanager
def _readable(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a reader raises on a file into one line that names it."""
    try:
        yield
    except WeightsError:
        raise
    # Damaged bytes make the readers fail in any way there is.
    except Exception as error:
        if refused := _refused_objects(path, error):
            raise WeightsError(
                f"{what}: '{path}' holds {refused} next to its tensors; only tensors and plain"
                " values are read, because other objects can run code. If you trust the file, save"
                f" its tensors alone, in Python: torch.save(torch.load('{path}',"
                " weights_only=False)['state_dict'], 'weights.pth')."
            ) from error
        raise WeightsError(
            f"{what}: '{path}' cannot be read as weights ({first_line(error)}). Replace the file."
        ) from error


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    # OpenAI publishes its CLIP weights as TorchScript archives.
    return read_torchscript(path) if is_torchscript(path) else load_pickled(path)


def _unwrapped(state: object, path: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint's model: at its top, or below the key that holds them."""
    if not isinstance(state, Mapping):
        return {}
    known = [name for name in (*AVERAGED, *PLAIN) if isinstance(state.get(name), Mapping)]
    for name in known:
        if found := _unwrapped(state[name], path, what):
            return found
    own = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    inner = {
        name: value
        for name, value in state.items()
        if isinstance(value, Mapping) and any(isinstance(item, Tensor) for item in value.values())
    }
    if own or not inner:
        return own
    if len(inner) > 1:
        raise WeightsError(
            f"{what}: '{path}' holds the weights of several models"
            f" ({', '.join(map(repr, inner))}). Save the right one in its own file."
        )
    return _unwrapped(next(iter(inner.values())), path, what)


def _refused_objects(path: Path, error: Exception) -> str:
    """The classes and functions that a file holds and that are not read, as the user knows them."""
    if not isinstance(error, pickle.UnpicklingError):
        return ""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    # Files of torch's former format cannot be listed; the message names the first object.
    except Exception:
        names = []
    names = names or re.findall(r"GLOBAL (\S+)|it holds '([^']+)'", str(error))
    flat = [name if isinstance(name, str) else "".join(name) for name in names]
    return " and ".join(f"'{name}'" for name in list(dict.fromkeys(flat))[:3])
