"""Random numbers that depend on where the run is, not on how it got there.

Every optimizer step seeds torch from (seed, step, rank). A resumed run therefore samples the same
random numbers as an uninterrupted one, and checkpoints need not store the state of any generator.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from any numbers and words; different parts give independent seeds."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_everything(*parts: int | str) -> None:
    """Seed torch (all devices that are up), NumPy and random from the parts."""
    seed = derived_seed(*parts)
    torch.default_generator.manual_seed(seed)
    # torch.manual_seed would note down the call stack for each device that is not up, which takes
    # longer than a small step.
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
