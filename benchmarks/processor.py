"""What a benchmark ran on, for the first line that it prints."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def processor() -> str:
    """The processor's name, the instruction sets that torch and oneDNN use, and the precision in
    which vlkd looks for candidates there."""
    from vlkd_cli.numerics.products import fast_dtype

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "no limit")
    flags = set(fields.get("flags", "").split())
    own = [name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in flags]
    return (
        f"processor: {fields.get('model name', 'unknown')} (family {fields.get('cpu family', '?')},"
        f" model {fields.get('model', '?')}; {', '.join(own)}); ONEDNN_MAX_CPU_ISA: {limit};"
        f" torch: {torch.backends.cpu.get_cpu_capability()}; candidates in {fast_dtype()}"
    )
