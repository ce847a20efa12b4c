"""What a user asks of a study, checked before anything is computed."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from search.errors import UsageError
from search.files import read_text
from search.record_checks import MOST_TRIALS
from spaces.criteria import check_criterion
from spaces.granularity import CHOICES, SEARCHED, parts_in
from spaces.printable import LONGEST_WORD, shortened
from spaces.schedule import SCHEDULES
from spaces.search_space.limits import LARGEST_TARGET, check_mixable
from spaces.search_space.space import SEARCHED_SCHEDULES
from spaces.validation import percent_meant, unknown

GUIDED = "guided"
SAMPLERS = (GUIDED, "tpe", "nsga2", "gp", "random")
BUDGETS = ("trials", "timeout", "trial_timeout", "finalists")
"""Fields that may change when a study is resumed."""
RESERVED = ("artifacts", "cache", "mlflow.db", "mlflow.lock")
"""Names under the root that no study may take."""
MOST_STUDY_FILE = 2**20
"""Bytes of a STUDY.toml."""
SWITCHES = ("mixed", "seeds")
"""Fields that are true or false."""
SHARES = ("max_size", "min_size", "max_macs", "max_latency")
"""Limits."""


class ConfigError(UsageError, ValueError):
    """Options that make no study; one line names each, its value, what is valid and the remedy."""


class SearchConfig(BaseModel):
    """One study.

    Attributes:
        workload: built-in name, `package.module:factory` or `./file.py:factory`.
        study: its name and folder under `root`; default the workload's name.
        data: the only folder the workload looks for data in.
        weights: trained weights of the dense model; without it the model is trained once and cached.
        width: width factor of a built-in workload's network; default its own (1/8).
        trials: finished trials in total (complete, stopped early, failed).
        timeout: running seconds of the study, the scan's too, after which no further trial starts; what runs goes on.
        trial_timeout: seconds after which one trial's evaluation fails; a final may take as many times longer as it
            has epochs more. Dense training and the scan have no limit.
        max_size: the size limit, a share of the dense model.
        min_size: smallest size target; default a tenth of the limit, and more where `guided` finds only dead networks
            there. Equal to the limit, accuracy at that size is all that is searched.
        max_macs: a further limit, a share of the dense MACs.
        max_latency: a further limit, a share of the dense latency, predicted.
        min_accuracy: the smallest network of at least this validation accuracy is wanted: a share, or
            `dense-0.005` for 0.5 points below the dense model's.
        size_metric: what the limit binds on: `encoded` (bytes of the sparse file) or `nonzero`.
        speed: the third objective: `macs`, or `latency` as a table measured once on this machine predicts it.
        granularity: choices, one for a whole policy, or one a layer when `mixed`; `channel+kernel` and the like are a
            removal and then masks on what stays, for a whole policy only.
        mixed: let every layer have its own granularity.
        schedule: kinds to choose from.
        round_to: layers that lose channels keep a multiple of so many; 8 or 16 suit most kernels.
        criterion: which units go first; on the command line and in a STUDY.toml also `./file.py:function`.
        sampler: `guided`, or one of Optuna's: `tpe`, `nsga2`, `gp`, `random`.
        seeds: start with static allocations and the scan's, at most half of the trials.
        seed: of sampling, data order and augmentation.
        dense_seed: of the dense model's own training.
        finalists: front members fine-tuned at full length and tested; 0 leaves out finals and baselines.
        final_seeds: fine-tunes of each finalist and baseline.
        root: folder that holds everything a command writes.

    Raises:
        ConfigError: an unknown option (nearest match named), or a value outside its range; a `ValueError`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def __init__(self, **options: Any) -> None:
        for key in options:
            if key not in type(self).model_fields:
                raise ConfigError(unknown("option", key, type(self).model_fields))
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise ConfigError("; ".join(_one_line(problem) for problem in error.errors())) from None

    workload: str = "digits"
    study: str | None = None
    data: str | None = None
    weights: str | None = None
    width: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    trials: int = Field(default=24, ge=1)
    timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    trial_timeout: float | None = Field(default=None, gt=0, le=10**7, allow_inf_nan=False)
    max_size: float = Field(default=0.25, gt=0, le=1, allow_inf_nan=False)
    min_size: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    max_macs: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    max_latency: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    min_accuracy: str | None = None
    size_metric: Literal["encoded", "nonzero"] = "encoded"
    speed: Literal["macs", "latency"] = "macs"
    granularity: tuple[str, ...] = SEARCHED
    mixed: bool = False
    schedule: tuple[str, ...] = SEARCHED_SCHEDULES
    round_to: int = Field(default=1, ge=1, le=1024)
    criterion: str = "magnitude-l2"
    sampler: str = "guided"
    seeds: bool = True
    seed: int = Field(default=0, ge=0, lt=2**31)
    dense_seed: int = Field(default=0, ge=0, lt=2**31)
    finalists: int = Field(default=3, ge=0, le=20)
    final_seeds: int = Field(default=3, ge=1, le=20)
    root: str = "mlruns"

    @field_validator("*", mode="before")
    @classmethod
    def _value_is_of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        """A true is no number, and no text for the system holds a NUL."""
        if isinstance(value, bool) and info.field_name not in SWITCHES:
            raise ValueError(
                f"{info.field_name.replace('_', '-')} must be {_valid(info.field_name)}, got {str(value).lower()}"
            )
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"{info.field_name.replace('_', '-')} holds a NUL character, got {value!r}: leave it out")
        return value

    @field_validator("trials")
    @classmethod
    def _trials_can_be_counted(cls, count: int) -> int:
        if count > MOST_TRIALS:
            raise ValueError(f"trials must be at most {MOST_TRIALS}, got {shortened(str(count), LONGEST_WORD)}")
        return count

    @field_validator("workload")
    @classmethod
    def _workload_file_is_absolute(cls, spec: str) -> str:
        place, colon, name = spec.rpartition(":")
        return f"{Path(place).expanduser().resolve()}:{name}" if colon and place.endswith(".py") else spec

    @field_validator("study")
    @classmethod
    def _study_is_a_folder_name(cls, name: str | None) -> str | None:
        if name is not None:
            check_study_name(name)
        return name

    @field_validator("granularity", "schedule", mode="before")
    @classmethod
    def _words_exist(cls, value: Any, info: ValidationInfo) -> Any:
        name, known = info.field_name, {"granularity": CHOICES, "schedule": SCHEDULES}[info.field_name]
        if not isinstance(value, str | list | tuple):
            raise ValueError(f"{name} needs words, got {value!r}")
        words = tuple(word.strip() for word in value.split(",")) if isinstance(value, str) else tuple(value)
        for word in words:
            if word not in known:
                raise ValueError(unknown(name, word, known))
        if not words or len(set(words)) < len(words):
            raise ValueError(f"{name} needs one or more of {', '.join(known)}, each once, got {words}")
        return words

    @field_validator("min_accuracy", mode="before")
    @classmethod
    def _min_accuracy_is_a_share_or_below_dense(cls, value: Any) -> Any:
        if value is None:
            return None
        number = str(value).strip().removeprefix("dense-")
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if not 0 <= share < 1:
            raise ValueError(
                "min-accuracy must be a share such as 0.92, or dense-0.005 for 0.5 points less, "
                f"got {value!r}{percent_meant(number)}"
            )
        return str(value).strip()

    @model_validator(mode="after")
    def _sizes_in_order(self) -> SearchConfig:
        if self.min_size is not None and self.min_size > self.max_size:
            raise ValueError(f"min-size must be at most max-size {self.max_size:g}, got {self.min_size:g}")
        if self.min_size is not None and self.max_size == 1 and self.min_size > LARGEST_TARGET:
            raise ValueError(f"min-size without a max-size is at most {LARGEST_TARGET:g}, got {self.min_size:g}")
        return self

    @model_validator(mode="after")
    def _mixed_layers_have_a_granularity_each(self) -> SearchConfig:
        check_mixable(self.granularity, self.mixed)
        return self

    @model_validator(mode="after")
    def _criterion_is_defined_for_the_granularities(self) -> SearchConfig:
        check_criterion(self.criterion, parts_in(self.granularity))
        return self

    @field_validator("criterion")
    @classmethod
    def _criterion_exists(cls, word: str) -> str:
        return check_criterion(word)

    @field_validator("sampler")
    @classmethod
    def _sampler_exists(cls, word: str) -> str:
        if word not in SAMPLERS:
            raise ValueError(unknown("sampler", word, SAMPLERS))
        return word

    @property
    def needs_latency(self) -> bool:
        """Whether a latency table has to be measured."""
        return self.speed == "latency" or self.max_latency < 1

    def least_accuracy(self, dense_accuracy: float) -> float | None:
        """The accuracy asked for, given the dense model's on validation; None if none was."""
        if self.min_accuracy is None:
            return None
        below = self.min_accuracy.removeprefix("dense-")
        return dense_accuracy - float(below) if below != self.min_accuracy else float(below)


