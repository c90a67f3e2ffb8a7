from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.data_sets import clip_benchmark_data
from vlkd_cli.commands.list_datasets import list_datasets
from vlkd_cli.errors import UserError
from vlkd_cli.evaluation.datasets.known_sets import (
    known_sets,
    load_classes,
    load_templates,
    sets_on_disk,
)


def test_the_list_knows_the_twenty_of_elevater_and_more() -> None:
    known = known_sets()
    assert sum(facts.elevater is not None for facts in known.values()) == 20
    assert len(known) >= 29
    assert known["pets"].metric == "mean-per-class" and known["pets"].test == 3669
    for name, classes in load_classes().items():
        assert known[name].classes == len(classes), name


def test_every_template_has_one_place_for_the_name() -> None:
    sets = load_templates()
    assert len(sets) > 30
    for name, templates in sets.items():
        assert templates and all(template.count("{}") == 1 for template in templates), name


def test_what_lies_under_a_root_is_found_in_every_layout(tmp_path: Path) -> None:
    (tmp_path / "wds_cifar10").mkdir()
    clip_benchmark_data(tmp_path / "wds_cifar10")
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "pets" / "beagle").mkdir(parents=True)
    (tmp_path / "something else").mkdir()
    found = {name: place.layout for name, place in sets_on_disk(tmp_path).items()}
    assert found == {"cifar10": "clip_benchmark", "cifar100": "torchvision", "pets": "folder"}


def test_json_shows_where_a_set_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dtd" / "dtd").mkdir(parents=True)
    list_datasets(root=tmp_path, search="*", here=True, json_=True)
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["classes"], row["layout"], row["path"]) == (
        "dtd",
        47,
        "torchvision",
        str(tmp_path / "dtd" / "dtd"),
    )


def test_a_misspelled_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'food101'"):
        list_datasets(root=None, search="foood101", here=False, json_=False)


def test_the_command_needs_no_torch() -> None:
    listed = (
        "from vlkd_cli.commands.list_datasets import list_datasets; list_datasets(None, '*', False,"
        " True)"
    )
    subprocess.run(
        [sys.executable, "-c", f"import sys; {listed}; assert 'torch' not in sys.modules"],
        check=True,
        capture_output=True,
    )
