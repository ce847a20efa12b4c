"""Every option of a study, once: the command line, STUDY.toml, `SearchConfig` and the docs are made from this table.

Nothing that takes long is imported here: `prunefront search --help` needs no more than this. A new option is one more
field of `SearchOptions`, and the code that uses it.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, dataclass_transform, get_args

BUILT_IN_WORKLOADS = {
    "digits": "search.workloads.digits:digits",
    "fashion-mnist": "search.workloads.fashion_mnist:fashion_mnist",
    "cifar10": "search.workloads.cifar10:cifar10",
}
"""Name -> the factory in `search/workloads/`, which needs torch and is only imported for a workload that is used."""
WORKLOAD_FORMS = (*BUILT_IN_WORKLOADS, "package.module:factory", "./file.py:factory")
"""What a workload can be named by."""
MASKS = "also vector, kernel, 1:4, 2:4, *:4, *:8"
"""Granularities of masks that are no default."""


NEAR = 0.7
"""From which likeness, 0 to 1, a name is taken to be misspelt, and not to be another word."""
_OF_THE_RECIPE = "it is part of the recipe of a workload"
INSTEAD = {
    **dict.fromkeys(("epochs", "learning-rate", "batch", "optimizer"), _OF_THE_RECIPE),
    "lr": f"{_OF_THE_RECIPE}, which learning-rate of search and apply overrides",
    "batch-size": f"{_OF_THE_RECIPE}, which batch of search and apply overrides",
    "budget": "trials and timeout limit a search",
    "sparsity": "a search has max-size, the limit of the stored size, from which sparsities follow",
    "gpu": "device cuda",
    "gpus": "device cuda, and workers for several",
    "resume": "the same search command resumes a study",
}
"""What people call things here that have no option of that name -> what there is instead."""


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: as a field of `SearchConfig`; the command line and STUDY.toml have `-` for `_`.
        annotation: its type.
        help: what it is, in a line; `{default}` stands for the default.
        default: None if it has none.
        more: what else there is to know of it, for the docs.
        metavar: its value on the command line.
        example: a value for the sample STUDY.toml, where it has no default.
        remark: what stands behind it there.
        above, at_least, at_most, below: the range of a number.
        is_share: whether it is a share of the dense model's.
        may_hold_password: whether it is shown and stored nowhere.
        may_change: whether it may change when a study is resumed.
        former: the name it had, which goes on working and which stored studies and MLflow keep.
    """

    name: str
    annotation: Any
    help: str
    default: Any
    more: str = ""
    metavar: str | None = None
    example: Any = None
    remark: str = ""
    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    below: float | None = None
    is_share: bool = False
    may_hold_password: bool = False
    may_change: bool = False
    former: str | None = None

    @property
    def key(self) -> str:
        """Its name on the command line and in a STUDY.toml."""
        return key_of(self.name)

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types its value may have, or the words."""
        return get_args(self.annotation) or (self.annotation,)

    @property
    def help_line(self) -> str:
        """Its help, with its default."""
        default = ",".join(map(str, self.default)) if isinstance(self.default, tuple) else self.default
        return self.help.format(default=default)


def key_of(name: str) -> str:
    """A field's name as the command line and STUDY.toml have it.

    >>> key_of("max_size")
    'max-size'
    """
    return name.replace("_", "-")


def unknown_option(received: str, known: Iterable[str], former: Mapping[str, str], what: str = "option") -> str:
    """Say that there is no such option, and which one is nearest; a former name counts, and its name of today is told.

    >>> unknown_option("spead", ["seed", "cost"], {"speed": "cost"})
    "unknown option 'spead': did you mean 'cost', formerly 'speed'?"
    """
    from spaces.validation import unknown  # spaces imports numpy, which --help does not need

    names = list(known)
    spelt = received if "_" in "".join(names) else received.replace("_", "-")
    near = _nearest(spelt, [*names, *former])
    if near is not None and near in former:
        return f"unknown {what} {received!r}: did you mean {former[near]!r}, formerly {near!r}?"
    instead = INSTEAD.get(_bare(received), "") if any(_bare(name) == "workload" for name in names) else ""
    return unknown(what, received, names, f"did you mean {near!r}?" if near and not instead else instead)


def _nearest(received: str, names: list[str]) -> str | None:
    """The name that is meant; None where none is near, as of a word that means something else."""
    from difflib import get_close_matches

    spelt, bare = _bare(received), {_bare(name): name for name in reversed(names)}
    other = {"max": "min", "min": "max"}.get(spelt[:3])
    able = [name for name in bare if other is None or not name.startswith(f"{other}-")]
    holding = [name for name in able if len(spelt) > 3 and spelt in name]
    found = get_close_matches(spelt, holding, 1, 0.0) or get_close_matches(spelt, able, 1, NEAR)
    return bare[found[0]] if found else None


def _bare(name: str) -> str:
    """A name as it is compared: dashes before it are in all options alike."""
    return name.lstrip("-").replace("_", "-")


def option(help: str, *, default: Any, **details: Any) -> Any:
    """A field of `SearchOptions`; `details` are attributes of `Option`. Type checkers read `default`."""
    return {"help": help, "default": default, **details}


@dataclass_transform(kw_only_default=True, field_specifiers=(option,))
class _Fields:
    """Tells type checkers that fields below are arguments of `SearchConfig`."""


if TYPE_CHECKING:

    class AnyWorkload(Protocol):
        """What type checkers know of a `search.Workload` here."""

        @property
        def name(self) -> str: ...
        @property
        def build_model(self) -> Callable[[], Any]: ...

    class WorkloadName:
        """Text that may be given as a workload, or as a function that returns one."""

        def __get__(self, config: Any, kind: Any) -> str: ...
        def __set__(self, config: Any, given: str | AnyWorkload | Callable[..., AnyWorkload]) -> None: ...

else:
    WorkloadName = str


class SearchOptions(_Fields):
    """The options in the order in which help, docs and stored studies have them."""

    workload: WorkloadName = option(
        f"{', '.join(WORKLOAD_FORMS)} ({{default}})",
        default="digits",
        metavar="W",
        remark=f"or {', '.join(json.dumps(form) for form in WORKLOAD_FORMS if form != 'digits')}",
    )
    study: str | None = option(
        "name of the study (the workload's)",
        default=None,
        metavar="NAME",
        example="my-study",
        more="its folder under the root has this name",
    )
    data: str | None = option(
        "the only folder that data is read from",
        default=None,
        metavar="DIR",
        example="folder",
    )
    weights: str | None = option(
        "trained weights, .safetensors or .pt, .pth, .ckpt without code",
        default=None,
        metavar="FILE",
        example="trained.safetensors",
        more="FILE#ENTRY names one of several in it; without them the dense model is trained once and cached",
    )
    width: float | None = option(
        "width factor of a built-in network (its own default: 1/8 of digits and fashion-mnist, 1 of cifar10)",
        default=None,
        metavar="F",
        above=0,
        example=0.25,
    )
    network: str | None = option(
        "torchvision:NAME or timm:NAME in place of the workload's own network",
        default=None,
        metavar="N",
        example="torchvision:mobilenet_v2",
        more="for its classes and images; timm is an extra",
    )
    pretrained: str | None = option(
        "weights that the network begins with: a file, cache, or hub:OWNER/REPO:ENTRY",
        default=None,
        metavar="P",
        example="cache",
        more="cache is where torchvision, timm and torch.hub keep downloads; hub:FOLDER:ENTRY is on this machine; the "
        "dense model is trained from what fits, unless that does the task already",
    )
    trust_remote_code: bool = option("run the code of the hub that --pretrained names", default=False)
    trials: int = option(
        "finished trials in total ({default})",
        default=24,
        metavar="N",
        at_least=1,
        may_change=True,
        more="failed ones count too",
    )
    timeout: float | None = option(
        "seconds of running time, the scan's too, after which no trial starts; what is running goes on",
        default=None,
        metavar="S",
        above=0,
        example=3600,
        may_change=True,
    )
    trial_timeout: float | None = option(
        "seconds after which a single trial fails; dense training and the scan have no limit",
        default=None,
        metavar="S",
        above=0,
        at_most=10**7,
        example=600,
        may_change=True,
        more="a final may take as many times longer as it has epochs more",
    )
    max_size: float = option(
        "size limit, a share of the dense model ({default})",
        default=0.25,
        metavar="SHARE",
        above=0,
        at_most=1,
        is_share=True,
    )
    min_size: float | None = option(
        "smallest size searched (a tenth of the limit; guided: more where it finds only dead networks)",
        default=None,
        metavar="SHARE",
        above=0,
        at_most=1,
        is_share=True,
        example=0.1,
        more="where it equals the limit, accuracy at that size is all that is searched",
    )
    max_macs: float = option(
        "limit on MACs, a share of the dense model's",
        default=1.0,
        metavar="SHARE",
        above=0,
        at_most=1,
        is_share=True,
    )
    max_latency: float = option(
        "limit on predicted latency, a share of the dense model's",
        default=1.0,
        metavar="SHARE",
        above=0,
        at_most=1,
        is_share=True,
    )
    min_accuracy: str | float | None = option(
        "find the smallest network this accurate: 0.92, or dense-0.005",
        default=None,
        metavar="A",
        example="dense-0.005",
        more="on validation data; dense-0.005 is 0.5 points below the dense model's accuracy",
    )
    min_score: str | float | None = option(
        "the same by the workload's own metric, in its unit: 31.5, or dense-0.5 (RMSE and the like: dense+0.5)",
        default=None,
        metavar="V",
        example="dense-0.5",
        more="at least 31.5, and where less is better at most; dense-0.5 is the dense model's value less 0.5",
    )
    size_metric: Literal["encoded", "nonzero"] = option(
        "what the limit binds on: encoded (default) or nonzero",
        default="encoded",
        metavar="M",
        more="encoded is bytes of the sparse file",
    )
    cost: Literal["macs", "latency"] = option(
        "the third objective: latency (default) or macs",
        default="latency",
        metavar="C",
        former="speed",
        more="latency is predicted by a table that is measured as the study begins and stays with it; by default macs "
        "where that fails",
    )
    granularity: tuple[str, ...] = option(
        f"choices ({{default}}); {MASKS}; channel+kernel, channel+2:4, ...: channels go, then masks",
        default=("fine-grained", "channel"),
        metavar="A,B",
        more="one for a whole policy, or with --mixed one a layer",
    )
    bits: tuple[int, ...] = option(
        "of a weight that is kept, choices ({default}; of nonzero sizes 32); also 32 (not rounded), 16, 7, 5, 2",
        default=(8, 6, 4, 3),
        metavar="B,B",
        more="one for a whole policy, or with --mixed one a layer",
    )
    mixed: bool = option("let every layer have its own granularity and bits", default=False)
    schedule: tuple[str, ...] = option(
        "choices ({default}); also iterative",
        default=("one-shot", "polynomial"),
        metavar="A,B",
    )
    round_to: int = option(
        "keep channel counts to a multiple of N ({default})",
        default=1,
        metavar="N",
        at_least=1,
        at_most=1024,
        more="8 or 16 suit most kernels",
    )
    criterion: str = option(
        "which units go first: {default} (default), taylor, activation, ... or ./file.py:function",
        default="magnitude-l2",
        metavar="C",
    )
    sampler: Literal["guided", "tpe", "nsga2", "gp", "random"] = option(
        "guided (default), tpe, nsga2, gp or random",
        default="guided",
        metavar="S",
        more="all but guided are Optuna's",
    )
    warm_start: bool = option(
        "begin with static allocations and the scan's: on (default) or off",
        default=True,
        former="seeds",
        more="at most half of the trials are these",
    )
    seed: int = option(
        "of sampling, data order and augmentation ({default})",
        default=0,
        metavar="N",
        at_least=0,
        below=2**31,
    )
    dense_seed: int = option(
        "of the dense model's own training ({default})",
        default=0,
        metavar="N",
        at_least=0,
        below=2**31,
    )
    epochs: float | None = option(
        "epochs of a trial's fine-tune (the recipe's)",
        default=None,
        metavar="N",
        above=0,
        at_most=10**6,
        example=0.5,
        more="fractions are allowed; finals keep the recipe's length, but are never shorter than a trial",
    )
    learning_rate: float | None = option(
        "peak learning rate of fine-tunes, for networks that lost most (the recipe's)",
        default=None,
        metavar="F",
        above=0,
        at_most=10**6,
        example=0.02,
        more="the less was lost, the lower it is; the dense model's own training keeps the recipe's",
    )
    batch: int | None = option(
        "examples a step, in the dense model's own training too (the recipe's)",
        default=None,
        metavar="N",
        at_least=1,
        example=64,
    )
    finalists: int = option(
        "front members tuned at full length and tested ({default}); 0: neither finals nor baselines",
        default=3,
        metavar="N",
        at_least=0,
        at_most=20,
        may_change=True,
        more="besides, up to 3 fine-tunes of a trial's length choose the baselines of each granularity, and up to 3 at "
        "each number of bits the one at the limit",
    )
    final_repeats: int = option(
        "full fine-tunes of the best finalist and its baseline, as many as others have at most ({default})",
        default=3,
        metavar="N",
        at_least=1,
        at_most=20,
        former="final_seeds",
        may_change=True,
    )
    comparison: Literal["paired", "full"] = option(
        "of finalists: paired (default) with the best static rule at each one's size, or full: all rules, all repeats",
        default="paired",
        metavar="C",
        may_change=True,
        more="full adds every static rule at the limit",
    )
    latency_command: str | None = option(
        "times finals on your device: given {{file}}, an ONNX file, its last line of output is seconds",
        default=None,
        metavar="CMD",
        example="adb-bench {file}",
        more="in place of timing them here; run without a shell, at the start once for the dense network; needs the "
        "extra onnx",
    )
    device: str = option(
        "where networks train, are scanned and timed: {default} (default: cuda, else mps, else cpu), cpu, cuda:1, ...",
        default="auto",
        metavar="D",
        may_change=True,
        more="latency goes on being predicted for the first; exports are made and verified on the CPU",
    )
    precision: Literal["fp32", "bf16", "fp16"] = option(
        "in which training computes: {default} (default), bf16 or fp16",
        default="fp32",
        metavar="P",
        more="by PyTorch's autocast; weights, masks and scores are fp32",
    )
    deterministic: bool = option(
        "compute with operations only that repeat bit for bit",
        default=False,
        may_change=True,
        more="those of a CPU do; with it fine-tunes on CUDA do too, slower",
    )
    threads: int | None = option(
        "PyTorch's threads on the CPU",
        default=None,
        metavar="N",
        at_least=1,
        at_most=1024,
        example=4,
        may_change=True,
    )
    workers: int = option(
        "trials at once, each in a process of its own ({default}: in this one)",
        default=1,
        metavar="N",
        at_least=1,
        at_most=256,
        may_change=True,
        more="several cards are dealt out among them, and the machine's cores unless threads says how many each takes; "
        "with more than one, what is proposed depends on which trials end first",
    )
    executor: Literal["local", "ray"] = option(
        "where workers run: {default} (default: on this machine) or ray, on a cluster that is there",
        default="local",
        metavar="E",
        may_change=True,
        more="ray is an extra",
    )
    ray_address: str | None = option(
        "HOST:PORT of the Ray cluster (RAY_ADDRESS)",
        default=None,
        metavar="A",
        example="head-node:6379",
        may_change=True,
    )
    attempts: int = option(
        "how often the worker of a trial may be lost before the trial is failed ({default})",
        default=3,
        metavar="N",
        at_least=1,
        at_most=100,
        may_change=True,
        more="by a signal, a crash, a stall or its node's end",
    )
    stall: float | None = option(
        "seconds without a step or computing after which a worker is lost (20 times its slowest step, at least 600)",
        default=None,
        metavar="S",
        above=0,
        example=1800,
        may_change=True,
        more="of workers with processes of their own",
    )
    optuna_storage: str | None = option(
        "postgresql://HOST/DATABASE that gets the trials too, for others of Optuna's tools",
        default=None,
        metavar="URL",
        example="postgresql://db.local/studies",
        may_hold_password=True,
        more="user and password are taken from PGUSER, PGPASSWORD or ~/.pgpass; it is an extra, postgresql",
    )
    system_metrics: bool = option(
        "keep the use of CPU, memory, disk, network and NVIDIA cards with the study in MLflow",
        default=False,
        may_change=True,
        more="of the machine that search runs on, every 10 s; it is an extra, system-metrics",
    )
    root: str = option("the folder that everything is written to ({default})", default="mlruns", metavar="DIR")


OPTIONS = {
    name: Option(name, annotation, **getattr(SearchOptions, name))
    for name, annotation in SearchOptions.__annotations__.items()
}
"""Name -> option, in order."""
FORMER = {one.former: one.name for one in OPTIONS.values() if one.former}
"""Former name -> name."""
WORKLOAD_OPTIONS = (
    "workload", "data", "weights", "width", "network", "pretrained", "trust_remote_code", "dense_seed",
)  # fmt: skip
"""What a workload and its dense model are made from."""
FACTORY_OPTIONS = ("data", "width", "network", "pretrained", "trust_remote_code")
"""What `search.workloads.get_workload` takes."""
PLACEMENT_OPTIONS = ("device", "precision", "deterministic", "threads")
"""Where networks are trained, scanned and timed, and how."""
RECIPE_OPTIONS = ("epochs", "learning_rate", "batch")
"""What takes the place of a part of the workload's recipe."""
UNSTORED = ("root", "trust_remote_code", "optuna_storage", "latency_command")
"""What a study does not remember: each command says it again."""
MAY_CHANGE = tuple(name for name, one in OPTIONS.items() if one.may_change)
"""Names of options that may change when a study is resumed."""


def study_file() -> str:
    """A STUDY.toml that names every key."""
    lines = ["# every key, at its default; those behind a '#' have none, and show one value"]
    for one in OPTIONS.values():
        value = one.example if one.default is None else one.default
        line = f"{'# ' if one.default is None else ''}{one.key} = {json.dumps(value)}"
        lines.append(f"{line}  # {one.remark}" if one.remark else line)
    return "\n".join(lines) + "\n"
