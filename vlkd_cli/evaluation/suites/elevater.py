"""The 20 data sets of ELEVATER, zero-shot, with few shots or with all; its predictions can be
submitted."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vlkd_cli import console
from vlkd_cli.data.readers.elevater_sets import find_set, known_sets, official_sets, on_disk
from vlkd_cli.elevater.metrics import chance
from vlkd_cli.elevater.run import Plan, Scored, SetRun
from vlkd_cli.elevater.score import SetScore, average
from vlkd_cli.elevater.sweep import Trial
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.evaluation.results import DataIdentity, Result
from vlkd_cli.evaluation.suite import Measures, Suite
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.types import PositiveInt

LR, WEIGHT_DECAY = 0.1, 1e-6


class ElevaterSuite(Suite):
    """Classify the data sets under a root and write one prediction file per data set and seed, for
    `vlkd submit-elevater`.

    Zero-shot scores softmax(100 * cosine). A linear probe trains a head on features that are
    computed once, fine-tuning trains the image
    tower with it: batch norm without weights, a linear layer, SGD with momentum 0.9 and a constant
    learning rate, batches of 64, no augmentation. Learning rate and weight decay are searched on a
    fifth of the training rows.

    Args:
        root: folder that holds `classification/`, or the data sets' own folders; by default
            `--data`.
        datasets: names; by default every data set that is there.
        mode: what is done.
        shots: training images per class, selected by the toolkit's sampler (5, 20 and 50 on the
            leaderboard); -1 or nothing for all.
        seeds: of the sampler; by default 0, 1, 2 with shots, else 0.
        tune: search learning rate and weight decay (90 trainings); otherwise `lr` and
            `weight_decay` are taken.
        lr: where `tune` is off, 0.1 by default.
        weight_decay: where `tune` is off, 1e-6 by default.
        protocol: `elevater` chooses the epoch on the validation rows; `elevater_paper` on the test
            rows, as the published numbers do.
        start: the head starts from the classes' text features, or from random numbers.
        features: where the image tower's features are taken for the head; the text start needs
            `head`.
        templates: prompt templates: a list, a file, `open_clip:imagenet`, `clip_benchmark`, or a
            JSON object from data set names to templates; by default vlkd's own for each data set.
        sweep_epochs: of each training of the search.
        epochs: of the final training.
        model_name: in the prediction files; by default made from a digest of the weights.

    Source: Li et al., ELEVATER, NeurIPS 2022, arXiv:2204.08790, and its toolkit Elevater_Toolkit_IC
    @00d0af7. Differs in the tower's own image size and normalization, and in a frozen backbone
    being in eval mode.
    """

    modalities = frozenset({"image"})
    data_keys = frozenset({"root"})
    libraries = ("scikit-learn",)

    def __init__(
        self,
        *,
        root: str | None = None,
        datasets: str | list[str] | None = None,
        mode: Literal["zero_shot", "linear_probe", "fine_tune"] = "zero_shot",
        shots: int | None = None,
        seeds: int | list[int] | None = None,
        tune: bool | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        protocol: Literal["elevater", "elevater_paper"] = "elevater",
        start: Literal["text", "random"] | None = None,
        features: Literal["head", "backbone"] | None = None,
        templates: str | list[str] | None = None,
        sweep_epochs: PositiveInt | None = None,
        epochs: PositiveInt | None = None,
        model_name: str | None = None,
    ) -> None:
        trains: dict[str, object] = {
            "tune": tune,
            "lr": lr,
            "weight_decay": weight_decay,
            "start": start,
            "features": features,
            "epochs": epochs,
        }
        trains |= {
            "sweep_epochs": sweep_epochs,
            "shots": shots or None,
            "protocol": None if protocol == "elevater" else protocol,
        }
        self._check(mode, trains)
        if shots is not None and (shots < -1 or (shots == 0 and mode != "zero_shot")):
            raise RecipeError(
                f"suite 'elevater': shots is {shots}. Expected a number of images per class, or -1"
                " for all."
            )
        self.root = root
        self.datasets = [datasets] if isinstance(datasets, str) else datasets
        self.shots = None if shots in (None, 0, -1) else shots
        self.seeds = self._seeds(seeds)
        self.plan = Plan(
            mode=mode,
            shots=self.shots,
            tune=tune is not False and mode != "zero_shot",
            trial=Trial(
                LR if lr is None else lr, WEIGHT_DECAY if weight_decay is None else weight_decay
            ),
            protocol=protocol,
            start=start or ("text" if features != "backbone" else "random"),
            features=features or "head",
            templates=templates,
            sweep_epochs=sweep_epochs or 10,
            epochs=epochs or 50,
            model_name=model_name,
        )
        if mode == "zero_shot" or self.plan.start == "text":
            self.uses = frozenset({"image", "text"})

    @staticmethod
    def _check(mode: str, trains: dict[str, object]) -> None:
        given = [key for key, value in trains.items() if value is not None]
        if mode == "zero_shot" and given:
            raise RecipeError(
                f"suite 'elevater': {', '.join(given)} has no effect with mode 'zero_shot'. Set"
                " mode: linear_probe or fine_tune."
            )
        if (
            mode != "zero_shot"
            and trains["tune"] is not False
            and (trains["lr"] is not None or trains["weight_decay"] is not None)
        ):
            raise RecipeError(
                "suite 'elevater': lr and weight_decay are searched. Set tune: false to give them."
            )
        if trains["tune"] is False and trains["sweep_epochs"] is not None:
            raise RecipeError(
                "suite 'elevater': sweep_epochs has no effect with tune: false. Leave it out."
            )
        if trains["features"] == "backbone" and trains["start"] == "text":
            raise RecipeError(
                "suite 'elevater': the head starts from text features only where features are"
                " projected. Set start: random."
            )

    def _seeds(self, seeds: int | Sequence[int] | None) -> list[int]:
        if seeds is None:
            return [0, 1, 2] if self.shots is not None else [0]
        chosen = [seeds] if isinstance(seeds, int) else list(seeds)
        if self.shots is None and chosen != [0]:
            raise RecipeError(
                "suite 'elevater': seeds sample the shots; zero-shot and all-shot runs have the one"
                " seed 0. Set shots, or leave it out."
            )
        if not chosen or len(set(chosen)) < len(chosen):
            raise RecipeError(
                f"suite 'elevater': seeds {chosen} must be distinct, and at least one."
            )
        return chosen

    def open(self, subject: Subject) -> tuple[Path, list[str]]:
        """The root, and the data sets to evaluate."""
        root = Path(self.root).expanduser() if self.root is not None else subject.data_root
        if root is None:
            raise DataError(
                "suite 'elevater' needs the folder with the data sets: pass --data ROOT, or set the"
                " key `root`."
            )
        return root, self._names(root)

    def measures(self, opened: tuple[Path, list[str]]) -> Measures:
        names = ["accuracy", "mean_per_class", "map_11_points", "roc_auc", "spread", "average"]
        return Measures([*opened[1], "average"], names)

    def run(self, subject: Subject) -> list[Result]:
        root, names = self.open(subject)
        results, scores = [], []
        for name in names:
            opened = SetRun(subject, root, name, self.plan)
            runs = [opened.evaluate(seed) for seed in self.seeds]
            score = SetScore(
                opened.facts.name,
                opened.facts.metric,
                tuple(self.seeds),
                tuple(run.value for run in runs),
            )
            scores.append(score)
            results.append(self._result(subject, opened, score, runs))
        mean = average(scores, official_sets())
        if mean is not None:
            results.append(self._average(subject, mean, results))
        return results

    def _names(self, root: Path) -> list[str]:
        if self.datasets is not None:
            known = known_sets(root) if root.is_dir() else None
            return list(dict.fromkeys(find_set(name, known).name for name in self.datasets))
        found = list(on_disk(root))
        missing = [name for name in official_sets() if name not in found]
        if not found:
            raise DataError(
                f"no ELEVATER data set is under '{root}'. Expected folders like"
                f" '{root / official_sets()['dtd'].folder}'."
            )
        if missing and len(missing) < len(official_sets()):
            console.warn(
                f"{len(missing)} of {len(official_sets())} data sets are not under '{root}' and are"
                f" left out: {', '.join(missing)}."
            )
        return found

    def _protocol(self) -> str:
        return f"{self.plan.protocol}_{self.plan.folder.removesuffix('_best_on_test')}"

    def _result(
        self, subject: Subject, opened: SetRun, score: SetScore, runs: list[Scored]
    ) -> Result:
        metric = (
            "map_11_points" if score.metric == "11point_mAP" else score.metric.replace("-", "_")
        )
        by_chance = chance(score.metric, opened.facts.num_classes, opened.test.targets())
        metrics = {metric: score.mean} | ({"spread": score.spread} if len(runs) > 1 else {})
        settings: dict[str, object] = {
            key: value
            for key, value in vars(self.plan).items()
            if key not in ("trial", "model_name")
        }
        if self.plan.mode != "zero_shot":
            settings["epoch_chosen_on"] = runs[0].details["epoch_chosen_on"]
        hashes = opened.hashes()
        return self.result(
            subject,
            DataIdentity(
                score.dataset,
                "test",
                {
                    "rows": hashes["row_order"],
                    "classes": hashes["class_order"],
                    "files": hashes["files"],
                },
                opened.facts.num_classes,
            ),
            protocol=self._protocol(),
            metrics=metrics,
            primary_metric=metric,
            chance={metric: by_chance},
            num_items=len(opened.test),
            settings={
                **settings,
                "datasets": [score.dataset],
                "seeds": list(score.seeds),
                "row_source": opened.test.order_source,
            },
            details={
                "seeds": [{"seed": run.seed, metric: run.value, **run.details} for run in runs],
                "mean": statistics.fmean(score.values),
            },
        )

    def _average(self, subject: Subject, mean: float, sets: Sequence[Result]) -> Result:
        chances = [result.chance[result.primary_metric] for result in sets]
        return self.result(
            subject,
            DataIdentity("average", "test", {r.dataset: r.hashes["files"] for r in sets}),
            protocol=self._protocol(),
            metrics={"average": mean},
            primary_metric="average",
            chance={"average": statistics.fmean(chances)},
            num_items=len(sets),
            settings={"datasets": [result.dataset for result in sets], "seeds": self.seeds},
        )
