"""What a modality supplies to the core, and how modalities are found.

A modality is a package that knows what a sample is. It registers one object, a :class:`ModalityAdapter`, under the
entry-point group ``layersync.modalities``; the built-in image, audio and motion packages use the same door. The way of
one sample through an adapter::

    ExampleDataset[i] -> Example(sample, condition)          raw: pixels, a waveform, a pose sequence
    Tokenizer.encode([sample]) -> [stored]                   once per sample and variant, kept by the latent cache
    Tokenizer.latents(stored windows, noise) -> latents      at every step: normalised, what the backbone sees
    Backbone(x_t, t, condition, taps=..., mask=...)          the network that is trained
    Tokenizer.decode(latents) -> [sample]                    after sampling
    ModalityAdapter.render([sample], directory) -> files     what a person looks at or listens to

``layersync check NAME`` holds an adapter to what is said here; so does :class:`layersync.testing.AdapterConformance`.
"""

from __future__ import annotations

import inspect
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, Self, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, field_validator, model_validator
from torch import Tensor, nn

from layersync.core.errors import InputError
from layersync.core.plugin import (
    FAILURES,
    GROUPS,
    Plugin,
    PluginError,
    calling,
    class_of,
    load_class,
    reason,
    registered,
    reported,
    signature,
)

if TYPE_CHECKING:
    from layersync.core.features import FeatureExtractorFactory, Metric

API = 1
"""Number of the contract between the core and an adapter, which an adapter says as ``api``. It rises with every change
of :class:`ModalityAdapter`, or of what its methods give, that an adapter written before would not meet."""
MODALITY_GROUP = GROUPS[0]
SECTIONS = ("data", "tokenizer", "backbone")
"""Sections of a recipe whose keys belong to the modality."""
Split = Literal["train", "test"]


class Settings(BaseModel):
    """Keys of a recipe: typed, complete, none to spare."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _no_truth_for_numbers(cls, content: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """YAML's yes and true are no numbers, although Python counts them as 1."""
        made = handler(content)
        for name, value in content.items() if isinstance(content, dict) else ():
            if _counted(value, getattr(made, name, value)):
                raise ValueError(f"{name}: input should be a number or a word, not {value}")
        return made


def _counted(given: object, made: object) -> bool:
    """Whether a truth value in ``given`` has become a number."""
    if isinstance(given, bool):
        return isinstance(made, int | float) and not isinstance(made, bool)
    if isinstance(given, list) and isinstance(made, list | tuple):
        return any(map(_counted, given, made))
    return False


class Section(Settings):
    """A part of a recipe whose ``name`` chooses what the part configures."""

    name: str

    def latent_spec(self) -> LatentSpec | None:
        """Of a ``tokenizer`` section: its latents, from settings alone. ``None`` where only weights or data say."""
        return None

    def stored_channels(self) -> int | None:
        """Of a ``tokenizer`` section: channels on disk, where they are not those of :meth:`latent_spec`."""
        return None


@dataclass(frozen=True)
class Example:
    """One raw sample and what it is conditioned on.

    ``sample`` is the modality's own type and says everything about itself (a clip carries its sample rate, a motion
    its frame rate). ``condition`` may hold ``label`` (an index into ``ExampleDataset.classes``) and ``text``, one
    caption or several that say the same in other words. ``source`` is the file or record that it came from, for
    messages.
    """

    sample: Any
    condition: Mapping[str, int | str | tuple[str, ...]] = field(default_factory=dict)
    source: str = ""

    @property
    def captions(self) -> tuple[str, ...]:
        """Its texts; empty where it has none."""
        text = self.condition.get("text", ())
        return (text,) if isinstance(text, str) else tuple(text)  # type: ignore[arg-type]

    @property
    def label(self) -> int:
        """Its label; -1 where it has none. Raises :class:`InputError` for one that is no integer."""
        given = self.condition.get("label", -1)
        try:
            return operator.index(given)  # type: ignore[arg-type]
        except TypeError:
            raise InputError(
                f"{self.source or 'an example'}: has the label {given!r}; a label is an integer, an index into the "
                f"classes, or -1 for none"
            ) from None


