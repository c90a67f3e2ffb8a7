"""The shape of a recipe: closed, frozen sections. Keys of components (towers, distillers, ...) are
checked against their signatures by `recipe.load`; here they are only held."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from vlkd_cli.recipe.types import (
    LayerChoice,
    ModalityName,
    NonNegative,
    NonNegativeInt,
    NonNegativeSchedulable,
    Positive,
    PositiveInt,
    Precision,
    Probability,
    Schedulable,
    TableType,
)


class Section(BaseModel):
    """A closed, frozen part of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Open(BaseModel):
    """A frozen part of a recipe that holds a component's keys next to its own."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @property
    def keys(self) -> dict[str, Any]:
        """The keys that the component's constructor takes."""
        return dict(self.model_extra or {})


class Component(Open):
    """Something chosen by name; every other key belongs to its signature."""

    name: str = Field(description="a name of the catalog, or another package's module:Class")


class PromptSpec(Component):
    """Learned prompt vectors: `prompt: {tokens: 4}`."""

    name: str = "coop"


Names = Annotated[list[str], Field(min_length=1)]


class HeadSpec(Component):
    """A head of a tower: `head: {name: linear, width: 512}`, or one of several under `heads:`."""

    reads: str | Names = Field(
        "backbone",
        description=(
            "what it is applied to: input, backbone, tokens or another head, with .N for picture N"
            " of the same view; a list is joined along the features"
        ),
    )
    at: Literal["all", "hidden", "visible"] = Field(
        "all", description="positions of a masked view to read: all, hidden or visible ones"
    )


class ViewSpec(Component):
    """How one view of each image is augmented."""

    copies: PositiveInt = Field(1, description="pictures of each sample, augmented one by one")
    size_px: PositiveInt | None = Field(
        None, description="height and width in pixels; by default the tower's"
    )
    mask: Component | None = Field(
        None, description="which positions of each picture are hidden; by default none"
    )


class LastLayers(Section):
    """Train the last N layers of the backbone (and the head)."""

    last: PositiveInt


Train = Literal["all", "none", "head", "prompt"] | list[str] | LastLayers


class CacheSpec(Section):
    """Features of a frozen tower under random augmentation: `cache: {draws: 10}`."""

    draws: PositiveInt = Field(
        description="augmentations of each image; pass e over the data reads number e mod draws"
    )
    seed: NonNegativeInt = Field(
        0, description="seed of these augmentations, which runs of any train.seed share"
    )
    store: bool = Field(
        True, description="false: the same augmentations, computed again in every pass"
    )
    dtype: TableType = Field(
        "float32",
        description=(
            "of the stored features; bfloat16 takes half the space, and rounds them in every pass"
        ),
    )


class InitSpec(Section):
    """Initial weights out of another tower: `init: {from: teacher_image, layers: every 2}`."""

    model_config = ConfigDict(populate_by_name=True)

    from_: str = Field(alias="from", description="the tower whose weights it inherits")
    layers: LayerChoice = Field(
        "even",
        description=(
            "which of its layers: even (every s-th from the first, as many as needed), first, last,"
            " every N, or their numbers from 0"
        ),
    )


