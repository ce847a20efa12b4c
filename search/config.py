"""What a user asks of a study, checked before anything is computed."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from search.errors import UsageError
from search.files import read_text
from search.given_command import check_latency_command
from search.given_workload import factory_of, spec_of
from search.goal import checked_accuracy, checked_score, least_accuracy, least_share
from search.masking import masked, masked_address
from search.metric import SHARE, Metric
from search.options import (
    FACTORY_OPTIONS,
    FORMER,
    OPTIONS,
    RECIPE_OPTIONS,
    UNSTORED,
    Option,
    SearchOptions,
    key_of,
    unknown_option,
)
from search.record_checks import MOST_TRIALS
from spaces.bits import BITS, FLOAT_BITS, check_bits
from spaces.criteria import check_criterion
from spaces.granularity import CHOICES, parts_in
from spaces.printable import LONGEST_WORD, shortened
from spaces.schedule import EXPONENT_OF, SCHEDULES
from spaces.search_space.limits import LARGEST_TARGET, check_mixable
from spaces.validation import percent_meant, unknown

GUIDED = "guided"
NONZERO = "nonzero"
FULL = "full"
"""The comparison of finals in which nothing is left out."""
DEVICES = ("auto", "cpu", "cuda", "cuda:0", "mps")
"""What a device can be named by; CUDA's others have their number."""
RESERVED = ("artifacts", "cache", "mlflow.db", "mlflow.lock")
"""Names under the root that no study may take."""
STORAGE = "postgresql+psycopg"
"""Scheme of the addresses of databases that Optuna's record can be kept in."""
MOST_STUDY_FILE = 2**20
"""Bytes of a STUDY.toml."""


class ConfigError(UsageError, ValueError):
    """Options that make no study; one line names each, its value, what is valid and the remedy."""


def _field(one: Option) -> Any:
    limits: dict[str, Any] = {"gt": one.above, "ge": one.at_least, "le": one.at_most, "lt": one.below}
    if float in one.kinds and str not in one.kinds:
        limits["allow_inf_nan"] = False
    return Field(one.default, repr=not one.may_hold_password, **limits)


if TYPE_CHECKING:

    class _Fields(SearchOptions, BaseModel): ...

else:
    _Fields = create_model("_Fields", **{name: (one.annotation, _field(one)) for name, one in OPTIONS.items()})


