"""The recipe: one typed, complete description of a training run.

A recipe names a modality and fills ten sections. The keys of ``data``, ``tokenizer`` and ``backbone`` belong to the
modality's adapter, those of ``regularizer`` to the regularizer's class; the rest is here. Every default is written
out in ``RUN/recipe.yaml``. Recipes are read in :mod:`layersync.core.recipe_reading`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field, SerializeAsAny, field_validator, model_validator

from layersync.core.adapter import DataConfig, ModalityAdapter, Section, Settings, Split, load_adapter
from layersync.core.errors import InputError
from layersync.core.interpolant import INTERPOLANTS, DdpmCosine, Interpolant, Prediction
from layersync.core.regularizer.base import RegularizerConfig
from layersync.core.solver import ANCESTRAL
from layersync.core.text import Pooling

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Objective(Settings):
    """What is regressed: interpolant, prediction, and how training times are drawn."""

    interpolant: Literal["linear", "trigonometric", "variance-preserving", "ddpm-cosine"] = "linear"
    prediction: Prediction = "velocity"
    time: Literal["uniform", "logit-normal"] = "uniform"
    time_mean: float = Field(0.0, description="Mean of the normal behind logit-normal times.")
    time_std: float = Field(1.0, gt=0, description="Deviation of the normal behind logit-normal times.")
    shift: float = Field(1.0, gt=0, description="Above 1 moves training times towards noise (SD3, eq. 23).")
    num_timesteps: int = Field(1000, ge=2, description="Steps of ddpm-cosine.")

    @property
    def discrete(self) -> bool:
        """Whether the path is one of separate steps."""
        return self.interpolant == DdpmCosine.name

    @model_validator(mode="after")
    def _has_prediction(self) -> Objective:
        if self.discrete and self.prediction not in DdpmCosine.predictions:
            raise ValueError(
                f"prediction: {self.prediction} is none of {self.interpolant}, which has "
                f"{' and '.join(DdpmCosine.predictions)} (MDM's is data)"
            )
        return self

    def build(self) -> Interpolant:
        """The interpolant with its prediction."""
        if self.discrete:
            return DdpmCosine(self.prediction, self.num_timesteps)
        return INTERPOLANTS[self.interpolant](self.prediction)


class Condition(Settings):
    """What the network is conditioned on. Whatever it is, ``train.condition_dropout`` drops it for guidance."""

    labels: Literal["auto", "required", "ignored"] = Field(
        "auto", description="auto: class labels where the data has them and no text is read."
    )
    text_encoder: str | None = Field(
        None,
        min_length=1,
        description="minilm, or a text encoder of transformers (hub id, folder); null: texts are not read.",
    )
    text_pooling: Pooling = Field("tokens", description="tokens: one embedding a token; pooled: one a text.")
    max_tokens: int = Field(32, ge=3, description="Longer texts are cut; begin and end of the text count too.")


class Optimizer(Settings):
    """AdamW and its learning rate over time."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(1.0e-4, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    warmup: int = Field(0, ge=0, description="Steps of linear warm-up from 0.")
    schedule: Literal["constant", "cosine"] = "constant"
    clip: float | None = Field(None, gt=0, description="Largest norm of the gradient; null leaves it as it is.")

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of step ``step`` (from 0) out of ``steps``."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.schedule == "constant":
            return self.lr * rise
        done = max(0, step - self.warmup) / max(1, steps - self.warmup)
        return self.lr * rise * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Train(Settings):
    """Length, batch, averaging, precision and bookkeeping of the training."""

    steps: Count = 1000
    batch_size: Count = Field(64, description="Samples a step over all processes and micro-batches.")
    accumulate: Count = Field(1, description="Micro-batches that a step is split into.")
    condition_dropout: Fraction = Field(0.1, description="Share of samples trained without their condition.")
    ema_decay: Fraction = 0.9999
    ema_ramp: bool = Field(True, description="Let the decay rise as (1 + n) / (10 + n) up to ema_decay.")
    precision: Literal["auto", "bf16", "tf32", "float32"] = Field(
        "auto", description="tf32: float32 throughout, products in TF32 on CUDA. auto: bf16 where there is hardware."
    )
    compile: bool = False
    gradient_checkpointing: bool = False
    checkpoint_every: Count = 1000
    keep: Count | None = Field(None, description="How many checkpoints stay; null keeps all.")
    keep_every: Count | None = Field(None, description="Of multiples of so many steps checkpoints stay beside these.")
    log_every: Count = 10
    init: str | None = Field(
        None, min_length=1, description="A run or checkpoint whose weights the training starts from."
    )
    init_partly: bool = Field(
        False, description="Of init take what fits, and start the rest anew: for other classes or another size."
    )

    def num_kept(self, beside: int = 0) -> int:
        """How many checkpoints are there at the end, and with ``beside`` more that have not gone yet."""
        total = -(-self.steps // self.checkpoint_every)
        if self.keep is None:
            return total
        newest = min(total, self.keep + beside)
        older = self.checkpoint_every * (total - newest)
        return newest + (older // math.lcm(self.checkpoint_every, self.keep_every) if self.keep_every else 0)


class Sample(Settings):
    """How samples are drawn; nothing here changes training."""

    solver: Literal["euler", "heun", "midpoint", "rk4", "dopri5", "euler-maruyama", "ddpm"] = "heun"
    steps: Count = Field(25, description="Intervals; dopri5 chooses its own.")
    guidance: float = Field(1.0, ge=0, description="1 is none: v = v_none + guidance (v_condition - v_none).")
    guidance_interval: tuple[Fraction, Fraction] = Field((0.0, 1.0), description="Guided for t in [low, high].")
    guidance_channels: Count | None = Field(None, description="Guide the first channels only; null guides all.")
    diffusion: Literal["constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing"] = "sigma"
    diffusion_scale: float = Field(1.0, gt=0)
    last_step: Literal["none", "mean", "tweedie", "euler"] = "mean"
    last_step_size: float = Field(0.04, gt=0, lt=1)
    atol: float = Field(1.0e-6, gt=0)
    rtol: float = Field(1.0e-3, gt=0)
    precision: Literal["float32", "tf32", "bf16"] = Field(
        "float32", description="tf32: float32 with products in TF32 on CUDA; bf16: by autocast."
    )
    batch_size: Count = 64

    @model_validator(mode="after")
    def _ordered(self) -> Sample:
        low, high = self.guidance_interval
        if low >= high:
            raise ValueError(f"guidance_interval: {[low, high]} is empty")
        if self.solver == "euler-maruyama" and self.last_step != "none" and self.steps < 2:
            raise ValueError("steps: euler-maruyama with a last_step takes at least 2")
        return self


class Evaluate(Settings):
    """What is measured, on how many samples, how often during training."""

    metrics: list[str] = Field(["fd-classifier"], min_length=1)
    num_samples: int = Field(1000, ge=2)
    every: Count | None = Field(
        None, description="Steps between held-out losses, and scores of a comparison; null: at the ends only."
    )
    reference: str = Field(
        "train",
        description="What samples are compared with: the split train or test, or a path to samples or statistics.",
    )
    conditions: Literal["train", "test", "stratified", "uniform"] = Field(
        "train",
        description="The split whose labels, texts and lengths the samples are drawn for; stratified: the training "
        "data's, each label exactly as often as its share says; uniform: each label as likely, as published code does.",
    )
    seed: int = Field(0, ge=0, lt=2**63)

    @field_validator("reference")
    @classmethod
    def _split_or_path(cls, value: str) -> str:
        if value not in get_args(Split) and not set(value) & set("/.$~\\"):
            raise ValueError(f"{value!r} is none of train, test, nor a path, such as ./{value or 'reference.npz'}")
        return value

    @property
    def reference_split(self) -> Split | None:
        """The split that samples are compared with; ``None`` where ``reference`` is a path."""
        return next((split for split in get_args(Split) if split == self.reference), None)


class Recipe(Settings):
    """A complete description of a run. Made by :func:`layersync.load_recipe`; ``adapter`` is the modality it is for."""

    modality: str
    seed: int = Field(0, ge=0, lt=2**63)
    data: SerializeAsAny[DataConfig]
    tokenizer: SerializeAsAny[Section]
    backbone: SerializeAsAny[Section]
    condition: Condition = Condition()
    objective: Objective = Objective()
    regularizer: SerializeAsAny[RegularizerConfig]
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    sample: Sample = Sample()
    evaluate: Evaluate = Evaluate()

    @property
    def adapter(self) -> ModalityAdapter:
        """The modality's adapter."""
        return load_adapter(self.modality)

    def to_mapping(self) -> dict[str, Any]:
        """Plain YAML types, every default written out."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """As written to ``RUN/recipe.yaml``."""
        return yaml.safe_dump(self.to_mapping(), sort_keys=False, default_flow_style=None, width=110)


UNGUIDED = "sample.guidance has no effect: the network is conditioned on nothing, neither labels nor texts"


def check_sampling(objective: Objective, sample: Sample) -> None:
    """Raise :class:`InputError` for a solver that cannot follow the objective's path."""
    discrete = objective.discrete
    if discrete != (sample.solver == ANCESTRAL):
        kind = "one of separate steps" if discrete else "continuous"
        right = ANCESTRAL if discrete else "heun, euler, midpoint, rk4, dopri5 or euler-maruyama"
        raise InputError(
            f"sample.solver: {sample.solver}, but the path {objective.interpolant} is {kind}; take {right}"
        )
    if discrete and not 2 <= sample.steps <= objective.num_timesteps:
        raise InputError(
            f"sample.steps: {sample.steps}; {ANCESTRAL} takes 2 to objective.num_timesteps, {objective.num_timesteps}"
        )


def ineffective(recipe: Recipe) -> list[str]:
    """One line for each setting of the core's sections that is set and can have no effect where it stands."""
    lines = []
    objective, sample, train, optimizer = recipe.objective, recipe.sample, recipe.train, recipe.optimizer
    if objective.time == "uniform" and (objective.time_mean, objective.time_std) != (0.0, 1.0):
        lines.append("objective.time_mean and time_std have no effect with time: uniform")
    if not objective.discrete and objective.num_timesteps != Objective().num_timesteps:
        lines.append(f"objective.num_timesteps has no effect with interpolant {objective.interpolant}")
    if sample.guidance == 1.0 and (sample.guidance_interval != (0.0, 1.0) or sample.guidance_channels is not None):
        lines.append("sample.guidance is 1: guidance_interval and guidance_channels have no effect")
    if sample.guidance != 1.0 and recipe.condition.labels == "ignored" and recipe.condition.text_encoder is None:
        lines.append(UNGUIDED)
    elif sample.guidance != 1.0 and train.condition_dropout == 0:
        lines.append("sample.guidance needs a network trained without conditions too: train.condition_dropout is 0")
    defaults = Sample()
    stochastic = ("diffusion", "diffusion_scale", "last_step", "last_step_size")
    if sample.solver != "euler-maruyama":
        changed = [key for key in stochastic if getattr(sample, key) != getattr(defaults, key)]
        if changed:
            lines.append(f"sample.{', sample.'.join(changed)}: no effect with solver {sample.solver}")
    elif sample.last_step == "none" and sample.last_step_size != defaults.last_step_size:
        lines.append("sample.last_step_size: no effect with last_step none")
    if sample.solver != "dopri5" and (sample.atol, sample.rtol) != (defaults.atol, defaults.rtol):
        lines.append(f"sample.atol and sample.rtol have no effect with solver {sample.solver}")
    if sample.solver == "dopri5" and sample.steps != defaults.steps:
        lines.append("sample.steps has no effect with solver dopri5, which chooses its own by sample.atol and rtol")
    condition, without = recipe.condition, Condition()
    if condition.text_encoder is None:
        unread = [key for key in ("text_pooling", "max_tokens") if getattr(condition, key) != getattr(without, key)]
        if unread:
            lines.append(f"condition.{', condition.'.join(unread)}: no effect without condition.text_encoder")
    if recipe.evaluate.conditions == "stratified" and condition.labels == "ignored":
        lines.append("evaluate.conditions: stratified evens out lengths alone where condition.labels is ignored")
    delay = getattr(getattr(recipe.regularizer, "schedule", None), "delay", 0)
    if delay >= train.steps:
        lines.append(f"regularizer.schedule.delay: {delay} is not below train.steps, {train.steps}: a baseline run")
    if train.keep_every is not None and train.keep is None:
        lines.append("train.keep_every has no effect without train.keep: all checkpoints stay")
    elif train.keep_every is not None and train.keep_every % train.checkpoint_every:
        lines.append(
            f"train.keep_every: {train.keep_every} is no multiple of checkpoint_every, {train.checkpoint_every}: only "
            f"checkpoints that are written can stay"
        )
    if train.init_partly and train.init is None:
        lines.append("train.init_partly has no effect without train.init")
    if optimizer.warmup > train.steps:
        lines.append(f"optimizer.warmup: {optimizer.warmup} steps are more than train.steps, {train.steps}")
    return lines