class TowerSpec(Open):
    """One tower: a backbone from a builder, how its tokens are pooled, what head it carries and
    what of it learns.

    Keys that are not listed here (model, pretrained, config, ...) belong to the builder's
    signature.
    """

    builder: str | None = Field(None, description="where the backbone comes from")
    like: str | None = Field(
        None,
        description=(
            "a model of `vlkd list-models --task TASK` whose keys the tower takes, under its own"
            " (`image: NAME` is short for `image: {like: NAME}`); or another tower of the recipe,"
            " whose copy this is, with its weights at the start"
        ),
    )
    modality: ModalityName | None = Field(
        None,
        description="image or text; needed if neither the tower's name nor its builder determines"
        " it",
    )
    run: str | list[str] | None = Field(
        None,
        description=(
            "a vlkd run or checkpoint to take a trained tower from, instead of a builder; a list:"
            " their average"
        ),
    )
    soup: Literal["uniform"] | dict[Literal["greedy"], str] | None = Field(
        None,
        description=(
            "of several runs: their average (uniform, the default), or {greedy: EVAL}: those that"
            " this entry of evals gains by"
        ),
    )
    tower: str | None = Field(
        None, description="which tower of that run; by default the one of the same modality"
    )
    checkpoint: Literal["best", "last"] | None = Field(
        None,
        description="which checkpoint of that run; by default its best, else its last",
    )
    follows: str | None = Field(
        None,
        description="the tower whose exponential moving average this one is, instead of a builder",
    )
    momentum: Schedulable = Field(
        0.999, description="momentum of the moving average, for a tower that follows another"
    )
    pooler: Component | None = Field(
        None, description="how tokens become one feature; by default the model's own pooling"
    )
    head: HeadSpec | None = Field(None, description="projection head; short for heads: {head: ...}")
    heads: dict[str, HeadSpec] = Field(
        default_factory=dict, description="heads by name, addressed as tower.NAME"
    )
    masks: Literal["none", "drop", "replace", "complement"] = Field(
        "none",
        description=(
            "what happens to hidden positions: nothing, left out, replaced by a learned token, or"
            " only they are encoded"
        ),
    )
    shuffle: bool = Field(
        False,
        description="shuffle batches across processes, as MoCo does; followers only",
    )
    adapter: Component | None = Field(
        None, description="a parameter-efficient method: the rest of the backbone is frozen"
    )
    prompt: PromptSpec | None = Field(
        None, description="learned prompt vectors for a text tower of openclip"
    )
    train: Train = Field(
        "all",
        description=(
            "trainable parameters: all, none, head, prompt (and head), name patterns or {last: N}"
            " layers"
        ),
    )
    freeze_batch_norm_stats: bool = Field(
        False,
        description=(
            "batch norms of the backbone use their running statistics, which stay as they are,"
            " while its weights are trained"
        ),
    )
    dtype: Literal["bf16", "fp16"] | None = Field(
        None,
        description=(
            "16-bit type in which the matrices of a frozen backbone are stored and multiplied; by"
            " default fp32"
        ),
    )
    lr: Positive | None = Field(
        None, description="this tower's learning rate instead of the optimizer's"
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="factor on the learning rate per layer below the last"
    )
    init: InitSpec | None = Field(
        None,
        description=(
            "initial weights out of a larger tower of the same builder: some of its layers, and of"
            " every tensor the leading channels"
        ),
    )
    cache: bool | CacheSpec | None = Field(
        None,
        description=(
            "compute a frozen backbone's features once and read them later; by default where the"
            " input never changes. {draws: K}: under K augmentations of each image"
        ),
    )

    @property
    def draws(self) -> CacheSpec | None:
        """The `cache:` section where it asks for features under random augmentation."""
        return self.cache if isinstance(self.cache, CacheSpec) else None

    @property
    def all_heads(self) -> dict[str, HeadSpec]:
        """The heads by name, the one under `head:` among them."""
        return {**({} if self.head is None else {"head": self.head}), **self.heads}


class DistillerSpec(Component):
    """One training objective, written as an arrow from a student output to a teacher output."""

    weight: Schedulable = Field(1.0, description="weight of this loss term")
    student: str | list[str] | None = Field(
        None,
        description=(
            "address of the student output, or several:"
            " tower[.backbone|.tokens|.HEAD][@INPUT[.N[-M]]]"
        ),
    )
    teacher: str | list[str] | None = Field(
        None, description="address of the teacher output, or several"
    )
    negatives: str | list[str] | None = Field(
        None,
        description=(
            "address of texts or pictures of the samples that match nothing, or several, such as"
            " text@hard; of infonce and siglip"
        ),
    )
    widths: list[PositiveInt] | None = Field(
        None,
        description=(
            "widths, ascending: the sum over the objective between the first so many values of both"
            " sides (Matryoshka)"
        ),
    )
    width_weights: list[NonNegative] | None = Field(
        None, description="weights of the widths; by default 1"
    )
    lr: Positive | None = Field(
        None, description="learning rate of its parameters instead of the optimizer's"
    )


