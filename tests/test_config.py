import copy
import dataclasses
import math
import subprocess
import sys

import pytest

from dfkd_jax import config, settings
from dfkd_jax.errors import ConfigError

NAN, INF = math.nan, math.inf


def values(kind, /, **changes):
    """The default config of a kind as a mapping, with settings by dotted path."""
    result = config.default_config(kind).to_dict()
    for path, value in changes.items():
        *groups, key = path.split(".")
        group = result
        for name in groups:
            group = group[name]
        group[key] = copy.copy(value)
    return result


def refuse(kind, changes, *parts):
    with pytest.raises(ConfigError) as error:
        config.parse(values(kind, **changes))
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        ("distillation", config.ExperimentConfig),
        ("dafl", config.DaflConfig),
        ("dfad", config.DfadConfig),
        ("real_data", config.RealDataConfig),
        ("metadata", config.MetadataConfig),
        ("teacher", config.TeacherTrainingConfig),
    ],
)
def test_defaults_are_valid_and_come_back(kind, cls):
    parsed = config.parse(values(kind))
    assert parsed == cls(name="unnamed")
    assert config.kind_of(parsed) == kind
    assert config.KINDS[kind] is cls
    with pytest.raises(dataclasses.FrozenInstanceError):
        parsed.seed = 1


def test_values_arrive():
    parsed = config.parse(
        values(
            "distillation",
            **{
                "name": "my-run_2",
                "seed": 2**32 - 1,
                "synthesis.grid_factors": [2, 1],
                "targets.distribution": "dirichlet",
                "targets.betas": (1, 0.5),
                "distillation.learning_rate": 1,
                "student.network": "lenet5",
            },
        )
    )
    assert (parsed.name, parsed.seed) == ("my-run_2", 2**32 - 1)
    assert parsed.synthesis.grid_factors == (2, 1)
    assert parsed.targets.betas == (1.0, 0.5)
    assert type(parsed.targets.betas[0]) is float
    assert type(parsed.distillation.learning_rate) is float
    assert parsed.student.network == "lenet5"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("seeds", 'config.seeds is not a setting. Did you mean "seed"?'),
        (
            "synthesis.num_image",
            'config.synthesis.num_image is not a setting. Did you mean "num_images"?',
        ),
        ("data.qqqqq", "config.data.qqqqq is not a setting. There are: dataset, file"),
    ],
)
def test_unknown_setting_is_named_with_the_closest(path, message):
    refuse("distillation", {path: 1}, message)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("seed", 1.0, "a whole number"),
        ("seed", "1", "a whole number"),
        ("seed", True, "a whole number"),
        ("seed", None, "a whole number"),
        ("targets.sigma", "1", "a number"),
        ("targets.sigma", True, "a number"),
        ("targets.sigma", None, "a number"),
        ("data.dir", 3, "a text"),
        ("data.dir", None, "a text"),
        ("synthesis.grid_factors", (4.0, 1), "whole numbers, as in (4, 2, 1)"),
        ("synthesis.grid_factors", 4, "whole numbers, as in (4, 2, 1)"),
        ("synthesis.grid_factors", "421", "whole numbers, as in (4, 2, 1)"),
        ("synthesis.grid_factors", (True,), "whole numbers, as in (4, 2, 1)"),
        ("targets.betas", ("1",), "numbers, as in (1.0, 0.1)"),
        ("targets.betas", 0.1, "numbers, as in (1.0, 0.1)"),
        ("synthesis", 3, "a group of settings"),
    ],
)
def test_wrong_type(path, value, expected):
    refuse("distillation", {path: value}, f"config.{path}={value!r} must be {expected}")


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(
    "path", ["targets.sigma", "synthesis.l2", "distillation.noise"]
)
def test_non_finite_numbers(path, value):
    refuse("distillation", {path: value}, f"config.{path}={value!r} must be a finite")


def test_non_finite_number_in_a_tuple():
    refuse("distillation", {"targets.betas": (1.0, NAN)}, "config.targets.betas=nan")


