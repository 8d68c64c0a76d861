"""What a run can be told: typed settings, read from TOML layers and ``--set`` overrides.

The defaults written here *are* the ``default`` preset. Layers go on top of them, later ones winning:
preset, ``--config`` files, ``--set section.key=value``. Every layer is checked against these dataclasses,
so that a misspelt key or a wrong type is refused before any work starts.
"""

from __future__ import annotations

import json
import math
import tomllib
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")

PRESETS = ("smoke", "default", "full")


class ConfigError(ValueError):
    """What the user asked for cannot be run as written; the message says what to change."""


def setting(
    default: T,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    file: bool = False,
    names: tuple[str, ...] = (),
) -> T:
    """Declare a field of a settings section.

    Args:
        default: value in the ``default`` preset.
        help: one line for the reader of a configuration.
        low: smallest allowed value; for a list, of each item.
        high: largest allowed value.
        above: exclusive lower bound.
        file: the value may name a file or folder, whose content then counts as part of the setting.
        names: values of such a setting that are names, never files.

    Returns:
        A dataclass field, typed as its value so that declarations read naturally.
    """
    return field(
        default=default,
        metadata={"help": help, "low": low, "high": high, "above": above, "file": file, "names": names},
    )


@dataclass(frozen=True)
class Section:
    """Base of all sections: checks every value's type and range when it is built.

    Raises:
        ConfigError: naming ``section.key`` and the offending value.
    """

    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for item in fields(self):
            checked = check_value(type(self), item, getattr(self, item.name))
            object.__setattr__(self, item.name, checked)
        self.check_together()

    def check_together(self) -> None:
        """Check what involves several settings at once; nothing by default."""


@dataclass(frozen=True)
class PrepareConfig(Section):
    """Reading the logs."""

    name: ClassVar[str] = "prepare"
    n_categories: int = setting(120, "categories modelled, those bought by most users", low=2)


@dataclass(frozen=True)
class TextConfig(Section):
    """Turning a user's history into text."""

    name: ClassVar[str] = "text"
    max_tokens: int = setting(160, "longest user text, in tokens", low=8, high=512)
    re_encode_weeks: int = setting(4, "weeks between two encodings of a user", low=1)
    max_items: int = setting(36, "purchases named in a user's text", low=1)


PRECISIONS = ("fp32", "bf16", "int8", "auto")


@dataclass(frozen=True)
class EncoderConfig(Section):
    """The BERT user encoder."""

    name: ClassVar[str] = "encoder"
    preset: str = setting(
        "tiny", "'tiny', 'minilm', or the folder of a BERT", file=True, names=("tiny", "minilm")
    )
    layers: int = setting(2, "transformer layers (tiny only)", low=1)
    width: int = setting(128, "hidden width (tiny only)", low=8)
    heads: int = setting(2, "attention heads (tiny only)", low=1)
    vocabulary: int = setting(4096, "WordPiece vocabulary (tiny only)", low=200)
    embedding: int = setting(64, "width d of the user and category embeddings", low=1)
    precision: str = setting(
        "fp32",
        "of embedding users: 'fp32', alike on every CPU; 'bf16'; 'int8'; 'auto' for the fastest here",
    )
    dropout: float = setting(0.1, "dropout probability", low=0.0, high=0.9)

    def check_together(self) -> None:
        """A preset must be named, a precision known, and the heads share the width equally."""
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"encoder.precision: must be one of {', '.join(PRECISIONS)}, got {self.precision!r}"
            )
        if not self.preset:
            raise ConfigError("encoder.preset: must not be empty")
        if self.width % self.heads:
            raise ConfigError(
                f"encoder.width: {self.width} cannot be divided among encoder.heads = {self.heads}"
            )


@dataclass(frozen=True)
class PretrainConfig(Section):
    """Masked-language and next-basket pretraining, then habits."""

    name: ClassVar[str] = "pretrain"
    epochs: int = setting(1, "passes over the texts", low=0)
    batch_size: int = setting(32, "texts a step", low=1)
    learning_rate: float = setting(1e-3, "peak learning rate of AdamW", above=0.0)
    mask_probability: float = setting(0.15, "share of tokens to predict", above=0.0, high=0.9)
    weight_decay: float = setting(0.01, "weight decay of AdamW", low=0.0)
    max_texts: int = setting(4_000, "texts sampled from the training weeks", low=1)
    habit_epochs: int = setting(1, "passes over all texts to learn what they say of habits", low=0)
    habit_learning_rate: float = setting(1e-3, "peak learning rate of these passes", above=0.0)


