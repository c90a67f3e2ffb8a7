"""What every test can count on: no network, one thread, shapes checked, and markers that skip with
a reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
# With a fixed width, tables and messages are the same on every terminal.
os.environ.setdefault("COLUMNS", "160")

# Shapes in annotations are checked at every call of the test run, so they cannot rot.
install_import_hook(
    ["vlkd_cli.distillers", "vlkd_cli.heads", "vlkd_cli.poolers"], "beartype.beartype"
)

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _shared_is_here() -> bool:
    return (SHARED / "data").is_dir()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data next to the checkout; tests that use it carry the marker
    `shared`."""
    if not _shared_is_here():
        pytest.skip("no ../shared next to the checkout")
    return SHARED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_items = [(item, marker) for item in items if (marker := item.get_closest_marker("gpu"))]
    devices = 0
    if gpu_items:
        import torch

        devices = torch.cuda.device_count()
    for item, marker in gpu_items:
        wanted = int(marker.kwargs.get("count", marker.args[0] if marker.args else 1))
        if devices < wanted:
            item.add_marker(
                pytest.mark.skip(reason=f"needs {wanted} CUDA device(s), found {devices}")
            )
    for item in items:
        if item.get_closest_marker("shared") and not _shared_is_here():
            item.add_marker(pytest.mark.skip(reason="no ../shared next to the checkout"))