POSITIVE = "must be at least 1"
ABOVE_ZERO = "must be above 0"
NOT_NEGATIVE = "must be 0 or more"
UNIT = "must be from 0 to 1"
RANGES = {
    "distillation": {
        POSITIVE: {
            "synthesis": ["images_per_device", "steps_per_call"],
            "distillation": [
                "num_steps",
                "batch_size",
                "log_every",
                "checkpoint_every",
            ],
        },
        ABOVE_ZERO: {
            "synthesis": ["learning_rate"],
            "distillation": ["learning_rate"],
        },
        NOT_NEGATIVE: {
            "synthesis": [
                "num_steps",
                "init_scale",
                "total_variation",
                "l2",
                "batch_norm",
                "checkpoint_seconds",
            ],
            "distillation": [
                "procedural",
                "weight_decay",
                "feature_weight",
            ],
        },
        UNIT: {
            "synthesis": ["flip"],
            "distillation": [
                "class_balance",
                "mixup",
                "cutmix",
                "flip",
                "mirror",
                "fill",
            ],
        },
    },
    "dafl": {
        POSITIVE: {
            "": [
                "num_steps",
                "batch_size",
                "num_samples",
                "log_every",
                "checkpoint_every",
            ],
            "generator": ["latent_size"],
        },
        ABOVE_ZERO: {
            "": ["learning_rate"],
            "generator": ["learning_rate", "epsilon"],
        },
        NOT_NEGATIVE: {
            "": [
                "one_hot_weight",
                "information_weight",
                "activation_weight",
                "weight_decay",
            ]
        },
    },
    "dfad": {
        POSITIVE: {"": ["student_steps"]},
        NOT_NEGATIVE: {"": ["weight_decay"]},
    },
    "real_data": {
        POSITIVE: {"distillation": ["num_steps"]},
        NOT_NEGATIVE: {"": ["images_per_class"]},
    },
    "metadata": {POSITIVE: {"synthesis": ["images_per_device"]}},
    "teacher": {
        POSITIVE: {"": ["batch_size", "log_every", "checkpoint_every"]},
        ABOVE_ZERO: {"": ["learning_rate"]},
        NOT_NEGATIVE: {"": ["warmup_steps", "weight_decay"]},
        UNIT: {"": ["flip"]},
    },
}


EXTENTS = ("affine", "contrast", "brightness", "noise")
PIXELS = ("shift", "elastic")


def range_cases():
    for kind, messages in RANGES.items():
        for message, groups in messages.items():
            for group, keys in groups.items():
                for key in keys:
                    path = f"{group}.{key}" if group else key
                    *_, default = walk(values(kind), path)
                    if message is UNIT:
                        yield kind, path, 1.01, message
                    bad = 0 if message in (POSITIVE, ABOVE_ZERO) else -1
                    yield kind, path, type(default)(bad), message


def walk(mapping, path):
    for key in path.split("."):
        mapping = mapping[key]
        yield mapping


@pytest.mark.parametrize(("kind", "path", "value", "message"), list(range_cases()))
def test_values_out_of_range(kind, path, value, message):
    refuse(kind, {path: value}, f"config.{path}={value!r}", message)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("seed", -1, "from 0 to 4,294,967,295"),
        ("seed", 2**32, "from 0 to 4,294,967,295"),
        ("name", "", "use letters, digits, - and _"),
        ("name", "../up", "use letters, digits, - and _"),
        ("synthesis.grid_factors", (), "name at least one number, each from 1"),
        ("synthesis.grid_factors", (2, 0), "each must be from 1"),
        ("targets.betas", (), "name at least one"),
        ("targets.betas", (1.0, 0.0), "each must be above 0"),
        ("distillation.warmup_steps", -1, "0 or more"),
        ("targets.sigma", -1.0, "from 0 to 1,000,000"),
        ("synthesis.temperature", -1.0, "from 0 to 10,000"),
        ("distillation.temperature", -1.0, "from 0 to 10,000"),
        *((f"distillation.{key}", -1.0, "from 0 to 10") for key in EXTENTS),
        *((f"distillation.{key}", 1e5, "from 0 to 16,384") for key in PIXELS),
        ("cpu_devices", -1, "from 0 to 1,024"),
        ("targets.grid", 0, "from 1 to 1,024"),
        ("synthesis.max_shift", -1, "from 0 to"),
        ("synthesis.num_images", 0, "from 1 to"),
    ],
)
def test_other_ranges(path, value, message):
    refuse("distillation", {path: value}, f"config.{path}=", message)


@pytest.mark.parametrize(
    ("path", "value", "choice"),
    [
        ("teacher.network", "lenet", "lenet5"),
        ("student.network", "lenet5_halve", "lenet5_half"),
        ("targets.distribution", "gausian", "gaussian"),
        ("targets.scale", "varianc", "variance"),
        ("targets.weights", "in-coming", "incoming"),
        ("targets.window", "flat", "flatten"),
        ("targets.mean", "biases", "bias"),
        ("synthesis.pixel_bounds", "sigmoids", "sigmoid"),
        ("synthesis.batch_norm_distance", "relativ", "relative"),
        ("synthesis.init", "unifrom", "uniform"),
        ("distillation.schedule", "cosin", "cosine"),
        ("distillation.labels", "stor", "stored"),
        ("distillation.loss", "hintn", "hinton"),
        ("kind", "teachers", "teacher"),
    ],
)
def test_unknown_choice_is_named_with_the_closest(path, value, choice):
    refuse(
        "distillation",
        {path: value},
        f"config.{path}={value!r} is not known: choose one of",
        f'Did you mean "{choice}"?',
    )


