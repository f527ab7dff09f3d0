"""Commands that README.md and docs/ print can be given as they are."""

import re
import shlex

import command_runner
import pytest

from dfkd_jax import command_line, config_files

DOCUMENTS = [
    command_runner.REPOSITORY / name
    for name in (
        *("README.md", "docs/commands.md", "docs/your-own-network.md"),
        *("docs/data.md", "docs/recipe.md"),
    )
]


def commands() -> list[str]:
    """Lines of fenced blocks that run the package, continuations joined."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    blocks = re.findall(r"^ *```[^\n]*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    found = []
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split("&&|;|^ *[$] ", line):
                if "python -m dfkd_jax" in part:
                    found.append(" ".join(part.split()))
    return found


COMMANDS = list(dict.fromkeys(commands()))


def _check(module, arguments):
    """Parses flags as the command does, and stops before it does anything."""

    def parse_only(main):
        import sys

        from absl import flags

        left = command_line._parse(sys.argv)
        assert len(left) == 1, f"unexpected arguments {left[1:]}"
        if "config" in flags.FLAGS:
            assert flags.FLAGS.config is not None
            config_files.chosen(flags.FLAGS.config)
        print("parsed")

    command_line.run = parse_only
    command_runner.run_module(module, arguments)


def test_readme_has_commands():
    assert any(" -m dfkd_jax.main --config=configs/" in line for line in COMMANDS)


@pytest.fixture(scope="module")
def own_config(tmp_path_factory):
    """The config file of a user's own that the documents print."""
    [text] = re.findall(
        r"```python\n# my_config.py\n(.*?)```", DOCUMENTS[2].read_text(), re.DOTALL
    )
    path = tmp_path_factory.mktemp("config") / "my_config.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize("line", COMMANDS)
def test_command(lab, own_config, line):
    words = shlex.split(line.replace("my_config.py", str(own_config)), comments=True)
    while "=" in words[0]:  # A variable for this command alone.
        words.pop(0)
    assert words[:2] == ["python", "-m"]
    module = words[2].removeprefix("dfkd_jax.")
    if module in ("main", "inspect", "evaluate", "export") and "--help" not in words:
        command = lab.runner.call(_check, module, words[3:])
        assert command.wait() == 0, command.stderr
        assert command.stdout == "parsed\n"
    else:
        command = lab.runner.start(module, "--help")
        assert command.wait() == 0, command.stderr
        flags = [word.split("=")[0] for word in words[3:] if word.startswith("--")]
        flags = [flag for flag in flags if not flag.startswith("--config.")]
        for flag in flags:
            assert flag in command.stdout