class SearchConfig(_Fields):
    """One study: its options by name, checked; what is left out has its default.

    `workload` may also be a `Workload`, or a function that returns one; read, it is text, the name that the study's
    files have for it.

    Raises:
        ConfigError: an unknown option (nearest match named), or a value outside its range; a `ValueError`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    _factory: Callable[..., Any] | None = PrivateAttr(None)

    if not TYPE_CHECKING:  # a type checker takes the arguments from the fields

        def __init__(self, **options: Any) -> None:
            options, factory = _with_workload_named(options)
            try:
                super().__init__(**options)
            except ValidationError as error:
                said = "; ".join(_one_line(problem) for problem in error.errors())
                raise ConfigError(_as_spelt(said, options)) from None
            self._factory = factory

    @model_validator(mode="before")
    @classmethod
    def _names_exist(cls, options: Any) -> Any:
        if not isinstance(options, Mapping):
            return options
        for name in options:
            if name not in OPTIONS and name not in FORMER:
                raise ValueError(unknown_option(name, OPTIONS, FORMER))
        return present_names(options)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's, which checks nothing of `update`; former names are taken for those of today."""
        named, factory = _with_workload_named(present_names(update or {}))
        copy = super().model_copy(update=named, deep=deep)
        if "workload" in named:
            copy._factory = factory
        return copy

    @field_validator("*", mode="before")
    @classmethod
    def _value_is_of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        """A true is no number, and no text for the system holds a NUL."""
        one = OPTIONS[str(info.field_name)]
        if isinstance(value, bool) and bool not in one.kinds:
            raise ValueError(f"{one.key} must be {_valid(one)}, got {str(value).lower()}")
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"{one.key} holds a NUL character, got {masked(repr(value))}: leave it out")
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
        name = str(info.field_name)
        known = {"granularity": CHOICES, "schedule": SCHEDULES}[name]
        if not isinstance(value, str | list | tuple):
            raise ValueError(f"{name} must be text or a list of words, got {value!r}")
        words = tuple(word.strip() for word in value.split(",")) if isinstance(value, str) else tuple(value)
        for word in words:
            if name == "schedule" and isinstance(word, str) and word in EXPONENT_OF:
                raise ValueError(
                    f"schedule {word} is the polynomial of exponent {EXPONENT_OF[word]:g}, and a search samples the "
                    "exponent: name it polynomial"
                )
            if word not in known:
                raise ValueError(unknown(name, word, known))
        if not words or len(set(words)) < len(words):
            raise ValueError(f"{name} must be one or more of {', '.join(known)}, each once, got {words}")
        return words

    @field_validator("bits", mode="before")
    @classmethod
    def _bits_exist(cls, value: Any) -> Any:
        """From the most on, in whichever order they were given."""
        found = tuple(check_bits(one) for one in (value if isinstance(value, list | tuple) else (value,)))
        if not found or len(set(found)) < len(found):
            raise ValueError(f"bits must be one or more of {', '.join(map(str, BITS))}, each once, got {found}")
        return tuple(sorted(found, reverse=True))

    @field_validator("min_accuracy", "min_score", mode="before")
    @classmethod
    def _goal_is_a_number_or_beside_dense(cls, value: Any, info: ValidationInfo) -> Any:
        checked = checked_accuracy if info.field_name == "min_accuracy" else checked_score
        return None if value is None else checked(value)

    @model_validator(mode="after")
    def _one_goal(self) -> SearchConfig:
        if self.min_accuracy is not None and self.min_score is not None:
            raise ValueError(
                f"min-accuracy {self.min_accuracy!r} and min-score {self.min_score!r} ask for the same, as a share and "
                "in the metric's unit: give one of them"
            )
        return self

    @model_validator(mode="after")
    def _sizes_in_order(self) -> SearchConfig:
        if self.min_size is not None and self.min_size > self.max_size:
            raise ValueError(f"min-size must be at most max-size {self.max_size:g}, got {self.min_size:g}")
        if self.min_size is not None and self.max_size == 1 and self.min_size > LARGEST_TARGET:
            raise ValueError(
                f"min-size must be at most {LARGEST_TARGET:g} where there is no max-size, got {self.min_size:g}"
            )
        return self

    @model_validator(mode="after")
    def _weights_are_trained_or_begun_with(self) -> SearchConfig:
        if self.weights is not None and self.pretrained is not None:
            raise ValueError(
                f"weights {self.weights!r} are the trained network, and pretrained {self.pretrained!r} what training "
                "begins with: give one of them"
            )
        return self

    @model_validator(mode="after")
    def _nonzero_sizes_count_32_bits(self) -> SearchConfig:
        if self.size_metric == NONZERO and self.bits != (FLOAT_BITS,):
            if "bits" in self.model_fields_set:
                raise ValueError(
                    f"bits must be {FLOAT_BITS} where size-metric is {NONZERO}, which counts no fewer, got "
                    f"{','.join(map(str, self.bits))}: leave bits out, or give size-metric encoded"
                )
            vars(self)["bits"] = (FLOAT_BITS,)  # a default: not among what was given
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

    @field_validator("sampler", "precision", "executor", "comparison", mode="before")
    @classmethod
    def _word_exists(cls, word: Any, info: ValidationInfo) -> Any:
        name = str(info.field_name)
        known = OPTIONS[name].kinds
        if isinstance(word, str) and word not in known:
            raise ValueError(unknown(name, word, known))
        return word

    @field_validator("device")
    @classmethod
    def _device_is_a_word(cls, word: str) -> str:
        """Whether it is here is found where it is used."""
        if word not in DEVICES and not re.fullmatch(r"cuda:\d{1,3}", word):
            raise ValueError(unknown("device", word, DEVICES))
        return word

    @field_validator("latency_command")
    @classmethod
    def _command_names_its_file(cls, command: str | None) -> str | None:
        return None if command is None else check_latency_command(command)

    @model_validator(mode="after")
    def _command_has_finals_to_time(self) -> SearchConfig:
        if self.latency_command is not None and self.finalists == 0:
            raise ValueError("latency-command times finals, and finalists is 0: leave it out, or give finalists")
        return self

    @field_validator("optuna_storage")
    @classmethod
    def _storage_is_a_server(cls, url: str | None) -> str | None:
        return None if url is None else storage_url(url)

    @property
    def needs_latency(self) -> bool:
        """Whether a latency table has to be measured."""
        return self.cost == "latency" or self.max_latency < 1

    def least_accuracy(self, dense_accuracy: float, unit: Metric = SHARE) -> float | None:
        """The accuracy asked for, a share, given the dense model's on validation (NaN if it is not known yet); None if
        none was.

        Raises:
            ConfigError: `min_score` asks for a value that the metric, `unit`, cannot have.
        """
        if self.min_score is not None:
            try:
                return least_share(str(self.min_score), dense_accuracy, unit)
            except ValueError as error:
                raise ConfigError(str(error)) from None
        return None if self.min_accuracy is None else least_accuracy(str(self.min_accuracy), dense_accuracy)

    @property
    def has_workers(self) -> bool:
        """Whether other processes evaluate, rather than the study's own."""
        return self.workers > 1 or self.executor != "local"

    @property
    def factory(self) -> Callable[..., Any] | None:
        """What makes the workload, where it was given in Python."""
        return self._factory

    @property
    def factory_options(self) -> dict[str, Any]:
        """What `get_workload` makes the workload from, besides its name and the cache."""
        return {"factory": self.factory, **{name: getattr(self, name) for name in FACTORY_OPTIONS}}

    @property
    def asked_recipe(self) -> dict[str, float]:
        """What takes the place of parts of the workload's recipe, by name; what was not asked for is left out."""
        return {name: value for name in RECIPE_OPTIONS if (value := getattr(self, name)) is not None}

    def stored(self) -> dict[str, Any]:
        """What a study remembers, as plain data, by the names that study.json and MLflow have had from the first."""
        data = self.model_dump(mode="json", exclude={*UNSTORED})
        return {OPTIONS[name].former or name: value for name, value in data.items()}