@dataclass(frozen=True)
class FinetuneConfig(Section):
    """Multi-task fine-tuning of the response model."""

    name: ClassVar[str] = "finetune"
    epochs: int = setting(1, "most passes over the training weeks", low=1)
    batch_size: int = setting(64, "user-weeks a step", low=1)
    learning_rate: float = setting(1e-4, "peak learning rate of the encoder", above=0.0)
    head_learning_rate: float = setting(5e-3, "peak learning rate of the response heads", above=0.0)
    weight_decay: float = setting(0.01, "weight decay of AdamW", low=0.0)
    patience: int = setting(2, "epochs without improvement on the tuning weeks before stopping", low=1)
    max_texts: int = setting(8_000, "texts of an epoch at most, drawn anew for each", low=1)
    accumulate: int = setting(1, "batches whose gradients are added up before a step", low=1)
    item_dropout: float = setting(0.15, "share of a text's items left out at random", low=0.0, high=0.9)
    habit_weight: float = setting(
        1.0, "weight of reconstructing a user's purchase rates from the embedding", low=0.0
    )
    lora_rank: int = setting(0, "rank of LoRA's weights; 0 trains all of BERT", low=0)
    label_share: float = setting(
        1.0,
        "share of households whose purchases are used as labels; below 1 to see what few would do",
        above=0.0,
        high=1.0,
    )
    ensemble: int = setting(1, "encoders fine-tuned from different seeds, used side by side", low=1)


@dataclass(frozen=True)
class BacktestConfig(Section):
    """Scoring of the response model on the reported weeks, beside its peers."""

    name: ClassVar[str] = "backtest"
    n_bootstrap: int = setting(500, "resamples of households behind each interval", low=10)
    lightgbm_rows: int = setting(
        12_000_000, "most rows (user, week, category) given to the LightGBM peer", low=1000
    )
    lightgbm_trials: int = setting(
        0, "random-search trials to tune LightGBM anew; 0 takes the stored winner of such a search", low=0
    )


@dataclass(frozen=True)
class SimulatorsConfig(Section):
    """The simulator ensemble: policies train on some and are judged by others."""

    name: ClassVar[str] = "simulators"
    n_train: int = setting(3, "simulators that train policies", low=1)
    n_judge: int = setting(3, "simulators that judge them, fitted on other users", low=1)


RECOMMENDERS = ("purchase", "uplift_per_cost")
PACINGS = ("pid", "re-solve")


@dataclass(frozen=True)
class MarketConfig(Section):
    """The market and its budget. Money is in the log's currency."""

    name: ClassVar[str] = "market"
    n_users: int = setting(0, "most users that policies are judged on; 0 takes all held out", low=0)
    horizon_weeks: int = setting(8, "length of a campaign, in weeks", low=1)
    budget_per_user: float = setting(0.05, "subsidy budget of a campaign, per user", above=0.0)
    margin_rate: float = setting(0.28, "contribution margin as a share of spend", above=0.0, high=1.0)
    catalogue: str = setting(
        "", "path of an offer catalogue; empty takes the built-in one", file=True, names=("",)
    )
    recommender: str = setting(
        "purchase", "what fills the recommended slots: 'purchase' probability or 'uplift_per_cost'"
    )
    pacing: str = setting(
        "pid",
        "what corrects a campaign that strays from its plan: 'pid', a controller on spend against plan, or "
        "'re-solve', each week's share of the money left",
    )
    resample_weeks: int = setting(
        0,
        "length of the blocks of weeks that a campaign's calendar is drawn in; 0 takes the real weeks",
        low=0,
    )
    re_encode_weeks: int = setting(
        0,
        "weeks of a campaign between two encodings of its users; one takes a CPU about as long as 500 of the "
        "market's weeks, with BERT 'tiny'; 0 keeps the embeddings of the start",
        low=0,
    )

    def check_together(self) -> None:
        """The recommender and the pacing must be known."""
        for key, value, known in (
            ("recommender", self.recommender, RECOMMENDERS),
            ("pacing", self.pacing, PACINGS),
        ):
            if value not in known:
                raise ConfigError(f"market.{key}: must be one of {', '.join(known)}, got {value!r}")


@dataclass(frozen=True)
class PpoConfig(Section):
    """Training of the PPO policy."""

    name: ClassVar[str] = "ppo"
    total_steps: int = setting(3_000_000, "user-weeks of experience", low=1)
    n_envs: int = setting(4096, "users that act side by side", low=1)
    learning_rate: float = setting(1.5e-3, "peak learning rate of Adam, falling to a fiftieth", above=0.0)
    n_epochs: int = setting(4, "passes over each rollout", low=1)
    batch_size: int = setting(2048, "decisions a gradient step", low=2)
    gae_lambda: float = setting(0.7, "lambda of generalised advantage estimation", low=0.0, high=1.0)
    discount_factor: float = setting(1.0, "discount of later rewards", above=0.0, high=1.0)
    entropy: float = setting(0.02, "weight of the entropy bonus at the start", low=0.0)
    final_entropy: float = setting(0.006, "weight of the entropy bonus at the end", low=0.0)
    clip_range: float = setting(0.2, "PPO clip range", above=0.0, high=1.0)
    hidden: int = setting(64, "width of the policy's hidden layers", low=1)
    temperature: float = setting(
        0.3, "softmax temperature of the policy that is judged and exported; training is at 1", above=0.0
    )