class DataSpec(Open):
    """What is trained on. Keys that are not listed here belong to the reader's signature."""

    reader: str | None = Field(None, description="where images and captions come from")
    readers: list[dict[str, Any]] | None = Field(
        None, description="several readers, each with its own keys and a 'weight', mixed"
    )
    augment: ViewSpec | None = Field(
        None,
        description=(
            "augmentation of the training images; by default the standard random resized crop"
        ),
    )
    views: dict[str, ViewSpec | None] = Field(
        default_factory=dict,
        description="further views of each image, by name; null: augmented as the main one",
    )
    episode_samples: PositiveInt | None = Field(
        None, description="samples per epoch, instead of one pass over all"
    )
    shuffle: bool = Field(True, description="shuffle the samples again in each epoch")
    per_class: PositiveInt | None = Field(
        None, description="samples of each class in a step, which holds as many classes as fit"
    )
    distinct: str | None = Field(
        None,
        description="caption, or a column: no two samples of a step have the same",
    )
    workers: NonNegativeInt = Field(2, description="loader processes for each training process")
    prefetch: PositiveInt = Field(2, description="batches each worker prepares ahead")
    max_broken_share: Probability = Field(
        0.01, description="largest fraction of broken samples; the run stops above it"
    )
    exclude: str | None = Field(
        None,
        description=(
            "samples to leave out: a run folder or its skipped.csv, or a file with a name per line"
        ),
    )


class TrainSpec(Section):
    """How long and how the towers are trained."""

    epochs: PositiveInt = Field(1, description="passes over the data, or episodes")
    steps: PositiveInt | None = Field(
        None, description="stop after this many optimizer steps, even before the last epoch"
    )
    batch_size: PositiveInt = Field(64, description="pairs per process and step")
    chunk: PositiveInt | None = Field(
        None,
        description=(
            "pictures or texts whose activations are held at a time; memory of a small batch,"
            " loss and gradients of batch_size"
        ),
    )
    checkpoint_activations: bool = Field(
        False,
        description=(
            "store only the inputs of each layer of trainable backbones and compute its"
            " activations again in the backward pass; the same gradients in less memory"
        ),
    )
    shard: Literal["none", "towers"] = Field(
        "none",
        description=(
            "towers: divide weights, gradients and optimizer state of trainable backbones among"
            " the processes (FSDP)"
        ),
    )
    accumulate: PositiveInt = Field(
        1, description="batches whose gradients are added up before one optimizer step"
    )
    precision: Precision = Field(
        "fp32", description="autocast type of the forward pass; weights stay fp32"
    )
    tf32: bool = Field(
        False,
        description=(
            "with precision fp32 on a GPU: multiply matrices of a training step in TF32, which is"
            " faster and rounds factors to 11 bits; infonce and siglip stay exact"
        ),
    )
    clip_grad_norm: Positive | None = Field(
        None, description="maximum gradient norm; larger gradients are rescaled"
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="decay of the moving average (EMA) of the weights, which is evaluated and"
        " saved",
    )
    seed: NonNegativeInt = Field(
        0, description="seed of initial weights, sample order, augmentation and dropout"
    )
    compile: bool = Field(False, description="compile the towers with torch.compile")
    channels_last: bool = Field(
        False, description="channels-last memory format of images and convolutions; faster on GPUs"
    )
    sync_batch_norm: bool = Field(
        False, description="synchronize batch-norm statistics over all processes"
    )
    save_every_steps: PositiveInt | None = Field(
        None, description="optimizer steps between checkpoints"
    )
    save_every_epochs: PositiveInt | None = Field(1, description="epochs between checkpoints")
    save_every_minutes: Positive | None = Field(None, description="minutes between checkpoints")
    save_in_background: bool = Field(
        False,
        description=(
            "write checkpoints while training continues; takes memory of the host for one more"
            " copy of the state"
        ),
    )
    keep: PositiveInt = Field(
        1, description="number of the newest checkpoints that are not deleted"
    )
    best: str | None = Field(
        None,
        description=(
            "metric to select the best checkpoint by: suite.metric or suite.dataset.metric"
        ),
    )
    patience: PositiveInt | None = Field(
        None,
        description="evaluations of train.best in a row without improvement that end the run",
    )
    min_delta: NonNegative = Field(
        0, description="with patience: by how much a better value must exceed the best"
    )
    max_nonfinite_steps: PositiveInt = Field(
        10, description="the run stops after this many non-finite steps in a row"
    )
    log_every_steps: PositiveInt = Field(
        10, description="optimizer steps between two logged values"
    )
    heartbeat_seconds: Annotated[float, Field(ge=5)] | None = Field(
        30,
        description=(
            "the run ends when a process has been silent for this long, frozen or cut off; null:"
            " wait half an hour, as torch does"
        ),
    )
    cache_dir: str | None = Field(
        None,
        description="cache folder of features and weights; by default VLKD_CACHE or ~/.cache/vlkd",
    )


