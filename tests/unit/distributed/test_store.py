from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from vlkd_cli.distributed import runtime
from vlkd_cli.distributed.store import Exchange


def test_an_exchange_gives_every_rank_the_texts_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    ranks = threading.local()
    monkeypatch.setattr(runtime, "rank", lambda: ranks.value)
    monkeypatch.setattr(runtime, "world_size", lambda: 3)

    def member(rank: int) -> list[list[str | None]]:
        ranks.value = rank
        exchange = Exchange("saving", timeout_seconds=30)
        return [exchange.gather(None if turn == rank else f"{turn} {rank}") for turn in range(3)]

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(member, range(3)))
    assert found[0] == found[1] == found[2]
    assert found[0] == [
        [None, "0 1", "0 2"],
        ["1 0", None, "1 2"],
        ["2 0", "2 1", None],
    ]