@dataclass(frozen=True)
class EvaluateConfig(Section):
    """Judging policies on the market and from logged data."""

    name: ClassVar[str] = "evaluate"
    campaigns: int = setting(12, "campaigns simulated for each policy", low=1)
    frontier_campaigns: int = setting(
        3, "campaigns, at most, at budgets that only show what more money brings", low=1
    )
    log_users: int = setting(2000, "users in the logged data for off-policy evaluation", low=2)
    n_bootstrap: int = setting(1000, "bootstrap resamples of an interval", low=2)
    budgets: tuple[float, ...] = setting(
        (0.5, 1.0, 2.0), "budgets to compare at, as multiples of market.budget_per_user", above=0.0
    )
    behaviour_exploration: float = setting(
        0.1, "share of uniformly random decisions in the logging policy", above=0.0, high=1.0
    )

    def check_together(self) -> None:
        """At least one budget."""
        if not self.budgets:
            raise ConfigError("evaluate.budgets: give at least one multiple")


@dataclass(frozen=True)
class ExportConfig(Section):
    """What is deployed beside the policy."""

    name: ClassVar[str] = "export"
    messages: str = setting(
        "", "TOML file of your own message texts; empty takes the built-in ones", file=True, names=("",)
    )


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run, one attribute a section."""

    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    text: TextConfig = field(default_factory=TextConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    backtest: BacktestConfig = field(default_factory=BacktestConfig)
    simulators: SimulatorsConfig = field(default_factory=SimulatorsConfig)
    market: MarketConfig = field(default_factory=MarketConfig)
    ppo: PpoConfig = field(default_factory=PpoConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The settings as plain tables, ready for JSON or for `build_config`."""
        return {item.name: section_to_dict(getattr(self, item.name)) for item in fields(self)}

    def to_toml(self) -> str:
        """The settings as TOML with each key's help beside it; reads back with ``--config``."""
        lines = []
        for item in fields(self):
            section: Section = getattr(self, item.name)
            lines += [f"# {(type(section).__doc__ or '').strip()}", f"[{item.name}]"]
            pairs = [(_toml(f.name, getattr(section, f.name)), f.metadata["help"]) for f in fields(section)]
            width = max(len(pair) for pair, _ in pairs)
            lines += [f"{pair:<{width}}  # {text}" for pair, text in pairs] + [""]
        return "\n".join(lines)


SECTIONS: dict[str, type[Section]] = {
    name: section for name, section in get_type_hints(RunConfig).items() if issubclass(section, Section)
}