class ScheduleSpec(Section):
    """The learning rate over time: the fraction f(s) of the peak at optimizer step s of T.

    W are the steps of warm-up, e is `end_factor`, t `timescale`, g `factor` and m the steps of the
    milestones. A cooldown of C steps multiplies the fraction before it by e + (1 - e) r(v), with
    v = (s - (T - C) + 1) / C and r(v) = 1 - v (linear), 1 - sqrt(v) or (1 + cos(pi v)) / 2.
    """

    formula: ClassVar[str] = (
        r"f(s) = \begin{cases} \frac{s + 1}{W} & s < W \\"
        r" e + (1 - e) \frac{1 + \cos(\pi u)}{2} & \text{cosine} \\"
        r" e + (1 - e)(1 - u) & \text{linear} \\ 1 & \text{constant, wsd} \\"
        r" \sqrt{\frac{t}{t + s - W}} & \text{rsqrt} \\ g^{|\{m : m \le s\}|} & \text{steps}"
        r" \end{cases} \quad u = \frac{s - W}{T - W}"
    )

    name: Literal["cosine", "linear", "constant", "steps", "wsd", "rsqrt"] = Field(
        "cosine", description="decay shape after the warm-up"
    )
    warmup_steps: NonNegativeInt = Field(0, description="optimizer steps of linear warm-up from 0")
    warmup_epochs: NonNegative = Field(0, description="warm-up in epochs, instead of steps")
    end_factor: NonNegative = Field(
        0.0, description="final learning rate as a fraction of the peak"
    )
    cooldown_steps: NonNegativeInt = Field(
        0, description="of constant, wsd, rsqrt: last optimizer steps, which fall to end_factor"
    )
    cooldown_epochs: NonNegative = Field(0, description="cooldown in epochs, instead of steps")
    cooldown_shape: Literal["linear", "sqrt", "cosine"] | None = Field(
        None, description="decay shape of the cooldown; by default sqrt for wsd, else linear"
    )
    timescale: PositiveInt | None = Field(
        None,
        description=(
            "of rsqrt: optimizer steps after the warm-up until the rate is divided by sqrt(2);"
            " by default as many as the warm-up has"
        ),
    )
    milestones: list[NonNegative] = Field(
        default_factory=list,
        description="with name: steps, the epochs at which the learning rate falls",
    )
    factor: Positive = Field(
        0.1, description="with name: steps, the factor on the learning rate at each milestone"
    )


class Start(Section):
    """When something begins, counted from the first step."""

    epochs: NonNegativeInt | None = Field(None, description="epochs before it")
    steps: NonNegativeInt | None = Field(None, description="optimizer steps before it")

    @model_validator(mode="after")
    def _one_of_both(self) -> Start:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("set 'epochs' or 'steps'")
        return self


class GroupSpec(Open):
    """Parameters with settings of their own. Keys that are not listed here are the optimizer's."""

    model_config = ConfigDict(populate_by_name=True)

    match: list[str] = Field(
        min_length=1,
        description="patterns of parameter names: TOWER.* or distillers.NAME.*",
    )
    lr_factor: NonNegative | None = Field(None, description="factor on their learning rate")
    weight_decay: NonNegativeSchedulable | None = Field(
        None, description="their weight decay instead of the optimizer's"
    )
    schedule: ScheduleSpec | Literal["cosine", "linear", "constant", "rsqrt"] | None = Field(
        None, description="their schedule instead of the recipe's"
    )
    from_: Start | None = Field(
        None, alias="from", description="when their training starts; by default at once"
    )

    @property
    def is_plain(self) -> bool:
        """Whether it sets nothing, so that it only withholds what it matches from later groups."""
        settings = (self.lr_factor, self.weight_decay, self.schedule, self.from_)
        return not self.keys and all(setting is None for setting in settings)

    @property
    def own_schedule(self) -> ScheduleSpec | None:
        """Their schedule with its keys."""
        own = self.schedule
        return ScheduleSpec(name=own) if isinstance(own, str) else own


