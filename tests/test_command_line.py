"""What a user gets wrong on the command line: one line, a status, no traceback."""

import importlib.util
import os
import pty
import subprocess
import sys

import command_runner
import pytest
from absl import flags

from dfkd_jax import __main__ as everything
from dfkd_jax import command_line, config, config_files
from dfkd_jax.errors import ConfigError

SMOKE = "--config=configs/mnist.py:smoke"


@pytest.fixture
def parse(monkeypatch):
    """Reads arguments as `dfkd_jax.main` does; the settings."""
    values = flags.FlagValues()
    monkeypatch.setattr(command_line, "FLAGS", values)
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.setattr(command_line, "settable", [])
    monkeypatch.setattr(command_line, "changes", {})
    for name in ("config", "workdir"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "", flag_values=values)
    flags.DEFINE_integer("verbosity", -1, "", flag_values=values)
    with monkeypatch.context() as patch:
        patch.setattr(flags, "DEFINE_string", lambda *_: None)
        config_files.define_flag("")

    def read(*arguments):
        command_line._parse(["main", *arguments])
        return config_files.chosen(values.config)

    return read


@pytest.fixture
def refused(parse, capsys):
    """The one line that arguments are refused with."""

    def read(*arguments):
        try:
            parse(*arguments)
        except SystemExit as error:
            assert error.code == 2
            return capsys.readouterr().err
        except ConfigError as error:
            return str(error)
        raise AssertionError("it was taken")

    return read


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        (["--config.seed=1"], "seed", 1),
        (["--config.seed", "1"], "seed", 1),
        (["-config.seed=1"], "seed", 1),
        (["--config.targets.sigma=2"], "targets.sigma", 2.0),
        (["--config.synthesis.grid_factors=4,1"], "synthesis.grid_factors", (4, 1)),
        (["--config.synthesis.grid_factors=(1,)"], "synthesis.grid_factors", (1,)),
        (["--config.synthesis.grid_factors=1"], "synthesis.grid_factors", (1,)),
        (["--config.student.network=lenet5"], "student.network", "lenet5"),
        (["--config.student.arguments={'a': 1}"], "student.arguments", {"a": 1}),
        (["--config.student.arguments.a=x"], "student.arguments", {"a": "x"}),
        (["--config.student.arguments.a=true"], "student.arguments", {"a": True}),
        (["--config.data.dir="], "data.dir", ""),
    ],
)
def test_changes_of_settings(parse, arguments, key, value):
    found = parse(SMOKE, *arguments)
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--data-dir=a-b"], ["--data_dir=a-b"]),
        (["--data-dir", "a-b"], ["--data_dir", "a-b"]),
        (["-num-processes=2"], ["-num_processes=2"]),
        (["a-b", "--", "--data-dir"], ["a-b", "--", "--data-dir"]),
        (["--config.data.file=a-b"], ["--config.data.file=a-b"]),
    ],
)
def test_flags_with_dashes_are_those_with_underscores(words, meant):
    assert command_line._underscored(["main", *words]) == ["main", *meant]


def test_a_flag_with_dashes(refused):
    assert "--num_processes" in refused(SMOKE, "--num-processes=0", "--num-processes=0")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["Name a config"]),
        (["--config="], ["Name a config"]),
        ([SMOKE, "--config.seed.x=1"], ["config.seed.x", "config.seed has none below"]),
        ([SMOKE, "--config.seed.x.y=1"], ["config.seed has none below"]),
        ([SMOKE, "--config.synthesis=3"], ["a group of settings", "num_images=…"]),
        ([SMOKE, "--config.synthesis={}"], ["config.synthesis is a group"]),
        ([SMOKE, "--config.student.arguments=3"], ["a group of arguments"]),
        ([SMOKE, "--config.student.arguments=[("], ["a group of arguments"]),
        ([SMOKE, "--config.=3"], ["--config.KEY=VALUE"]),
        ([SMOKE, "--config.seed"], ["--config.KEY=VALUE"]),
        ([SMOKE, "--config..seed=3"], ["config. is not a setting"]),
        ([SMOKE, "--config.kind=teacher"], ["config.kind is not a setting"]),
        ([SMOKE, SMOKE], ["--config is given 2 times"]),
        ([SMOKE, "--config.seed=1", SMOKE], ["--config is given 2 times"]),
        ([SMOKE, "--workdir=a", "--workdir=b"], ["--workdir is given 2 times"]),
        ([SMOKE, "--config.seed=1", "--config.seed=2"], ["config.seed are given"]),
        (
            [SMOKE, "--config.student.arguments.a=1", "--config.student.arguments={}"],
            ["--config.student.arguments.a and then --config.student.arguments are"],
        ),
        ([SMOKE, "--sed=1"], ["--sed is no flag", 'Did you mean "--config.seed"?']),
        ([SMOKE, "--seed=1"], ['Did you mean "--config.seed"?']),
        ([SMOKE, "--num_image=1"], ['"--config.synthesis.num_images"?']),
        ([SMOKE, "--workdr=1"], ['Did you mean "workdir"?']),
        ([SMOKE, "--num_processes=two"], ["--num_processes=two"]),
        ([SMOKE, "--flagfile=/no/such"], ["/no/such"]),
        ([SMOKE, "--config.seed=" + "9" * 5_000], ["config.seed=999", "whole number"]),
        ([SMOKE, "--config.seed=1e3"], ["config.seed=1e3 must be a whole number"]),
        (
            [SMOKE, "--config.targets.sigma=1e300"],
            ["sigma=1e+300", "from 0 to 1,000,000"],
        ),
        ([SMOKE, "--config.targets.sigma=inf"], ["sigma=inf", "finite"]),
        ([SMOKE, "--config.targets.sigma=1e-300"], ["sigma=1e-300", "float32"]),
        ([SMOKE, "--config.targets.sigma=True"], ["sigma=True must be a number"]),
        ([SMOKE, f"--config.synthesis.num_steps={2**63}"], ["at most 2,147,483,647"]),
        (["--config=" + "x" * 4_000], ["File name too long"]),
        (["--config=" + "x" * 5_000], ["longer than 4,096"]),
        (["--config=configs"], ["no such file"]),
        ([SMOKE, "--config.teacher.weights=" + "x" * 5_000], ["teacher.weights='xxx"]),
        ([SMOKE, "--config.data.dir=" + "x/" * 5_000], ["data.dir='x/x", "4,096"]),
    ],
)
def test_what_is_refused(refused, arguments, parts):
    line = refused(*arguments)
    assert len(line) < 1_000
    assert len(line.strip().splitlines()) == 1
    for part in parts:
        assert part in line