def section_to_dict(section: Section) -> dict[str, Any]:
    """One section as a plain table; tuples become lists, as they would in JSON."""
    values = {item.name: getattr(section, item.name) for item in fields(section)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def check_value(section: type[Section], item: Field[Any], value: Any) -> Any:
    """Check one value against its field and return it in the field's type.

    Whole numbers are taken for floats and lists for tuples; nothing else is converted.

    Raises:
        ConfigError: wrong type, not finite, or out of range.
    """
    kind = get_type_hints(section)[item.name]
    where = f"{section.name}.{item.name}"
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        return tuple(_check_scalar(where, get_args(kind)[0], item.metadata, one) for one in value)
    return _check_scalar(where, kind, item.metadata, value)


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _check_scalar(where: str, kind: type, limits: Mapping[str, Any], value: Any) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    # `type(...) is`: a bool is an int to isinstance, but `epochs = true` is a mistake.
    if type(value) is not kind:
        raise ConfigError(f"{where}: expected {_KINDS[kind]}, got {value!r}")
    if isinstance(value, int | float):
        if not math.isfinite(value):
            raise ConfigError(f"{where}: expected a finite number, got {value!r}")
        low, high, above = limits["low"], limits["high"], limits["above"]
        if low is not None and value < low:
            raise ConfigError(f"{where}: must be at least {low:g}, got {value:g}")
        if above is not None and value <= above:
            raise ConfigError(f"{where}: must be above {above:g}, got {value:g}")
        if high is not None and value > high:
            raise ConfigError(f"{where}: must be at most {high:g}, got {value:g}")
    return value


def load_config(
    preset: str = "default", files: Iterable[Path] = (), overrides: Iterable[str] = ()
) -> RunConfig:
    """Layer a preset, TOML files and ``section.key=value`` overrides.

    Args:
        preset: one of `PRESETS`.
        files: TOML files, later ones winning.
        overrides: ``section.key=value`` strings, as given to ``--set``.

    Raises:
        ConfigError: naming the layer, the key and, for an unknown key, the nearest valid one.
    """
    if preset not in PRESETS:
        raise ConfigError(f"no preset {preset!r}; choose one of {', '.join(PRESETS)}")
    text = (resources.files("experiments") / "presets" / f"{preset}.toml").read_text("utf-8")
    base = build_config([(f"presets/{preset}.toml", _parse(text, f"presets/{preset}.toml"))])
    return override_config(base, files, overrides)


def override_config(base: RunConfig, files: Iterable[Path], overrides: Iterable[str]) -> RunConfig:
    """Layer TOML files and ``--set`` overrides over a configuration. See `load_config`."""
    layers: list[tuple[str, Mapping[str, Any]]] = [("the configuration so far", base.to_dict())]
    for path in files:
        try:
            layers.append((str(path), _parse(path.read_text("utf-8"), str(path))))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: is not UTF-8 text: {error.reason}") from error
    layers += [_parse_override(text) for text in overrides]
    return build_config(layers)


def build_config(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> RunConfig:
    """Build a configuration from (source, tables) layers over the defaults, later ones winning.

    Raises:
        ConfigError: naming the source.
    """
    merged: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for source, table in layers:
        for name, values in table.items():
            if name not in SECTIONS:
                raise ConfigError(f"{source}: {_unknown_section(name)}")
            if not isinstance(values, Mapping):
                raise ConfigError(f"{source}: {name}: expected a table [{name}], got {values!r}")
            known = {item.name: item for item in fields(SECTIONS[name])}
            for key, value in values.items():
                if key not in known:
                    raise ConfigError(f"{source}: {_unknown_key(name, key)}")
                try:
                    merged[name][key] = check_value(SECTIONS[name], known[key], value)
                except ConfigError as error:
                    raise ConfigError(f"{source}: {error}") from None
    # Built once, after all layers: settings that depend on each other may come from different layers.
    sections: dict[str, Any] = {name: SECTIONS[name](**values) for name, values in merged.items()}
    return RunConfig(**sections)


def _unknown_section(name: str) -> str:
    nearest = get_close_matches(name, SECTIONS, n=1, cutoff=0.0)[0]
    return f"unknown section {name!r}; the nearest valid one is {nearest!r} (sections: {', '.join(SECTIONS)})"


def _unknown_key(section: str, key: str) -> str:
    keys = [item.name for item in fields(SECTIONS[section])]
    elsewhere = [name for name, kind in SECTIONS.items() if key in {item.name for item in fields(kind)}]
    nearest = get_close_matches(key, keys, n=1, cutoff=0.0)[0]
    hint = f"; {key!r} is a key of {', '.join(elsewhere)}" if elsewhere else ""
    return f"unknown key '{section}.{key}'; the nearest valid one is '{section}.{nearest}'{hint}"


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: is not valid TOML: {error}") from error


def _parse_override(text: str) -> tuple[str, Mapping[str, Any]]:
    """Read ``section.key=value``; bare words are text, and commas make a list where one is due."""
    source = f"--set {text}"
    path, equals, raw = text.partition("=")
    section, dot, key = (part.strip() for part in path.partition("."))
    if not (equals and dot and section and key):
        raise ConfigError(f"{source}: expected section.key=value, for example ppo.total_steps=60000")
    kind = get_type_hints(SECTIONS[section]).get(key) if section in SECTIONS else None
    raw = raw.strip()
    if get_origin(kind) is tuple and not raw.startswith("["):
        raw = f"[{raw}]"
    try:
        parsed = tomllib.loads(f"value = {raw}")
    except tomllib.TOMLDecodeError:
        parsed = {"value": raw}
    # Text is taken as written, so that a folder may be called 2017; quotes are optional.
    bare_text = kind is str and not isinstance(parsed["value"], str)
    value = raw if bare_text or len(parsed) != 1 else parsed["value"]
    return source, types.MappingProxyType({section: {key: value}})


def _toml(key: str, value: Any) -> str:
    if isinstance(value, tuple):
        return f"{key} = [{', '.join(_toml_scalar(one) for one in value)}]"
    return f"{key} = {_toml_scalar(value)}"


def _toml_scalar(value: Any) -> str:
    # JSON's text, numbers and booleans are TOML's too, once non-ASCII is left as it is.
    return json.dumps(value, ensure_ascii=False)
