"""Everything that a recipe can name: kind -> name -> where it lives. One page is all of vlkd;
importing it imports nothing else.

A third party's component needs no line here: `name: their_package.module:Class` works wherever a
name does.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from vlkd_cli.errors import MissingPackageError, RecipeError


class Entry(NamedTuple):
    """Where a component lives ("module:attribute", the module below vlkd_cli), what it is, and the
    extra that its library needs."""

    target: str
    summary: str
    extra: str | None = None


CATALOG: dict[str, dict[str, Entry]] = {
    "builder": {
        "openclip": Entry(
            "builders.openclip.builder:OpenCLIP", "image and text towers of open_clip"
        ),
        "torchvision": Entry(
            "builders.torchvision.builder:TorchVision",
            "image classifiers of torchvision without their classifier",
        ),
        "timm": Entry("builders.timm.builder:Timm", "image models of timm"),
        "dvae": Entry(
            "builders.dvae:DVAE",
            "DALL-E's image tokenizer, a frozen target of masked image modeling",
        ),
        "huggingface": Entry(
            "builders.huggingface.builder:HuggingFace",
            "vision and text encoders that transformers' AutoModel loads",
        ),
        "sbert": Entry(
            "builders.sbert.builder:SBERT",
            "sentence encoders and static word vectors of sentence-transformers",
        ),
        "pointnet": Entry(
            "builders.pointnet.builder:PointNet", "PointNet++ over points of the surface of meshes"
        ),
        "adapters": Entry(
            "builders.adapters.builder:Adapters",
            "Hugging Face text encoders with adapters",
            "adapters",
        ),
    },
    "adapter": {
        "bottleneck": Entry(
            "builders.adapters.methods.bottleneck:Bottleneck",
            "small networks after or parallel to the layers",
            "adapters",
        ),
        "language": Entry(
            "builders.adapters.methods.bottleneck:Language",
            "bottlenecks and an invertible network (MAD-X)",
            "adapters",
        ),
        "compacter": Entry(
            "builders.adapters.methods.bottleneck:Compacter",
            "bottlenecks of shared Kronecker factors",
            "adapters",
        ),
        "prefix_tuning": Entry(
            "builders.adapters.methods.prefix_tuning:PrefixTuning",
            "learned keys and values",
            "adapters",
        ),
        "prompt_tuning": Entry(
            "builders.adapters.methods.prefix_tuning:PromptTuning",
            "learned token embeddings before the sentence",
            "adapters",
        ),
        "lora": Entry(
            "builders.adapters.methods.low_rank:LoRA",
            "low-rank updates of weight matrices",
        ),
        "dora": Entry(
            "builders.adapters.methods.low_rank:DoRA",
            "LoRA with learned weight norms",
        ),
        "vera": Entry(
            "builders.adapters.methods.low_rank:VeRA",
            "vectors between shared random matrices",
        ),
        "ia3": Entry(
            "builders.adapters.methods.low_rank:IA3",
            "one learned scale for each channel",
        ),
        "vpt": Entry(
            "builders.adapters.methods.visual_prompts:VPT",
            "learned tokens among the patches of a vision transformer",
        ),
        "mtl_lora": Entry(
            "builders.adapters.methods.low_rank:MTLLoRA", "LoRA shared by several tasks", "adapters"
        ),
        "reft": Entry(
            "builders.adapters.methods.reft:ReFT",
            "edits of hidden states at the first and last tokens",
            "adapters",
        ),
        "mix_and_match": Entry(
            "builders.adapters.methods.mixtures:MixAndMatch",
            "prefix tuning and a parallel bottleneck",
            "adapters",
        ),
        "unipelt": Entry(
            "builders.adapters.methods.mixtures:UniPELT",
            "gated prefix tuning, bottleneck and LoRA",
            "adapters",
        ),
    },
    "prompt": {
        "coop": Entry(
            "builders.openclip.prompts:CoOp", "learned token embeddings shared by all captions"
        ),
    },
    "pooler": {
        "cls": Entry("poolers:CLSPooler", "the first token"),
        "cls_mean": Entry(
            "poolers:ClassMeanPooler", "the class token joined with the mean of the patches"
        ),
        "mean": Entry("poolers:MeanPooler", "mean over the real tokens"),
        "max": Entry("poolers:MaxPooler", "maximum over the real tokens"),
        "last": Entry("poolers:LastPooler", "the last real token"),
        "eot": Entry("poolers:EOTPooler", "the end-of-text token"),
        "gem": Entry("poolers:GeMPooler", "generalized mean with a learnable power"),
        "attention": Entry("poolers:AttentionPooler", "a learned query attends to the tokens"),
    },
    "head": {
        "linear": Entry("heads.linear:LinearHead", "one linear layer"),
        "mlp": Entry(
            "heads.mlp:MLPHead", "the DINO head's layers: linear, norm, activation, bottleneck"
        ),
        "prototypes": Entry(
            "heads.prototypes:PrototypeHead", "the DINO head with its prototype layer"
        ),
        "patches": Entry(
            "heads.patches:PatchHead", "the image's patches, as targets; without weights"
        ),
        "hog": Entry("heads.hog:HOGHead", "histograms of gradients of each position, a target"),
        "decoder": Entry("heads.decoder:DecoderHead", "a transformer over all positions (MAE)"),
        "regressor": Entry(
            "heads.regressor:RegressorHead", "predict hidden positions from visible ones"
        ),
        "glu": Entry("heads.glu:GLUHead", "a gated layer between two linear ones (SAIL)"),
        "blocks": Entry("heads.blocks:BlocksHead", "transformer layers over the tokens (dino.txt)"),
        "select": Entry("heads.select:SelectHead", "a subset of positions of its input"),
    },
    "distiller": {
        "infonce": Entry(
            "distillers.infonce:InfoNCE",
            "softmax contrast of matching pairs against the batch (CLIP)",
        ),
        "siglip": Entry("distillers.siglip:SigLIP", "sigmoid contrast of every pair independently"),
        "simreg": Entry("distillers.simreg:SimReg", "regress the teacher's normalized feature"),
        "vicreg": Entry("distillers.vicreg:VICReg", "variance, invariance and covariance"),
        "barlow_twins": Entry(
            "distillers.barlow_twins:BarlowTwins", "cross-correlation towards the identity"
        ),
        "rkd": Entry("distillers.rkd:RKD", "match distances and angles between samples"),
        "compress": Entry(
            "distillers.compress:CompRess", "match similarities to a queue of anchors"
        ),
        "seed": Entry(
            "distillers.seed:SEED",
            "match similarities to the teacher's queue, its own teacher feature included",
        ),
        "dino": Entry("distillers.dino:DINO", "self-distillation over prototypes with centering"),
        "protocpc": Entry(
            "distillers.protocpc:ProtoCPC", "prototypical contrastive predictive coding"
        ),
        "protoclip": Entry(
            "distillers.protoclip:ProtoCLIP", "episodic k-means prototypes of the other modality"
        ),
        "unicl": Entry("distillers.unicl:UniCL", "contrast with label-aware positives"),
        "cross_entropy": Entry("distillers.cross_entropy:CrossEntropy", "classify labeled rows"),
        "affinity": Entry(
            "distillers.affinity:Affinity", "match the teacher's image-text affinities (TinyCLIP)"
        ),
        "feature_distance": Entry(
            "distillers.clip_kd:FeatureDistance", "CLIP-KD: mean squared feature distance"
        ),
        "interactive_contrast": Entry(
            "distillers.clip_kd:InteractiveContrast", "CLIP-KD: student against teacher contrast"
        ),
        "relational_kl": Entry(
            "distillers.clip_kd:RelationalKL", "CLIP-KD: contrastive relational distillation"
        ),
        "gradient_match": Entry(
            "distillers.clip_kd:GradientMatch", "CLIP-KD: match gradients of the contrastive loss"
        ),
        "augmented_contrast": Entry(
            "distillers.augmented_contrast:AugmentedContrast",
            "CLIP-KD: contrast of joined student and teacher features",
        ),
        "layer_distance": Entry(
            "distillers.layer_distance:LayerDistance",
            "squared distance of inner layers, with a regressor",
        ),
        "reinforced": Entry(
            "distillers.reinforced:Reinforced", "MobileCLIP: an ensemble of teachers"
        ),
        "simcse": Entry("distillers.simcse:SimCSE", "contrast of two dropout passes"),
        "ntxent": Entry(
            "distillers.ntxent:NTXent", "contrast among all views of the batch (SimCLR)"
        ),
        "moco": Entry(
            "distillers.moco:MoCo", "contrast with a queue, or the batch, of momentum keys"
        ),
        "dense_contrast": Entry(
            "distillers.dense_contrast:DenseContrast", "contrast of positions (DenseCL)"
        ),
        "swav": Entry("distillers.swav:SwAV", "swapped balanced assignments to prototypes"),
        "regress": Entry("distillers.regress:Regress", "regress fixed targets (MAE, SimMIM)"),
        "codes": Entry("distillers.codes:Codes", "classify positions by a tokenizer's codes (CAE)"),
        "ibot": Entry("distillers.ibot:IBOT", "self-distillation of hidden patches"),
        "koleo": Entry("distillers.koleo:KoLeo", "spread features by their nearest neighbors"),
        "view_order": Entry(
            "distillers.view_order:ViewOrder",
            "classify which picture of a sample it is (rotation, location)",
        ),
        "npid": Entry("distillers.npid:NPID", "instance discrimination with a feature bank"),
        "deepcluster": Entry(
            "distillers.deepcluster:DeepCluster", "classify by clusters of an epoch's features"
        ),
        "odc": Entry("distillers.odc:ODC", "classify by clusters that are updated at every step"),
        "triplet": Entry("distillers.triplet:Triplet", "triplet margin over labels, with miners"),
        "supcon": Entry(
            "distillers.supcon:SupCon", "supervised contrast of every row with its class"
        ),
        "multi_similarity": Entry(
            "distillers.multi_similarity:MultiSimilarity", "pairs weighted by their similarities"
        ),
        "margin_softmax": Entry(
            "distillers.margin_softmax:MarginSoftmax", "ArcFace, CosFace, normalized softmax"
        ),
        "proxy_anchor": Entry(
            "distillers.proxy_anchor:ProxyAnchor", "a learned proxy per class attracts and repels"
        ),
        "margin_mse": Entry(
            "distillers.margin_mse:MarginMSE", "regress the margin of two passages"
        ),
        "score_regression": Entry(
            "distillers.score_regression:ScoreRegression",
            "regress or rank cosines by the pairs' scores",
        ),
        "metric": Entry(
            "distillers.metric:Metric",
            "any loss and miner of pytorch-metric-learning, exact over ranks",
            "metric",
        ),
    },
    "reader": {
        "csv": Entry("data.readers.csv:CSV", "rows of image paths and captions"),
        "folder": Entry("data.readers.folder:Folder", "images with a .txt of the same stem"),
        "images": Entry("data.readers.images:Images", "images only, a folder or a list of them"),
        "webdataset": Entry("data.readers.webdataset:WebDataset", "tar shards, local or remote"),
        "parquet": Entry(
            "data.readers.parquet:Parquet", "Parquet files, folders of datasets", "parquet"
        ),
        "coco": Entry("data.readers.coco:COCO", "COCO captions json with an image folder"),
        "classification": Entry(
            "data.readers.classification:Classification",
            "labeled images with captions from templates",
        ),
        "elevater": Entry("data.readers.elevater:Elevater", "a data set in ELEVATER's layout"),
        "clip_benchmark": Entry(
            "data.readers.clip_benchmark:ClipBenchmark",
            "a data set in CLIP_benchmark's webdataset layout",
        ),
        "passages": Entry(
            "data.readers.passages:Passages",
            "queries with judged passages, or the triplets of `vlkd synthesize`",
        ),
        "multilingual": Entry(
            "data.readers.multilingual:Multilingual",
            "captions in many languages: XTD and Crossmodal-3600",
        ),
        "objectnet": Entry(
            "data.readers.objectnet:ObjectNet",
            "ObjectNet's images of the 113 classes that ImageNet has too",
        ),
        "choices": Entry(
            "data.readers.choices:Choices",
            "right and wrong captions: SugarCrepe, ARO, Winoground, or a list",
        ),
        "meshes": Entry(
            "data.readers.meshes:Meshes",
            "labeled meshes in class folders or a table, with captions from templates",
            "mesh",
        ),
        "shapes": Entry(
            "data.readers.shapes:Shapes",
            "rendered colored shapes with captions; nothing to download",
        ),
    },
    "augment": {
        "standard": Entry(
            "data.images.augment:StandardAugment",
            "random resized crop; flip, color jitter, blur on request",
        ),
        "simclr": Entry(
            "data.images.augment:SimCLRAugment", "small crops, flips, strong color jitter and blur"
        ),
        "byol": Entry("data.images.augment:BYOLAugment", "as simclr, with solarization on request"),
        "quarter_turns": Entry(
            "data.images.augment:QuarterTurnsAugment", "a crop in its four rotations"
        ),
        "patch_grid": Entry("data.images.augment:PatchGridAugment", "nine patches of a crop"),
        "points": Entry(
            "data.meshes.augment:PointsAugment",
            "points of meshes rotated, scaled, shifted, jittered and dropped",
        ),
        "none": Entry(
            "data.images.augment:NoAugment",
            "the tower's evaluation transform, the same in every epoch",
        ),
    },
    "mask": {
        "random": Entry(
            "data.masks:RandomMask", "positions sampled uniformly, a fixed number (MAE)"
        ),
        "block": Entry("data.masks:BlockMask", "rectangles of random aspect ratio (BEiT, iBOT)"),
    },
    "suite": {
        "zero_shot": Entry("evaluation.suites.zero_shot:ZeroShot", "classify images by prompts"),
        "retrieval": Entry(
            "evaluation.suites.retrieval:Retrieval",
            "find the image of a caption and the caption of an image",
        ),
        "caption_choice": Entry(
            "evaluation.suites.caption_choice:CaptionChoice",
            "distinguish an image's captions from captions that are almost right",
        ),
        "linear_probe": Entry(
            "evaluation.suites.linear_probe:LinearProbe", "logistic regression on frozen features"
        ),
        "knn": Entry("evaluation.suites.knn:KNN", "k-nearest neighbors on frozen features"),
        "clustering": Entry(
            "evaluation.suites.clustering:Clustering", "k-means on frozen features"
        ),
        "few_shot": Entry("evaluation.suites.few_shot:FewShot", "a probe from k images per class"),
        "feature_analysis": Entry(
            "evaluation.suites.feature_analysis:FeatureAnalysis",
            "alignment, uniformity, modality gap, spectrum",
        ),
        "fine_tune": Entry(
            "evaluation.suites.fine_tune:FineTune", "fine-tune the image tower on labels"
        ),
        "elevater": Entry(
            "evaluation.suites.elevater:ElevaterSuite", "the 20 data sets of ELEVATER"
        ),
        "sts": Entry("evaluation.suites.sts:STS", "semantic textual similarity"),
        "senteval": Entry(
            "evaluation.suites.senteval:SentEval", "transfer and probing tasks of SentEval"
        ),
        "passage_retrieval": Entry(
            "evaluation.suites.passage_retrieval:PassageRetrieval", "MS MARCO and any BEIR folder"
        ),
        "wiki_sections": Entry(
            "evaluation.suites.wiki_sections:WikiSections", "triplets of Wikipedia sections"
        ),
        "word_similarity": Entry(
            "evaluation.suites.word_similarity:WordSimilarity", "RG-65, SimLex-999, WordSim-353"
        ),
        "search": Entry(
            "evaluation.suites.search:Search",
            "search images, texts or meshes by each other or by themselves",
        ),
        "captioned": Entry(
            "evaluation.suites.captioned:Captioned",
            "linear evaluation of text features of captions",
        ),
        "mteb": Entry("evaluation.suites.mteb:MTEB", "tasks of mteb, for texts and images", "mteb"),
    },
    "scorer": {
        "cross_encoder": Entry(
            "synthesis.scorers.cross_encoder:CrossEncoder",
            "a model that reads query and passage together",
        ),
        "bm25": Entry("synthesis.scorers.bm25:BM25", "words that both have, weighted (Okapi)"),
        "tower": Entry("synthesis.scorers.tower:TowerScorer", "similarity of a tower's vectors"),
    },
    "sink": {
        "csv": Entry("reports.csv:CSVSink", "every logged value"),
        "html": Entry("reports.html.html:HTMLSink", "an HTML page of the run, written at its end"),
        "tensorboard": Entry(
            "reports.tensorboard:TensorBoardSink", "TensorBoard event files", "tensorboard"
        ),
        "wandb": Entry("reports.wandb:WandbSink", "Weights & Biases", "wandb"),
        "trackio": Entry("reports.trackio:TrackioSink", "Trackio, local or in a Space", "trackio"),
        "mlflow": Entry("reports.mlflow:MLflowSink", "MLflow tracking", "mlflow"),
    },
}


PACKAGES = {
    "adapters": ("adapters", "peft"),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow",),
    "mteb": ("mteb",),
    "parquet": ("pyarrow",),
    "mesh": ("trimesh",),
    "metric": ("pytorch_metric_learning",),
}
"""The packages that the extras install, by the names they are imported under."""

BASES: dict[str, tuple[str, ...]] = {
    "builder": ("vlkd_cli.builders.backbone:Builder",),
    "adapter": ("vlkd_cli.builders.adapters.methods.method:Method",),
    "prompt": ("vlkd_cli.builders.openclip.prompts:CoOp",),
    "pooler": ("torch.nn:Module",),
    "head": ("torch.nn:Module",),
    "distiller": ("vlkd_cli.distillers.distiller:Distiller",),
    "reader": ("vlkd_cli.data.readers.reader:Reader", "vlkd_cli.data.readers.reader:StreamReader"),
    "augment": (
        "vlkd_cli.data.images.augment:Augment",
        "vlkd_cli.data.meshes.augment:CloudAugment",
    ),
    "mask": ("vlkd_cli.data.masks:Mask",),
    "suite": ("vlkd_cli.evaluation.suite:Suite",),
    "scorer": ("vlkd_cli.synthesis.scorers.scorer:Scorer",),
    "sink": ("vlkd_cli.reports.sink:Sink",),
}
"""What a third party's class of each kind derives from."""


