"""Peak memory of a training step: LoRA in both towers against full fine-tuning.

    python benchmarks/lora_memory.py [--batch 16] [--rank 16]

ViT-B/32 of open_clip with its text tower, random weights, AdamW; each side is one
`vlkd train --dry-run` in a process of its own. Exits with 1 where LoRA takes more memory.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    lora = {"adapter": {"name": "lora", "rank": options.rank}}
    full, adapted = (peak(keys, options.batch) for keys in ({}, lora))
    print(
        f"full fine-tuning {full:.2f} GiB, LoRA of rank {options.rank} {adapted:.2f} GiB:"
        f" {adapted / full:.2f} of it   (batch {options.batch})"
    )
    return 0 if adapted < full else 1


def peak(keys: dict[str, Any], batch: int) -> float:
    """GiB of the process that takes the step."""
    tower = {"builder": "openclip", "model": "ViT-B-32", **keys}
    recipe = {
        "towers": {"image": tower, "text": dict(tower)},
        "distillers": [{"name": "infonce"}],
        "data": {"reader": "shapes", "num_samples": batch, "workers": 0},
        "train": {"batch_size": batch},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "vlkd_cli", "train", str(path), "--dry-run"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
    found = re.search(r"peak memory ([\d.]+) GiB", done.stdout)
    if found is None:
        raise RuntimeError(done.stdout + done.stderr)
    return float(found.group(1))


if __name__ == "__main__":
    sys.exit(main())
