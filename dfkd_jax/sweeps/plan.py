"""Which runs a sweep consists of: every combination of settings with every seed.

Everything is checked here, before anything is started: the settings of each run are
built as `dfkd_jax.main` builds them.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dfkd_jax import config, config_files
from dfkd_jax.errors import ConfigError, did_you_mean
from dfkd_jax.reporting.settings import describe, flatten, short_text

VARIANT = "variant"  # Can be varied like a setting: what follows the config's colon.
# What the flags of a sweep give; they cannot be varied or set for all runs.
FLAGS_OF_KEYS = {"seed": "--seeds=0,1,2", "data.split": "--split=validation"}
LONGEST_NAME = 120
_PAIRS = {"(": ")", "[": "]", "{": "}"}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One run of a sweep.

    Attributes:
        name: Of its settings, for people; also the folder that it lies in.
        seed: Of everything random.
        changes: The settings that vary, with their values; `variant` may be one.
        arguments: Of `dfkd_jax.main`.
        settings: What `config.parse` makes of them.
        workdir: Its work directory.
    """

    name: str
    seed: int
    changes: Mapping[str, Any]
    arguments: tuple[str, ...]
    settings: Any
    workdir: pathlib.Path

    @property
    def title(self) -> str:
        """Name and seed."""
        return f"{self.name}, seed {self.seed}"

    @property
    def address(self) -> str:
        """Where it lies in the work directory of the sweep."""
        return f"{self.name}/seed{self.seed}"

    @property
    def transfer_set(self) -> str:
        """The same for runs whose transfer sets are the same; empty if there is none.

        All settings count but those of the student and of evaluation.
        """
        if not hasattr(self.settings, "synthesis"):
            return ""
        values = dataclasses.asdict(self.settings)
        for key in ("name", "student", "distillation", "data"):
            values.pop(key, None)
        return json.dumps([type(self.settings).__name__, values], sort_keys=True)


def split(text: str, separator: str) -> list[str]:
    """`text` cut at each separator that is in no bracket and no quotation marks.

    Parts are stripped; a part in quotation marks loses them.

    Raises:
        ConfigError: A bracket or quotation mark is not closed.
    """
    parts, start, closing = [], 0, []
    for place, letter in enumerate(text):
        if closing and letter == closing[-1]:
            closing.pop()
        elif closing and closing[-1] in "'\"":
            continue
        elif letter in _PAIRS:
            closing.append(_PAIRS[letter])
        elif letter in "'\"":
            closing.append(letter)
        elif letter == separator and not closing:
            parts.append(text[start:place])
            start = place + 1
    if closing:
        raise ConfigError(f"{text!r}: {closing[-1]} is missing.")
    return [_unquote(part.strip()) for part in (*parts, text[start:])]


def _unquote(text):
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def axis_of_set(text: str) -> list[dict[str, str]]:
    """The choices of `--set=key=value,value`.

    Raises:
        ConfigError: It is not of that form.
    """
    key, equals, values = text.partition("=")
    if not key.strip() or not equals:
        raise ConfigError(
            f"--set={text}: write --set=key=value,value, as in "
            "--set=targets.sigma=1,2,3."
        )
    return [{key.strip(): value} for value in split(values, ",")]


def axis_of_cases(texts: Sequence[str]) -> list[dict[str, str]]:
    """The choices that several `--case="key=value key=value"` are together.

    An empty text is a choice too: nothing changed.

    Raises:
        ConfigError: One is not of that form.
    """
    axis = []
    for text in texts:
        case: dict[str, str] = {}
        for part in filter(None, split(text, " ")):
            key, equals, value = part.partition("=")
            if not key or not equals or key in case:
                raise ConfigError(
                    f'--case="{text}": write --case="key=value key=value", each key '
                    'once, as in --case="distillation.mixup=0 distillation.cutmix=0"; '
                    "--case= changes nothing."
                )
            case[key] = _unquote(value)
        axis.append(case)
    return axis