RESCALED = {"synthesis.pixel_bounds": "rescale", "synthesis.init": "uniform"}
STORED = {
    "distillation.labels": "stored",
    "distillation.loss": "hinton",
    "distillation.mixup": 0.0,
    "distillation.cutmix": 0.0,
    "distillation.procedural": 0,
}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"synthesis.num_images": 150},
            ["config.synthesis.num_images=150", "synthesis.images_per_device=100"],
        ),
        (
            {"synthesis.num_steps": 75},
            ["config.synthesis.num_steps=75", "synthesis.steps_per_call=20"],
        ),
        (
            {"distillation.warmup_steps": 500, "distillation.num_steps": 500},
            ["config.distillation.warmup_steps=500", "distillation.num_steps=500"],
        ),
        (
            {"distillation.mixup": 0.75, "distillation.cutmix": 0.5},
            ["config.distillation.mixup+cutmix=1.25", "must not exceed 1"],
        ),
        (
            {"distillation.labels": "stored", "distillation.loss": "l1"},
            ["config.distillation.loss='l1'", "hinton"],
        ),
        (
            STORED | {"distillation.mixup": 0.5},
            ["mixed samples have no stored label"],
        ),
        (
            STORED | {"distillation.procedural": 3},
            ["config.distillation.procedural=3", "have no stored label"],
        ),
        (
            RESCALED | {"synthesis.grid_factors": (4, 2, 1)},
            ["config.synthesis.grid_factors=(4, 2, 1)", "it must be (1,)"],
        ),
        *(
            (
                {f"synthesis.{key}": value},
                ["config.synthesis.init='shapes'", f"synthesis.{key}", "init='normal'"],
            )
            for key, value in {
                "pixel_bounds": "none",
                "grid_factors": (4, 2),
            }.items()
        ),
        (
            {"teacher.weights": ""},
            ["config.teacher.weights=''", "name shipped weights"],
        ),
        *(
            ({f"student.{key}": value}, [f"config.student.{key}=", f"teacher.{key}"])
            for key, value in {
                "weights": "student.safetensors",
                "mapping": "mapping.json",
                "image_shape": (8, 8, 1),
                "mean": (0.5,),
                "std": (0.5,),
            }.items()
        ),
        (
            {"teacher.module": "nets"},
            ["config.teacher.module='nets'", "package.module:Class"],
        ),
        (
            {"teacher.image_shape": (8, 8), "teacher.mean": (0.0,)},
            ["config.teacher.image_shape=(8, 8)", "height, width and channels"],
        ),
        (
            {"teacher.image_shape": (8, 8, 3), "teacher.mean": (0.0,)},
            ["config.teacher.mean=(0.0,)", "3 numbers each"],
        ),
        (
            {"teacher.mean": (0.5,), "teacher.std": (0.0,)},
            ["config.teacher.std=(0.0,)", "above 0"],
        ),
        (
            {"data.dataset": "", "data.split": "validation"},
            ["config.data.split='validation'", "no test set is named"],
        ),
        *(
            (
                {"data.dataset": "", "data.file": "test.npz", f"data.{key}": "x"},
                [f"config.data.{key}='x' has no effect with config.data.dataset=''"],
            )
            for key in ("dir", "raw_dir")
        ),
        (
            {"data.file": "test.npz"},
            ["config.data.file='test.npz'", 'data.dataset=""'],
        ),
        (
            {"data.split": "validaton"},
            ["config.data.split='validaton'", 'Did you mean "validation"?'],
        ),
        ({"data.split": "train"}, ["choose one of test, validation"]),
    ],
)
def test_settings_that_clash(changes, parts):
    refuse("distillation", changes, *parts)


@pytest.mark.parametrize(
    "changes",
    [
        STORED | {"distillation.shift": 1.0},
        {"targets.weights": "outgoing", "targets.feature_layer": "dense_1"},
        {"targets.weights": "incoming", "targets.feature_layer": "output"},
        {"distillation.mixup": 0.5, "distillation.cutmix": 0.5},
        {"distillation.warmup_steps": 0, "distillation.num_steps": 1},
        {"synthesis.num_steps": 0},
        RESCALED,
        {"synthesis.activation_weight": -0.1, "synthesis.init": "shapes"},
    ],
)
def test_settings_at_the_limit_are_allowed(changes):
    config.parse(values("distillation", **changes))