CODE = "import pathlib\npathlib.Path(__file__ + '.ran').touch()\n"


@pytest.mark.parametrize(
    "name",
    ["evil.JSON", "evil.json.txt", "evil.json:x", "evil.txt", "evil", "evil.PY"],
)
def test_only_python_files_are_executed(tmp_path, name):
    path = tmp_path / name.partition(":")[0]
    path.write_text(CODE)
    with pytest.raises(ConfigError):
        config_files.read_config(str(tmp_path / name))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["mine.json", "mine.JSON", "mine.Json"])
def test_settings_in_json(tmp_path, name):
    (tmp_path / name).write_text('{"name": "theirs", "seed": 3}')
    read = config_files.read_settings(str(tmp_path / name), {"seed": "4"})
    assert (read.name, read.seed) == ("theirs", 4)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("raise SystemExit(7)", ["line 1", "SystemExit: 7"]),
        ("import sys\nsys.exit()", ["line 2", "SystemExit."]),
        ("\nimport nothing_of_this_name", ["line 2", "ModuleNotFoundError"]),
        ("x = 1\nx = (", ["line 2", "SyntaxError"]),
        ("x = 1 / 0", ["line 1", "ZeroDivisionError"]),
        ("class E(BaseException): pass\nraise E('a\\nb')", ["line 2", "E: a b."]),
        ("def get_config():\n    return open('/no/such/file')", ["line 2", "No such"]),
        ("x = 1", ["no function get_config"]),
        ("get_config = 3", ["TypeError"]),
        ("def get_config():\n    return 3", ["returned int"]),
        ("def get_config():\n    pass", ["returned NoneType"]),
        ("def get_config():\n    return {'a.b': 1}", ["ValueError"]),
        ("def get_config():\n    return {1: 1}", ["mine.py"]),
        ("\0", ["mine.py"]),
        ("\x80abc", ["mine.py"]),
    ],
)
def test_a_config_file_that_fails(tmp_path, text, parts):
    path = tmp_path / "mine.py"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError) as error:
        config_files.read_settings(str(path))
    line = str(error.value)
    assert len(line.splitlines()) == 1
    for part in parts if "config.kind" not in line else ():
        assert part in line


