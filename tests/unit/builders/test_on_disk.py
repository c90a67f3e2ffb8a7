"""Which models of `vlkd list-models --task` need not be fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlkd_cli.builders.by_task import describe_models, every_model
from vlkd_cli.builders.on_disk import is_on_disk

# What is fetched or put there by hand, below the cache folder or torch's.
FILES = {
    "resnet-base": ["cache/torchvision/checkpoints/resnet50-11ad3fa6.pth"],
    "efficientnet-base": ["torch/hub/checkpoints/efficientnet_b4_rwightman-23ab8bcd.pth"],
    "clip-base-en": [
        "cache/openclip/models--timm--vit_base_patch32_clip_224.openai/snapshots/1/"
        "open_clip_model.safetensors"
    ],
    "clip-large-en": ["cache/openclip/ViT-L-14-openai.pt"],
    "bert-base-en": [
        "cache/huggingface/bert-base-cased/config.json",
        "cache/huggingface/bert-base-cased/model.safetensors",
    ],
    "crossencoder-base-en": [
        f"hub/models--cross-encoder--ms-marco-MiniLM-L6-v2/snapshots/1/{name}"
        for name in ("config.json", "pytorch_model.bin")
    ],
}


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, name in (
        ("VLKD_CACHE", "cache"),
        ("HF_HUB_CACHE", "hub"),
        ("TORCH_HOME", "torch"),
    ):
        monkeypatch.setenv(variable, str(tmp_path / name))


def listed() -> set[str]:
    return {row["name"] for row in describe_models() if row["on_disk"]}


def test_a_model_is_on_disk_once_its_files_are_there(tmp_path: Path) -> None:
    assert listed() == {"pointnet-base"}, "it has random weights"
    for files in FILES.values():
        for name in files:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
    assert listed() == {"pointnet-base", *FILES}
    rows = {row["name"]: row["on_disk"] for row in every_model("image-to-image")}
    assert rows["torchvision:resnet50"] and rows["openclip:ViT-B-32"]
    assert not rows["torchvision:resnet101"] and not rows["openclip:ViT-B-16"]


def test_a_configuration_without_weights_is_not_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "sbert" / "jinaai" / "jina-embedding-t-en-v1"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert not is_on_disk("sbert", "jinaai/jina-embedding-t-en-v1")


def test_weights_of_timm_are_found_by_their_tag(tmp_path: Path) -> None:
    (tmp_path / "cache" / "timm").mkdir(parents=True)
    (tmp_path / "cache" / "timm" / "resnet10t.c3_in1k.safetensors").touch()
    assert is_on_disk("timm", "resnet10t", "c3_in1k")
    assert not is_on_disk("timm", "resnet10t", "other")