class ExampleDataset(ABC):
    """Raw samples, indexed from 0, always in the same order.

    ``fingerprint`` is a short string that changes whenever a sample, a label or the order does: caches are keyed by it.
    ``classes`` names the labels, and is empty for unlabelled data. ``variants`` names the deterministic augmentations
    that the latent cache stores beside each other (image: flip; motion: mirror); the first is the sample as it is.
    ``reference_variants`` says which of them belong to the reference set that scores are taken against. Indexing
    raises :class:`InputError` for a sample that cannot be read; ``on_error`` says whether the latent cache then stops,
    or skips and counts it. ``concurrent`` says that threads may read several samples at the same time, as where
    each is a file that is opened, read and closed: the latent cache is then built faster.
    """

    fingerprint: str
    classes: tuple[str, ...] = ()
    variants: tuple[str, ...] = ("original",)
    reference_variants: tuple[str, ...] = ("original",)
    on_error: Literal["stop", "skip"] = "stop"
    concurrent: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Example: ...

    def variant(self, sample: Any, name: str) -> Any:
        """``sample`` as its variant ``name``; called for the names in ``variants`` only."""
        return sample


@dataclass(frozen=True)
class DataFacts:
    """What a ``data`` section says of its training split before it is read; ``None``: only the data say it."""

    num_examples: int | None = None
    num_classes: int | None = None
    num_variants: int = 1


class DataConfig(Section, ABC):
    """The ``data`` section of a recipe. ``path`` may hold ``~`` and ``$VARIABLES``: expanded on use, never on disk."""

    packaged: ClassVar[str] = ""
    """For data that ships in a package: what it is, in one line for ``layersync data list``. Empty for user's data."""
    split: Split = "train"

    @field_validator("path", check_fields=False)
    @classmethod
    def _names_something(cls, path: str | None) -> str | None:
        if isinstance(path, str) and not path.strip() and path != cls.model_fields["path"].default:
            raise ValueError("names nothing; a file or folder is wanted")
        return path

    @abstractmethod
    def build(self, split: Split) -> ExampleDataset:
        """The samples of ``split``. Raises :class:`InputError` for a missing path or a folder with nothing readable."""

    def facts(self) -> DataFacts:
        """What is known without reading; for estimates (:mod:`layersync.core.cost`)."""
        return DataFacts()

    def prepare(self) -> Path | None:
        """Fetch what is missing and return where it lies; ``None`` when there is nothing to fetch."""
        return None