def names(kind: str) -> list[str]:
    """The names of a kind, in the catalogue's order."""
    return list(CATALOG[kind])


def closest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that the word most likely was meant to be, or None."""
    choices = list(choices)
    lowered = {choice.lower(): choice for choice in choices}
    if word.lower() in lowered:
        return lowered[word.lower()]
    found = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """ " Did you mean 'x'?" with its leading space, or nothing where no choice is close."""
    found = closest(word, choices)
    return f" Did you mean '{found}'?" if found else ""


def did_you_mean_path(path: str | Path) -> str:
    """`did_you_mean` of a path that is not there: the first part of it that is missing, among what
    its folder holds."""
    if os.path.exists(path):
        return ""
    for part in (Path(path), *Path(path).parents):
        try:
            found = closest(part.name, os.listdir(part.parent))
        except OSError:
            continue
        return f" Did you mean '{part.parent / found}'?" if found else ""
    return ""


def locate(kind: str, name: str) -> tuple[str, str]:
    """Full module name and attribute of a component, without importing it.

    Raises:
        RecipeError: no component of that kind has the name.
    """
    if ":" in name:
        module, attribute = name.split(":", 1)
        if not attribute.isidentifier() or not all(module.split(".")):
            raise RecipeError(f"{kind} '{name}': write module:Class.")
        return module, attribute
    if name not in CATALOG[kind]:
        raise RecipeError(
            f"unknown {kind} '{name}'.{did_you_mean(name, CATALOG[kind])} Known:"
            f" {', '.join(CATALOG[kind])}."
        )
    module, attribute = CATALOG[kind][name].target.split(":")
    return f"vlkd_cli.{module}", attribute


def load(kind: str, name: str) -> type[Any]:
    """Import a component and return its class.

    Raises:
        RecipeError: the name is unknown, or a third party's module cannot be imported or has no
            such class.
        MissingPackageError: its optional library is not installed.
    """
    module, attribute = locate(kind, name)
    if ":" in name:
        return _third_party(kind, name, module, attribute)
    try:
        found: type[Any] = getattr(importlib.import_module(module), attribute)
        return found
    except ModuleNotFoundError as error:
        extra = CATALOG[kind][name].extra
        if extra is None:
            raise
        raise MissingPackageError(f"{kind} '{name}'", extra) from error


def missing_extra(kind: str, name: str) -> str | None:
    """The extra that a component needs and that is not installed; nothing is imported."""
    entry = CATALOG[kind].get(name)
    if entry is None or entry.extra is None:
        return None
    for package in PACKAGES[entry.extra]:
        # A package that a program put into sys.modules counts; one that is None there does not.
        loaded = package in sys.modules
        if sys.modules.get(package) is None and (loaded or find_spec(package) is None):
            return entry.extra
    return None


def check_base(kind: str, name: str) -> None:
    """Make sure that a third party's component is a class of its kind.

    Raises:
        RecipeError: it cannot be imported, is not a class, or does not derive from the kind's base.
    """
    component = load(kind, name)
    if kind not in BASES:
        return
    places = [place.split(":") for place in BASES[kind]]
    bases = [getattr(importlib.import_module(module), attribute) for module, attribute in places]
    if not issubclass(component, tuple(bases)):
        known = " or ".join(place.replace(":", ".") for place in BASES[kind])
        raise RecipeError(f"{kind} '{name}' is not a {kind}: derive the class from {known}.")


def _third_party(kind: str, name: str, module: str, attribute: str) -> type[object]:
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"{kind} '{name}': no module '{error.name}'. Install the package it lives in."
        ) from error
    except AttributeError as error:
        raise RecipeError(f"{kind} '{name}': {module} has no '{attribute}'.") from error
    # A module may fail in any way there is while it is imported.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"{kind} '{name}': importing {module} failed ({type(error).__name__}: {reason}). Try"
            f" `python -c 'import {module}'`."
        ) from error
    if not isinstance(found, type):
        raise RecipeError(f"{kind} '{name}' is not a class. Name a class, module:Class.")
    return found