class OptimizerSpec(Component):
    """The optimizer: adamw, sgd, lars, lion, or any class of torch.optim by its name."""

    name: str = Field("adamw", description="adamw, sgd, lars, lion, or any class of torch.optim")
    lr: Positive = Field(5e-4, description="peak learning rate, reached after the warm-up")
    weight_decay: NonNegativeSchedulable = Field(
        0.2, description="weight decay, a number or a schedule; biases, norms and scales are exempt"
    )
    decay_all: bool = Field(False, description="also decay biases, norms and scales")
    groups: list[GroupSpec] = Field(
        default_factory=list,
        description="parameter groups with their own settings; the first match applies",
    )


class EvalSpec(Open):
    """A suite and when it runs. Keys that are not listed here belong to the suite's signature."""

    suite: str = Field(description="which suite")
    name: str | None = Field(None, description="name of its results; by default the suite's name")
    tower: str | None = Field(
        None, description="which tower is evaluated; by default that of the suite's modality"
    )
    width: PositiveInt | None = Field(
        None, description="read only so many of the first values of every feature"
    )
    every_epochs: PositiveInt | None = Field(None, description="epochs between two evaluations")
    every_steps: PositiveInt | None = Field(
        None, description="optimizer steps between two evaluations"
    )
    reference: bool = Field(
        False,
        description=(
            "what the run should retain: measured before the first step too, and the closing table"
            " shows which fraction of it was retained"
        ),
    )
    first: bool = Field(False, description="also before the first step")
    last: bool = Field(True, description="also after the last step")

    @property
    def title(self) -> str:
        """What its results are called."""
        suite = self.suite.rpartition(":")[2]
        return self.name or (suite if self.width is None else f"{suite}_{self.width}")


class ScorerSpec(Component):
    """What gives a query and a passage a score."""

    weight: Positive = Field(1.0, description="factor on its scores, which are added up")
    standardize: bool | None = Field(
        None,
        description=(
            "scale its scores to mean 0 and deviation 1 over the mined passages of each query; by"
            " default where there are several scorers"
        ),
    )


class SynthesisSpec(Section):
    """What `vlkd synthesize` makes training data of: queries, the passages that are mined for each,
    and what scores the pairs."""

    data: dict[str, Any] = Field(
        description="queries and passages: `reader: passages` with its keys, judged or not"
    )
    miners: list[str] = Field(
        min_length=1, description="text towers of this recipe, and bm25: what finds passages"
    )
    scorers: list[ScorerSpec] = Field(
        min_length=1, description="what scores a query with a passage; several are added up"
    )
    relations: Annotated[int, Field(ge=2)] = Field(
        10, description="passages of each query: the positive and its negatives"
    )
    depth: PositiveInt = Field(50, description="passages that each miner finds for a query")
    similarity: Literal["cosine", "dot"] = Field(
        "cosine", description="by which towers mine and score"
    )
    sampling: Literal["random", "top"] = Field(
        "random", description="which of the mined passages are negatives"
    )
    positive: Literal["first", "judged"] = Field(
        "first",
        description="the first mined passage, or each passage that is judged relevant",
    )
    seed: NonNegativeInt = Field(0, description="seed of random sampling")


class Recipe(Section):
    """Towers, what aligns them, on which data, for how long, and how the outcome is measured."""

    towers: dict[str, TowerSpec]
    distillers: list[DistillerSpec] = Field(default_factory=list)
    data: DataSpec | None = None
    train: TrainSpec = TrainSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    evals: list[EvalSpec] = Field(default_factory=list)
    synthesis: SynthesisSpec | None = None
    reports: list[str | Component] = ["csv"]

    _written: dict[tuple[str | int, ...], str] = PrivateAttr(default_factory=dict)

    def remember_written(self, texts: dict[tuple[str | int, ...], str]) -> None:
        """Note how the texts were written that `${VARIABLES}` were resolved in, by their paths."""
        self._written = texts

    def written(self) -> dict[tuple[str | int, ...], str]:
        """Path -> text with its `${VARIABLES}`; what is saved holds these texts."""
        return dict(self._written)

    @model_validator(mode="after")
    def _has_towers(self) -> Recipe:
        if not self.towers:
            raise ValueError("a recipe needs at least one tower")
        return self