for _former, _name in FORMER.items():
    setattr(SearchConfig, _former, property(attrgetter(_name), doc=f"`{_name}`, by its former name."))
SearchConfig.__doc__ = f"{SearchConfig.__doc__}\n    Attributes:\n" + "".join(
    f"        {name}: {one.help_line}{one.more and f'; {one.more}'}.\n" for name, one in OPTIONS.items()
)


def present_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by their names of today; raises `ConfigError` where one is given by its former name as well."""
    for former, name in FORMER.items():
        if former in options and name in options:
            raise ConfigError(f"{key_of(former)!r} is the former name of {key_of(name)!r}: give one of them, not both")
    return {FORMER.get(name, name): value for name, value in options.items()}


def _with_workload_named(options: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[..., Any] | None]:
    """The options with the name of a workload that is given as such, or as a function, and what makes it."""
    given = options.get("workload", "")
    if isinstance(given, str):
        return dict(options), None
    if (factory := factory_of(given)) is None:
        raise ConfigError(
            "workload must be a name such as 'digits' or './file.py:function', a search.Workload, or a function that "
            f"returns one, got {shortened(masked(repr(given)), LONGEST_WORD)}"
        )
    return {**options, "workload": spec_of(factory)}, factory


def updated(options: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Both; where an option is in both, by whichever of its names, the later value."""
    replaced = {FORMER.get(name, name) for name in later}
    return {name: value for name, value in options.items() if FORMER.get(name, name) not in replaced} | dict(later)


def storage_url(url: str) -> str:
    """The address of a PostgreSQL database, for the driver that is used.

    >>> storage_url("postgresql://ann@db.local/studies")
    'postgresql+psycopg://ann@db.local/studies'

    Raises:
        ValueError: it is another kind of address, or none.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    scheme, _, rest = url.partition("://")
    try:
        made = make_url(f"{STORAGE}://{rest}") if rest and scheme in (STORAGE, "postgresql", "postgres") else None
    except (ArgumentError, ValueError):
        made = None
    if made is None:
        raise ValueError(
            f"optuna-storage must be {STORAGE}://HOST:PORT/DATABASE, got "
            f"{shortened(repr(masked_address(url)), LONGEST_WORD)}: the study's own study.db is a file that Optuna "
            "opens too"
        )
    return made.render_as_string(hide_password=False)


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
        return str(problem["msg"]).removeprefix("Value error, ")
    one, value = OPTIONS[str(problem["loc"][0])], problem["input"]
    remedy = percent_meant(value) if one.is_share else ""
    if not remedy and one.default is not None:
        remedy = f"; the default is {one.default!r}"
    return f"{one.key} must be {_valid(one)}, got {shortened(masked(repr(value)), LONGEST_WORD)}{remedy}"


def _as_spelt(said: str, options: Mapping[str, Any]) -> str:
    """What is said of options, by the names they were given by."""
    for former in FORMER.keys() & options.keys():
        said = re.sub(rf"(^|; ){key_of(FORMER[former])} (must|holds)", rf"\1{key_of(former)} \2", said)
    return said


def _valid(one: Option) -> str:
    """What values an option takes, in words."""
    if bool in one.kinds:
        return "true or false"
    if str in one.kinds:
        return "text"
    if int not in one.kinds and float not in one.kinds:
        return " or ".join(map(repr, one.kinds))
    limits = ((">", one.above), (">=", one.at_least), ("<=", one.at_most), ("<", one.below))
    bounds = " and ".join(f"{sign} {limit}" for sign, limit in limits if limit is not None)
    kind = "a share of the dense model's" if one.is_share else "a number" if float in one.kinds else "a whole number"
    return f"{kind}, {bounds}"


def read_study_file(path: Path) -> dict[str, Any]:
    """Options of a STUDY.toml: the names of the command line, with `-` or `_`; former names stay.

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
    spelt: dict[str, str] = {}
    for key in data:
        name = key.replace("-", "_")
        if name not in OPTIONS and name not in FORMER:
            former = {key_of(old): key_of(new) for old, new in FORMER.items()}
            raise UsageError(f"{path}: {unknown_option(key, map(key_of, OPTIONS), former, 'key')}")
        if name in spelt:
            raise UsageError(f"{path}: key {key_of(name)!r} is given twice, with '-' and with '_': keep one")
        spelt[name] = key
    options = {name: data[key] for name, key in spelt.items()}
    try:
        present_names(options)
    except ConfigError as error:
        raise UsageError(f"{path}: {error}") from None
    return options
