"""What a model card contains, and that it has no path of this machine."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard

from vlkd_cli.reports.card import CardFacts, card_text, is_path, nameless


def test_places_of_this_machine_are_named_by_their_last_part(tmp_path: Path) -> None:
    recipe = {
        "data": {"path": str(tmp_path / "photos"), "urls": ["/mnt/x/a.tar", "https://h/b.tar"]},
        "towers": {"text": {"model": "org/bert", "run": "../runs/first/"}},
        "cache": "${CACHE}/features",
    }
    assert nameless(recipe) == {
        "data": {"path": "photos", "urls": ["a.tar", "https://h/b.tar"]},
        "towers": {"text": {"model": "org/bert", "run": "first"}},
        "cache": "${CACHE}/features",
    }
    assert not is_path("a photo of a dog") and is_path("~/models/bert")


def test_a_number_that_does_not_exist_is_left_out_of_the_front_matter() -> None:
    result = {
        "name": "sts",
        "suite": "sts",
        "dataset": "STS12",
        "split": "test",
        "metrics": {"spearman": 0.5, "pearson": None},
        "primary_metric": "spearman",
        "num_items": 4,
    }
    facts = CardFacts(
        name="words",
        modalities=("text",),
        license="mit",
        languages=["en"],
        datasets=["org/set"],
        base_models=["org/bert"],
        results=[result],
        step=7,
        recipe={},
        digest="d",
        weights={},
        samples=None,
        objectives=[("simcse", "Gao et al. 2021, arXiv:2104.08821"), ("mine.py:Own", "")],
        usage="x = 1",
        versions={"vlkd": "1"},
        format="library",
    )
    text = card_text(facts)
    data = ModelCard(text).data
    assert [each.metric_type for each in data.eval_results] == ["spearman"]
    assert data.pipeline_tag == "sentence-similarity" and data.base_model == ["org/bert"]
    assert data.tags == ["vlkd", "simcse"] and data.datasets == ["org/set"]
    assert "- `mine.py:Own`: of this repository" in text