def seeds(text: str) -> list[int]:
    """The seeds of `--seeds=0,1,2`.

    Raises:
        ConfigError: They are no whole numbers, or one comes twice.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found) or min(found) < 0:
        raise ConfigError(f"--seeds={text}: write each once, as in --seeds=0,1,2.")
    return found


def combine(axes: Sequence[Sequence[Mapping[str, str]]]) -> list[dict[str, str]]:
    """Every choice of the first axis with every one of the second, and so on.

    Raises:
        ConfigError: Two axes change the same setting.
    """
    keys = [{key for choice in axis for key in choice} for axis in axes]
    for one, other in itertools.combinations(keys, 2):
        if one & other:
            raise ConfigError(
                f"{min(one & other)} is varied twice: put its values into one --set."
            )
    return [
        {key: value for choice in choices for key, value in choice.items()}
        for choices in itertools.product(*axes)
    ]


def plan(
    config_file: str,
    fixed: Mapping[str, str],
    axes: Sequence[Sequence[Mapping[str, str]]],
    *,
    seeds: Sequence[int],
    split: str,
    workdir: pathlib.Path,
) -> list[Run]:
    """All runs, in the order in which they are made: seed by seed.

    Args:
        config_file: As `--config` takes it, with its variant if it has one.
        fixed: Settings that are changed for all runs, as text.
        axes: What is varied: choices of changes, see `axis_of_set`.
        seeds: Of each combination.
        split: What evaluation reads.
        workdir: Of the sweep; runs go to `name/seed<n>` in it.

    Raises:
        ConfigError: A setting is unknown, a value impossible or a choice given twice.
    """
    combinations = combine(axes)
    known = _settings(_arguments(config_file, fixed, {}))
    for key in dict.fromkeys([*fixed, *(key for c in combinations for key in c)]):
        _check_key(key, known)
    made = []
    for changes in combinations:
        arguments = _arguments(config_file, fixed, changes)
        settings = _settings(arguments)
        typed = {
            key: value if key == VARIANT else _value(settings, key)
            for key, value in changes.items()
        }
        made.append((typed, arguments))
    for place, (typed, _) in enumerate(made):
        if typed in [other for other, _ in made[:place]]:
            raise ConfigError(f"{describe(typed)} is given twice.")
    names = _names([typed for typed, _ in made], base=known.name)
    runs = []
    for seed in seeds:
        for name, (typed, arguments) in zip(names, made, strict=True):
            whole = (
                *arguments,
                f"--config.seed={seed}",
                f"--config.data.split={split}",
            )
            folder = workdir / name / f"seed{seed}"
            runs.append(
                Run(
                    name=name,
                    seed=seed,
                    changes=typed,
                    arguments=(*whole, f"--workdir={folder}"),
                    settings=_settings(whole),
                    workdir=folder,
                )
            )
    return runs


def _settings(arguments):
    """The settings that arguments of `dfkd_jax.main` give, read as it reads them."""
    file, *texts = (argument.partition("=") for argument in arguments)
    settings = config_files.read_settings(
        file[2], {key.removeprefix("--config."): text for key, _, text in texts}
    )
    if isinstance(settings, config.TeacherTrainingConfig):
        raise ConfigError(
            f"{arguments[0]} trains a teacher; sweeps are of students: name the config "
            "of a distillation."
        )
    return settings


def _check_key(key, settings):
    if key in FLAGS_OF_KEYS:
        raise ConfigError(f"{key} is set by a flag of its own: {FLAGS_OF_KEYS[key]}.")
    if key != VARIANT and _value(settings, key) is None:
        names = [*flatten(dataclasses.asdict(settings)), VARIANT]
        ending = [name for name in names if name.endswith(f".{key}")]
        raise ConfigError(
            f"{key} is not a setting."
            + (f' Did you mean "{ending[0]}"?' if ending else did_you_mean(key, names))
        )


def _value(settings, key):
    """Of the setting with a dotted name; None if there is no such setting."""
    value = dataclasses.asdict(settings)
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _arguments(config_file, fixed, changes):
    """Of `dfkd_jax.main`; what varies takes the place of what is set for all."""
    variant = changes.get(VARIANT)
    file = f"{config_file.partition(':')[0]}:{variant}" if variant else config_file
    values = {key: value for key, value in fixed.items() if key not in changes}
    values |= {key: value for key, value in changes.items() if key != VARIANT}
    return (
        f"--config={file}",
        *(f"--config.{key}={value}" for key, value in values.items()),
    )


def _names(combinations, *, base):
    """Names of folders: short where that is clear, and different in any case."""
    short = {}
    for key in dict.fromkeys(key for changes in combinations for key in changes):
        last = key.rpartition(".")[2]
        short.setdefault(last, []).append(key)
    label = {
        key: last if len(keys) == 1 else key
        for last, keys in short.items()
        for key in keys
    }
    names = [
        ",".join(
            f"{label[key]}={_plain(short_text(value))}"
            for key, value in changes.items()
        )
        or ("base" if short else base)
        for changes in combinations
    ]
    count = Counter(name.lower() for name in names)
    return [
        name
        if count[name.lower()] == 1 and len(name) <= LONGEST_NAME
        else f"{name[:LONGEST_NAME]}-{_digest(changes)}"
        for name, changes in zip(names, combinations, strict=True)
    ]


def _plain(text):
    """`text` in letters that need no quoting in a path: "(4, 2, 1)" is 4-2-1."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-") or "none"


def _digest(changes):
    text = json.dumps(changes, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