def test_a_variant_of_a_file_that_has_none(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def get_config():\n    return {}")
    with pytest.raises(ConfigError, match="TypeError: get_config"):
        config_files.read_config(f"{path}:smoke")


def test_ctrl_c_in_a_config_file_is_no_error_of_it(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        config_files.read_config(str(path))


def test_a_changed_config_file_is_read_anew(tmp_path):
    """Python's own cache of compiled modules knows seconds alone."""
    path = tmp_path / "mine.py"
    for seed in (1, 2):
        path.write_text(f"def get_config():\n    return {{'seed': {seed}}}")
        assert config_files.read_config(str(path)).seed == seed


OWN = """
from dfkd_jax.config import default_config

def get_config():
    config = default_config()
    config.name = "mine"
    config.targets.distribution = "{distribution}"
    config.targets.sigma = 3.0
    return config
"""


@pytest.mark.parametrize("kind", config.KINDS)
def test_defaults_have_an_effect_or_are_left_alone(kind):
    """Of the kind, that is: its student has another default than a network has."""
    values = config.default_config(kind)
    values.name = "mine"
    for role in ("teacher", "student"):
        if role in values:
            values[role].module = "my_package:Net"
    config.parse(values.to_dict())


def test_a_setting_without_effect(tmp_path):
    """In a file of one's own, or among the changes; not what changes make idle."""
    path = tmp_path / "mine.py"
    path.write_text(OWN.format(distribution="dirichlet"))
    message = "config.targets.sigma=3.0 has no effect with config.targets.distribution"
    with pytest.raises(ConfigError, match=message):
        config_files.read_settings(str(path))
    path.write_text(OWN.format(distribution="gaussian"))
    assert config_files.read_settings(str(path)).targets.sigma == 3.0
    with pytest.raises(ConfigError, match=r"config\.name=.* must be a text"):
        config_files.read_settings(str(path), changes={"name": {"a": 1}})
    dirichlet = {"targets.distribution": "dirichlet"}
    config_files.read_settings(str(path), dirichlet)
    for changes in ({"targets.sigma": "4"}, {"targets.window": "average"}):
        with pytest.raises(ConfigError, match="has no effect"):
            config_files.read_settings(str(path), dirichlet | changes)
    with pytest.raises(ConfigError, match=r"synthesis\.flip=0\.5 has no effect"):
        config_files.read_settings("configs/mnist.py:noise", {"synthesis.flip": "0.5"})
    with pytest.raises(ConfigError, match="has no effect"):
        config_files.read_settings(
            "configs/mnist.py", changes={"distillation": {"momentum": 0.5}}
        )


PROGRAM = """
import sys
from dfkd_jax import command_line
def main(argv):
    for _ in range(20_000):
        print("x" * 9)
    return 0
command_line.run(main, positional=True)
"""


def _run(arguments="", shell='"$0" -c "$1" {arguments}', program=PROGRAM, **changes):
    return subprocess.run(
        ["bash", "-c", shell.format(arguments=arguments), sys.executable, program],
        env=os.environ | changes,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("shell", "status"),
    [
        ('"$0" -c "$1" >&-', 0),
        ('"$0" -c "$1" 2>&-', 0),
        ('"$0" -c "$1" >&- 2>&- <&-', 0),
        ('set -o pipefail; "$0" -c "$1" | head -1', 0),
        ('set -o pipefail; "$0" -c "$1" --help | head -0', 0),
    ],
)
def test_nobody_reads_what_is_printed(shell, status):
    done = _run(shell=shell)
    assert done.returncode == status
    assert done.stderr == ""


def test_a_full_disk_behind_standard_output_is_told_once():
    done = _run(shell='"$0" -c "$1" >/dev/full')
    assert done.returncode == 0
    assert done.stderr.count("WARNING: Standard output cannot be written") == 1


@pytest.mark.parametrize("columns", ["0", "1", "abc", "9" * 30])
def test_a_terminal_without_a_sensible_width(columns):
    main, other = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, "--help"],
            env=os.environ | {"COLUMNS": columns},
            stdout=other,
            stderr=subprocess.PIPE,
        )
    finally:
        os.close(main)
        os.close(other)
    assert (done.returncode, done.stderr) == (0, b"")


FAILING = """
from dfkd_jax import command_line
from dfkd_jax.errors import CheckpointError
def main(argv):
    import logging
    from absl import logging as absl_logging
    logging.getLogger("orbax").error("told by a library")
    absl_logging.error("told by another")
    if len(argv) > 1:
        open("x" * 5_000)
    raise CheckpointError("why")
command_line.run(main, positional=True)
"""


def test_an_error_is_a_line_and_on_request_all_that_is_known():
    done = _run(program=FAILING)
    assert done.stderr.splitlines()[-1] == "ERROR: why"
    assert "Traceback" not in done.stderr
    assert "told by another" not in done.stderr
    done = _run(program=FAILING, arguments="--verbosity=0")
    assert "Traceback" in done.stderr
    assert "told by another" in done.stderr
    assert done.stderr.splitlines()[-1] == "ERROR: why"
    done = _run(program=FAILING, arguments="argument")
    assert done.returncode == 1
    assert "xxx… File name too long" in done.stderr.replace("'", "").replace(":", "")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [[], ["--help"], ["help"]])
def test_one_command_lists_all(monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["dfkd", *words])
    everything.main()
    printed = capsys.readouterr().out
    for name, (module, _) in everything.COMMANDS.items():
        assert f"  {name} " in printed
        assert importlib.util.find_spec(f"dfkd_jax.{module}")
    assert max(map(len, printed.splitlines())) <= 80


def test_one_command_runs_what_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dfkd", "distil"])
    with pytest.raises(SystemExit) as end:
        everything.main()
    assert end.value.code == 2
    assert 'no command: see dfkd --help. Did you mean "distill"?' in (
        capsys.readouterr().err
    )
    found = subprocess.run(
        [sys.executable, "-m", "dfkd_jax", "distill", "configs/mnist.py"],
        capture_output=True,
        text=True,
        cwd=command_runner.REPOSITORY,
    )
    assert found.returncode == 2
    assert "Did you mean --config=configs/mnist.py?" in found.stderr
