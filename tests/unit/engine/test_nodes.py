"""Two nodes in network namespaces: one is late, cut off, frozen, killed, different or asked to
stop."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.recipes import final_state, tiny_recipe, write_recipe

ROOT = Path(__file__).resolve().parents[3]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Nodes:
    """Two nodes that see each other through a virtual cable, and the commands on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = [f"vlkd{os.getpid() % 10000}{side}" for side in "ab"]
        self.commands: dict[int, subprocess.Popen[str]] = {}

    def connect(self) -> None:
        first, second = self.names
        for name in self.names:
            _ip("netns", "add", name)
        _ip("link", "add", first, "type", "veth", "peer", "name", second)
        for name, address in zip(self.names, ADDRESSES, strict=True):
            _ip("link", "set", name, "netns", name)
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            for device in (name, "lo"):
                _ip("-n", name, "link", "set", device, "up")

    def start(self, node: int, recipe: str, *words: str) -> subprocess.Popen[str]:
        """`vlkd train` on a node, in a process group of its own."""
        meeting = ["--nodes", "2", "--node-rank", str(node), "--rendezvous"]
        command = ["vlkd_cli", "train", recipe, "--cpu-workers", "1", *meeting]
        return self._run(node, *command, f"{ADDRESSES[0]}:29617", *words)

    def start_torchrun(self, node: int, recipe: str) -> subprocess.Popen[str]:
        """The same under torchrun, which starts the worker."""
        meeting = ["--nnodes=2", f"--node-rank={node}", f"--master-addr={ADDRESSES[0]}"]
        command = ["torch.distributed.run", *meeting, "--master-port=29618", "--nproc-per-node=1"]
        return self._run(node, *command, "-m", "--", "vlkd_cli", "train", recipe)

    def _run(self, node: int, *words: str) -> subprocess.Popen[str]:
        command = ["ip", "netns", "exec", self.names[node], sys.executable, "-m", *words]
        command += ["--run", "run", "--quiet"]
        environment = {
            key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")
        } | {
            "PYTHONPATH": str(ROOT),
            "VLKD_CACHE": str(self.folder / f"cache{node}"),
            "GLOO_SOCKET_IFNAME": self.names[node],
        }
        self.commands[node] = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self.commands[node]

    def cut(self) -> None:
        _ip("-n", self.names[1], "link", "set", self.names[1], "down")

    def signal(self, node: int, number: int) -> None:
        """To every process of a node."""
        os.killpg(self.commands[node].pid, number)

    def wait(self, node: int) -> tuple[int, str]:
        """Exit code and standard error of the command on a node."""
        _, err = self.commands[node].communicate(timeout=400)
        return self.commands[node].returncode, err

    def close(self) -> None:
        for node in self.commands:
            with contextlib.suppress(ProcessLookupError):
                self.signal(node, signal.SIGKILL)
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the program ip")
    made = Nodes(tmp_path)
    try:
        try:
            made.connect()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        yield made
    finally:
        made.close()


def _recipe(folder: Path, name: str = "recipe", **train: Any) -> str:
    settings = {"epochs": 2000, "save_every_steps": 2, "heartbeat_seconds": 10, **train}
    recipe = tiny_recipe(data={"augment": {"name": "none"}}, train=settings)
    place = folder / name
    place.mkdir(exist_ok=True)
    return write_recipe(place, recipe)


def _wait_for_a_save(folder: Path, step: int = 2) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        with contextlib.suppress(Exception):
            if final_state(folder / "run")["step"] >= step:
                return
        time.sleep(0.2)
    raise AssertionError("no checkpoint was written")


def _start_both(nodes: Nodes, *words: str) -> None:
    recipe = _recipe(nodes.folder)
    for node in (0, 1):
        nodes.start(node, recipe, *words)
    _wait_for_a_save(nodes.folder)


def test_a_cut_cable_ends_both_sides_with_the_name_of_the_other(nodes: Nodes) -> None:
    _start_both(nodes)
    nodes.cut()
    for node in (0, 1):
        code, err = nodes.wait(node)
        assert code == 2 and len(err.strip().splitlines()) == 1, err
        assert f"node {1 - node} ({ADDRESSES[1 - node]})" in err and "--resume" in err


def test_a_frozen_node_is_named(nodes: Nodes) -> None:
    _start_both(nodes)
    nodes.signal(1, signal.SIGSTOP)
    code, err = nodes.wait(0)
    assert code == 2 and f"node 1 ({ADDRESSES[1]}) has not answered for 10 s" in err, err


def test_a_killed_node_is_named(nodes: Nodes) -> None:
    _start_both(nodes)
    nodes.signal(1, signal.SIGKILL)
    code, err = nodes.wait(0)
    assert code == 2 and f"node 1 ({ADDRESSES[1]})" in err, err


def test_sigterm_to_one_node_saves_and_ends_both(nodes: Nodes) -> None:
    _start_both(nodes)
    nodes.signal(1, signal.SIGTERM)
    for node in (0, 1):
        code, err = nodes.wait(node)
        assert code == 128 + signal.SIGTERM, err
    assert final_state(nodes.folder / "run")["step"] >= 2


def test_torchrun_joins_two_nodes_and_a_cut_cable_names_the_other(nodes: Nodes) -> None:
    recipe = _recipe(nodes.folder)
    for node in (0, 1):
        nodes.start_torchrun(node, recipe)
    _wait_for_a_save(nodes.folder)
    assert final_state(nodes.folder / "run")["world_size"] == 2
    nodes.cut()
    for node in (0, 1):
        code, err = nodes.wait(node)
        assert code != 0 and f"node {1 - node} ({ADDRESSES[1 - node]})" in err, err


def test_another_recipe_on_one_node_is_refused_on_both(nodes: Nodes) -> None:
    nodes.start(0, _recipe(nodes.folder))
    nodes.start(1, _recipe(nodes.folder, "other", clip_grad_norm=3.0))
    for node in (0, 1):
        code, err = nodes.wait(node)
        assert code == 2 and "recipe.train.clip_grad_norm" in err, err
        assert ADDRESSES[0] in err and ADDRESSES[1] in err


def test_a_killed_node_that_comes_back_continues_the_run(nodes: Nodes) -> None:
    recipe = _recipe(nodes.folder, epochs=12)
    nodes.start(0, recipe, "--max-restarts", "2")
    time.sleep(5)  # The second node may come late.
    nodes.start(1, recipe, "--max-restarts", "2")
    _wait_for_a_save(nodes.folder)
    nodes.signal(1, signal.SIGKILL)
    nodes.commands[1].communicate()
    nodes.start(1, recipe, "--max-restarts", "2", "--resume")
    for node in (0, 1):
        code, err = nodes.wait(node)
        assert code == 0, err


def test_a_frozen_worker_of_one_node_ends_the_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vlkd_cli", "train", _recipe(tmp_path), "--run", "run"]
    process = subprocess.Popen(
        [*command, "--cpu-workers", "2", "--quiet"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "VLKD_CACHE": str(tmp_path / "cache")},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _wait_for_a_save(tmp_path)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [
            int(child)
            for child in children
            if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()
        ]
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGSTOP)
        _, err = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == 2, err
    assert "on node 0 (127.0.0.1) has not answered for 10 s" in err