@dataclass(frozen=True)
class LatentSpec:
    """Shape of one latent. ``grid`` is (height, width), (mels, frames), (frames,) or (height, width, frames).

    Layout is (channels, *grid), or (frames, channels) where ``sequence`` is true. Where ``variable`` is true the last
    axis of the grid counts frames: clips longer than it are cut to windows, shorter ones padded and masked.
    """

    channels: int
    grid: tuple[int, ...]
    sequence: bool = False
    variable: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one latent, without the batch axis."""
        return (*self.grid, self.channels) if self.sequence else (self.channels, *self.grid)

    @property
    def num_frames(self) -> int | None:
        """Length of the axis that a mask runs over; ``None`` for latents that are always whole."""
        return self.grid[-1] if self.variable else None

    @property
    def frame_axis(self) -> int:
        """Axis of the frames in one latent (without the batch axis)."""
        return 0 if self.sequence else len(self.grid)


@dataclass(frozen=True)
class ConditionSpec:
    """What a backbone is conditioned on: ``num_classes`` labels (0: none), text embeddings of ``text_channels``."""

    num_classes: int = 0
    text_channels: int = 0


class BackboneOutput(NamedTuple):
    """``prediction`` shaped as ``x_t``; ``features`` maps each tap to (batch, tokens, channels); ``token_mask``."""

    prediction: Tensor
    features: dict[int, Tensor]
    token_mask: Tensor | None


class Backbone(nn.Module, ABC):
    """A network with ``depth`` blocks, numbered from 1, that draws nothing at random by itself."""

    depth: int

    @abstractmethod
    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Mapping[str, Tensor],
        *,
        taps: Sequence[int] = (),
        mask: Tensor | None = None,
    ) -> BackboneOutput:
        """Predict from ``x_t`` at times ``t`` (batch,); return the outputs of the blocks in ``taps`` too.

        ``condition`` may hold ``label`` (batch,) int64, where ``num_classes`` stands for "none", and ``text``
        (batch, tokens, channels) with ``text_mask`` (batch, tokens). ``mask`` (batch, frames) is True on real frames:
        what lies behind the end changes no prediction of a real frame. Raises ValueError for a tap that is no block
        (:func:`check_taps`).
        """


def check_taps(taps: Sequence[int], depth: int) -> None:
    """Raise ValueError for a tap that is none of the blocks 1 to ``depth``."""
    for tap in taps:
        if not 1 <= tap <= depth:
            raise ValueError(f"tap {tap} is outside of blocks 1 to {depth}")


class Tokenizer(ABC):
    """Samples to latents and back. Whole clips are stored; windows are cut from what is stored when it is read.

    ``latent`` describes what the backbone sees. ``fingerprint`` names everything that changes what :meth:`encode`
    returns (settings, weights), but not the statistics of :meth:`fit`. ``stored_channels`` may exceed
    ``latent.channels`` (a VAE stores mean and standard deviation); ``stochastic`` says that :meth:`latents` uses its
    noise.
    """

    latent: LatentSpec
    fingerprint: str
    stochastic: bool = False
    round_trip_tolerance: float | None = 1e-3
    """Largest relative error of latents that were decoded and encoded again: root mean square of the difference over
    that of the latents, on real frames. ``layersync check`` holds :meth:`encode` and :meth:`decode` to it; lossy
    tokenizers (phases that are estimated, say) declare more than the default; ``None`` where only weights can tell."""

    @abstractmethod
    def encode(self, samples: Sequence[Any]) -> list[Tensor]:
        """Stored form of each sample: float32, laid out as ``latent`` but as long as the clip is."""

    def fit(self, stored: Iterable[Tensor]) -> None:
        """Take statistics over the stored training set, such as a mean and deviation per channel.

        ``stored`` can be walked more than once.
        """

    def state(self) -> dict[str, Tensor]:
        """What :meth:`fit` found; kept in the run as ``tokenizer.safetensors``."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state` returned. Raises :class:`InputError` when it does not fit."""

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Raise :class:`InputError` where latents of a run with that state are on a scale that cannot be this one's."""

    def latents(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """(batch, ...) stored windows to latents: normalised, or drawn from moments with ``noise``."""
        return stored

    def prepare_decoding(self) -> None:
        """Load what :meth:`decode` needs and training does not. Called before sampling, so that it fails early."""

    @abstractmethod
    def decode(self, latents: Tensor, mask: Tensor | None = None) -> list[Any]:
        """Samples from (batch, ...) latents; ``mask`` (batch, frames) says how much of each is real."""

    def window(self, sample: Any, position: float) -> Any:
        """The excerpt of a raw sample that one latent covers, ``position`` in [0, 1) of the room there is.

        It is what scores compare generated samples with, so it must be the sample-space twin of cutting the stored
        form: first frame ``floor(position * (frames - num_frames + 1))``, all of the clip when that is shorter.
        """
        return sample


@runtime_checkable
class ModalityAdapter(Protocol):
    """Everything that the core asks of a modality: a class without constructor arguments.

    ``data`` and ``config`` are of the classes that ``sections`` lists, and samples of the modality's own type.
    """

    @property
    def api(self) -> int:
        """The contract that the adapter is written for: the number :data:`API` when it was written."""
        ...

    @property
    def name(self) -> str:
        """What recipes and commands call the modality; the name of its entry point."""
        ...

    @property
    def sections(self) -> Mapping[str, Mapping[str, type[Section]]]:
        """Of ``data``, ``tokenizer`` and ``backbone`` the config class of each name that a recipe may use.

        The first name of ``tokenizer`` and ``backbone`` is the default. Classes of ``data`` are :class:`DataConfig`.
        """
        ...

    def dataset(self, data: Any, split: Split) -> ExampleDataset:
        """Raw samples of a ``data`` section."""
        ...

    def tokenizer(self, config: Any) -> Tokenizer:
        """The tokenizer of a ``tokenizer`` section, not fitted yet."""
        ...

    def backbone(self, config: Any, latent: LatentSpec, condition: ConditionSpec) -> Backbone:
        """The network of a ``backbone`` section, with new weights."""
        ...

    def features(self) -> Mapping[str, FeatureExtractorFactory]:
        """Feature extractors by name; an ``x`` brings the metrics ``fd-x``, ``precision-x`` and so on."""
        ...

    def metrics(self) -> Mapping[str, Metric]:
        """The modality's own scores of generated samples alone."""
        ...

    def aliases(self) -> Mapping[str, str]:
        """What the field calls a metric: ``fid`` for ``fd-inception-v3``."""
        ...

    def open_samples(self, path: Path) -> ExampleDataset:
        """Anybody's samples, all of them, in the order of their names: a folder or a file.

        Examples carry ``text`` where captions lie beside the samples. InputError for what cannot be read.
        """
        ...

    def archive(self, samples: Sequence[Any], labels: Sequence[int] | None, path: Path) -> None:
        """Write all samples in one ``.npz``, which :meth:`open_samples` and other programs read."""
        ...

    def classifier_input(self, samples: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        """What the in-domain classifiers read: (batch, channels, *grid) float32 of order 1, and a frame mask.

        The grid is 1-D or 2-D; a mask (batch, frames) runs over its last axis.
        """
        ...

    def render(self, samples: Sequence[Any], directory: Path) -> list[Path]:
        """Write what a person looks at or listens to (PNG, WAV, GIF) and return the files.

        A file of one sample ends in its number, counted from 0, as ``000.png`` does: ``layersync sample`` writes the
        sample's text beside it, ``000.txt``.
        """
        ...


def protocol_members() -> dict[str, property | Callable[..., Any]]:
    """Attributes and methods of :class:`ModalityAdapter` by name; their docstrings say what each is for."""
    return {name: member for name, member in vars(ModalityAdapter).items() if not name.startswith("_")}


@cache
def load_adapter(name: str) -> ModalityAdapter:
    """The adapter of modality ``name``.

    Whatever a method of a plug-in's adapter raises is an :class:`InputError` that names package, class and method; its
    cause has the traceback.

    Raises:
        InputError: for a name that no package registers, or several do, and for a plug-in that cannot be imported or
            made, is written for another :data:`API`, or lacks a part of :class:`ModalityAdapter`. One line that names
            package, class and method.
    """
    plugin = load_class(MODALITY_GROUP, name, "modality")
    with reported(f"{plugin.owner}: reading its attributes"):  # which may run code of the class, or of its metaclass
        return _made(plugin, name)


def _made(plugin: Plugin, name: str) -> ModalityAdapter:
    owner, called = plugin.owner, plugin.loaded.__name__
    number = getattr(plugin.loaded, "api", None)
    if number != API:
        said = (
            "says no api number" if number is None or isinstance(number, property) else f"is written for api {number!r}"
        )
        raise InputError(f"{owner}: {called} {said}; this layersync has api {API} (class attribute api = {API})")
    try:
        adapter: ModalityAdapter = plugin.loaded()
    except FAILURES as error:
        raise InputError(f"{owner}: {called}() cannot be made without arguments: {reason(error)}") from error
    for member in protocol_members():
        _check_member(plugin, adapter, member)
    if adapter.name != name:
        raise InputError(f"{owner}: {called}.name is {adapter.name!r}; its entry point is called {name!r}")
    _check_sections(plugin, adapter.sections)
    if plugin.foreign:
        for member, wanted in protocol_members().items():
            if not isinstance(wanted, property):
                guarded = partial(_call, f"{owner}: {called}.{member}", getattr(adapter, member))
                object.__setattr__(adapter, member, guarded)  # its class may be a frozen one
    return adapter


def _call(where: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A method of a plug-in's adapter; what it raises says ``where``."""
    with reported(where):
        return method(*args, **kwargs)


def installed_adapters() -> tuple[dict[str, ModalityAdapter], dict[str, InputError]]:
    """Every modality that loads, and the error of every other, each by name and in alphabetical order."""
    adapters, broken = {}, {}
    for name in sorted(registered(MODALITY_GROUP)):
        try:
            adapters[name] = load_adapter(name)
        except InputError as error:
            broken[name] = error
    return adapters, broken


def _check_member(plugin: Plugin, adapter: ModalityAdapter, name: str) -> None:
    """InputError unless the adapter has the attribute, or a method that takes the arguments of the protocol's."""
    wanted, where = protocol_members()[name], f"{plugin.loaded.__name__}.{name}"
    purpose = (inspect.getdoc(wanted) or "").splitlines()[0]
    missing = inspect.getattr_static(plugin.loaded, name, None) is wanted  # one that inherits from the protocol
    try:
        found = None if missing else getattr(adapter, name)
    except AttributeError:
        missing = True
    except FAILURES as error:
        raise InputError(f"{plugin.owner}: {where} raised {reason(error)}") from error
    if missing:
        what = "attribute" if isinstance(wanted, property) else f"method {signature(wanted)}"
        raise InputError(f"{plugin.owner}: {where} is missing, {what}: {purpose}")
    if isinstance(wanted, property):
        return
    if not callable(found):
        raise InputError(f"{plugin.owner}: {where} is {found!r}, not a method {signature(wanted)}: {purpose}")
    arguments = [parameter for parameter in inspect.signature(wanted).parameters if parameter != "self"]
    try:
        inspect.signature(found).bind(*arguments)
    except TypeError:
        raise InputError(
            f"{plugin.owner}: {where}{inspect.signature(found)} cannot be called as {signature(wanted)}: {purpose}"
        ) from None
    except ValueError:  # classes and functions of C that do not say their arguments
        raise InputError(
            f"{plugin.owner}: {where} is {found!r}, which does not say its arguments; a method {signature(wanted)}: "
            f"{purpose}"
        ) from None


def _check_sections(plugin: Plugin, sections: object) -> None:
    where = f"{plugin.owner}: {plugin.loaded.__name__}.sections"
    for section in SECTIONS:
        kinds = sections.get(section) if isinstance(sections, Mapping) else None
        if not isinstance(kinds, Mapping) or not kinds:
            raise InputError(f"{where}: {section!r} is missing; it maps each name to its config class, not {kinds!r}")
        parent = DataConfig if section == "data" else Section
        for name, kind in kinds.items():
            if not isinstance(name, str):
                raise InputError(f"{where}: {section} has the name {name!r}; a name is a string, as recipes write it")
            if not (isinstance(kind, type) and issubclass(kind, parent)):
                raise InputError(f"{where}: {section}.{name} is {kind!r}, which is no subclass of {parent.__name__}")


def read_example(dataset: ExampleDataset, index: int) -> Example | None:
    """An example; ``None`` for one that cannot be read, where the data set says to skip such."""
    try:
        with calling(dataset, "__getitem__"):
            return dataset[index]
    except InputError as error:
        if dataset.on_error != "skip" or isinstance(error, PluginError):  # which is no matter of the sample
            raise
        return None


def fingerprint_of(thing: ExampleDataset | Tokenizer) -> str:
    """Its ``fingerprint``. Raises :class:`InputError` where it has none."""
    with calling(thing, "fingerprint"):
        found = getattr(thing, "fingerprint", None)
    if not isinstance(found, str) or not found:
        raise InputError(
            f"{class_of(thing)}.fingerprint is {'missing' if found is None else repr(found)}; a text that changes "
            f"whenever what it stands for does: what is encoded is kept under it"
        )
    return found


def to_device(condition: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A copy of ``condition`` on ``device``."""
    return {key: value.to(device) for key, value in condition.items()}
