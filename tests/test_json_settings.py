import json

import pytest

from dfkd_jax import config, config_files, json_settings
from dfkd_jax.errors import ConfigError


def write(folder, content):
    path = folder / "settings.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_settings_lie_over_the_defaults(tmp_path):
    path = write(
        tmp_path,
        {"name": "theirs", "seed": 3, "synthesis": {"grid_factors": [4, 1]}},
    )
    read = config.parse(json_settings.get_config(path).to_dict())
    assert (read.name, read.seed, read.synthesis.grid_factors) == ("theirs", 3, (4, 1))
    assert read.distillation == config.DistillationConfig()
    assert (
        config_files.read_config(path).to_dict()
        == json_settings.get_config(path).to_dict()
    )


def test_teacher_training(tmp_path):
    path = write(tmp_path, {"kind": "teacher", "num_epochs": 2})
    read = config.parse(json_settings.get_config(path).to_dict())
    assert isinstance(read, config.TeacherTrainingConfig)
    assert read.num_epochs == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "Expecting value"),
        ("[1, 2]", "must be an object of settings"),
        ("[" * 100_000, "nested too deep"),
        (" " * 1_000_001, "larger than 1,000,000 bytes"),
        ({"kind": "import os"}, "kind 'import os' is not known"),
        ({"sede": 1}, 'Did you mean "seed"'),
        ({"synthesis": {"num_image": 1}}, 'Did you mean "num_images"'),
        ({"synthesis": 3}, "must be a group of settings"),
        ({"seed": "1"}, "must be a whole number"),
        ({"seed": float("nan")}, "'NaN' is no finite number"),
        ({"teacher": {"module": "os:system"}}, "teacher.module is code"),
        ({"student": {"module": "os:system"}}, "student.module is code"),
        ({"student": {"arguments": {"a.b": 1}}}, "is not possible"),
    ],
)
def test_what_is_refused(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(ConfigError, match=message):
        json_settings.get_config(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        json_settings.get_config(str(tmp_path / "no.json"))
    with pytest.raises(ConfigError, match="no file"):
        json_settings.get_config("/dev/zero")