@pytest.mark.parametrize("kind", ["real_data", "metadata", "teacher"])
def test_what_reads_real_data_names_it(kind):
    refuse(kind, {"data.dataset": ""}, "config.data.dataset=''", "training images")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("dafl", {"generator.features": (8, 8)}, "config.generator.features=(8, 8)"),
        ("dafl", {"generator.features": (8, 8, 0)}, "each must be at least 1"),
        ("dfad", {"momentum": 1.0}, "config.momentum=1.0"),
        ("teacher", {"momentum": 1.0}, "config.momentum=1.0"),
        ("dafl", {"optimizer": "adam"}, "config.optimizer='adam'"),
        ("dafl", {"schedule": "steps"}, "config.schedule='steps'"),
        ("teacher", {"optimizer": "adam"}, "config.optimizer='adam'"),
        (
            "distillation",
            {"distillation.momentum": -0.1},
            "config.distillation.momentum=-0.1",
        ),
        (
            "distillation",
            {"distillation.optimizer": "SGD"},
            "config.distillation.optimizer='SGD' is not known: choose one of adamw",
        ),
        ("dfad", {"one_hot_weight": 1.0}, "config.one_hot_weight is not a setting"),
        ("real_data", {"synthesis": {}}, "config.synthesis is not a setting"),
    ],
)
def test_settings_of_baselines(kind, changes, message):
    refuse(kind, changes, message)


@pytest.mark.parametrize("kind", list(config.KINDS))
def test_where_results_go_tells_what_was_read(kind):
    """Students of real data cannot lie beside those of the teacher's weights alone."""
    settings = config.KINDS[kind](name="x")
    from_real_data = kind in ("real_data", "metadata")
    assert settings.folder == ("real_data/x" if from_real_data else "x")
    assert settings.reads_real_data == (from_real_data or kind == "teacher")


def test_teachers_are_evaluated_on_both_parts():
    refuse("teacher", {"data.split": "validation"}, "config.data.split='validation'")


def test_missing_name():
    with pytest.raises(ConfigError, match=r"config\.name is missing: set it"):
        config.parse({"kind": "teacher"})


def test_kind_is_needed():
    with pytest.raises(ConfigError, match=r"config\.kind='None' is not known"):
        config.parse({"name": "x"})


def test_unknown_variant_suggests_one():
    error = config.unknown_variant("smok", ("paper", "smoke"))
    assert (
        "no variant 'smok': choose one of paper, smoke. Did you mean \"smoke\"?"
        in str(error)
    )


@pytest.mark.parametrize("module", ["config", "main", "evaluate", "models.registry"])
def test_settings_are_checked_before_jax_is_imported(module):
    check = f"import sys, dfkd_jax.{module}; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_what_is_recorded_has_an_effect():
    values = dataclasses.asdict(config.ExperimentConfig(name="mine"))
    values["synthesis"] |= {"num_steps": 0, "batch_norm": 1.0, "init": "shapes"}
    found = settings.recorded(config.ExperimentConfig, values)
    # What needs a setting that is idle is idle, too.
    assert set(values["synthesis"]) - set(found["synthesis"]) == {
        *("steps_per_call", "learning_rate", "temperature", "activation_weight"),
        *("total_variation", "l2", "batch_norm", "batch_norm_distance", "max_shift"),
        *("flip", "checkpoint_seconds", "init_scale"),
    }
    assert "betas" not in found["targets"] and "sigma" in found["targets"]
    assert found["synthesis"]["grid_factors"] == [1]
    # Once more, it is what it is; and it says all that its readers need.
    assert settings.used(config.ExperimentConfig, found) == found
    assert config.from_mapping(config.SynthesisConfig, found["synthesis"])


def test_records_of_earlier_releases():
    """They hold all settings: kept where only idle ones differ."""
    cls = config.DistillationConfig
    values = dataclasses.asdict(cls())
    before = values | {"momentum": 0.5}
    assert settings.recorded(cls, values, before) is before
    for other in ({"num_steps": 1}, {"loss": 3}, {"loss": None}, {"optimizer": []}):
        assert "momentum" not in settings.recorded(cls, values, before | other)
    for strange in (None, 3, [], {}, {"x": 1}):
        assert settings.recorded(cls, values, strange) == settings.used(cls, values)


def test_what_needs_an_idle_setting_is_refused():
    """In a file that turns BatchNorm's prior on and synthesis off."""
    base = config.default_config().to_dict() | {"name": "mine"}
    base["synthesis"] |= {"batch_norm": 1.0}
    for key, value in {"batch_norm_distance": "absolute", "steps_per_call": 7}.items():
        values = copy.deepcopy(base)
        values["synthesis"] |= {"num_steps": 0, key: value}
        with pytest.raises(ConfigError, match=f"{key}=.* no effect with .*num_steps=0"):
            config.parse(values, base=base)