def check_study_name(name: str) -> str:
    """Return the name if it can be a folder under the root, else raise `ValueError`."""
    if (
        not isinstance(name, str)
        or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name)
        or name in RESERVED
        or name.startswith(RESERVED[-2:])  # mlflow.db-journal and the like are SQLite's
    ):
        raise ValueError(
            f"study name may hold 1 to 100 letters, digits, '.', '_' and '-', start with no '.' or '-', "
            f"be none of {', '.join(RESERVED)}, and begin with neither of the last two; got {name!r}"
        )
    return name


def make_config(**options: Any) -> SearchConfig:
    """A checked config; raises `UsageError` in one line, naming the option, the value and the nearest valid one."""
    return SearchConfig(**options)


def _one_line(problem: Any) -> str:
    """A problem of pydantic's in our words: which option, what is valid, the value received, the remedy."""
    if problem["type"] == "value_error":  # one of ours, which says it all
        return problem["msg"].removeprefix("Value error, ")
    field, value = str(problem["loc"][0]), problem["input"]
    default = SearchConfig.model_fields[field].default
    remedy = percent_meant(value) if field in SHARES else ""
    if not remedy and default is not None:
        remedy = f"; the default is {default!r}"
    return f"{field.replace('_', '-')} must be {_valid(field)}, got {shortened(repr(value), LONGEST_WORD)}{remedy}"


def _valid(field: str) -> str:
    """What values a field takes, in words."""
    info = SearchConfig.model_fields[field]
    types = get_args(info.annotation) or (info.annotation,)
    if bool in types:
        return "true or false"
    if str in types:
        return "text"
    if int not in types and float not in types:
        return " or ".join(map(repr, types))
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = [(part, name) for part in info.metadata for name in signs if hasattr(part, name)]
    bounds = " and ".join(f"{signs[name]} {getattr(part, name)}" for part, name in limits)
    kind = "a share of the dense model's" if field in SHARES else "a number" if float in types else "a whole number"
    return f"{kind}, {bounds}"


def read_study_file(path: Path) -> dict[str, Any]:
    """Options of a STUDY.toml: the names of the command line, with `-` or `_`.

    Raises:
        UsageError: no such file, not TOML, an unknown key (nearest match named), or one key in both spellings.
    """
    if not path.exists():
        raise UsageError(f"no study file {str(path)!r}: check the path, or leave it out")
    try:
        data = tomllib.loads(read_text(path, MOST_STUDY_FILE))
    except RecursionError:
        raise UsageError(f"{path}: not valid TOML here: nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None
    options, known = {}, [field.replace("_", "-") for field in SearchConfig.model_fields]
    for key, value in data.items():
        field = key.replace("-", "_")
        if field not in SearchConfig.model_fields:
            raise UsageError(f"{path}: {unknown('key', key, known)}")
        if field in options:
            raise UsageError(
                f"{path}: key {field.replace('_', '-')!r} stands there twice, with '-' and with '_': keep one"
            )
        options[field] = value
    return options
