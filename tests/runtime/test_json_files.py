"""JSON that nobody should write: told apart from damage by one sentence, or taken."""

import json
import pathlib

import pytest

from dfkd_jax import config_files, evaluation
from dfkd_jax.errors import CheckpointError, ConfigError, DfkdError
from dfkd_jax.runtime import files, records, workdir, writers
from dfkd_jax.synthesis.transfer_set import Manifest, TransferSet
from dfkd_jax.teachers import mappings

MANIFEST = Manifest(
    num_images=2,
    shard_size=1,
    image_shape=(2, 2, 1),
    num_classes=2,
    seed=0,
    teacher_sha256="f",
    settings={},
)
# By file: what reads it, and a text with a place for a number.
FILES = {
    "settings.json": (
        lambda path: config_files.read_settings(str(path)),
        '{"name": "x", "synthesis": {"l2": VALUE}}',
    ),
    "run.json": (lambda path: workdir.in_place(path.parent), '{"a": {"std": VALUE}}'),
    "results.json": (records.read, '{"student": {"accuracy": VALUE}}'),
    "seconds.json": (records.read, '{"prepare": VALUE}'),
    "manifest.json": (
        lambda path: TransferSet.existing(path.parent),
        json.dumps(vars(MANIFEST) | {"settings": {"l2": "VALUE"}})
        .replace('"V', "V")
        .replace('E"', "E"),
    ),
    "mapping.json": (
        mappings.read,
        '{"dense": {"from": "fc", "flatten": [VALUE, 2, 2]}}',
    ),
}
STRANGE = {
    "twice": ('{"a": 1, "a": 2}', "'a' is given twice"),
    "nul": ("\0", "Expecting value"),
    "nul in a text": ('"\0"', "Invalid control character"),
    "nan": ("NaN", "'NaN' is no finite number"),
    "infinity": ("-Infinity", "'-Infinity' is no finite number"),
    "1e999": ("-1e999", "'-1e999' is no finite number"),
    "digits": ("1" * 5_000, "4300 digits"),
    "nest": ("[" * 100_000 + "]" * 100_000, "nested too deep"),
    "nest of objects": ('{"a":' * 50_000 + "1" + "}" * 50_000, "nested too deep"),
}


@pytest.fixture(params=FILES)
def file(request, tmp_path):
    read, text = FILES[request.param]
    if request.param == "run.json":  # Of a folder that is ours.
        (tmp_path / ".lock").write_text(files.OWNED)
    return read, tmp_path / request.param, text


@pytest.mark.parametrize("name", STRANGE)
def test_no_number(file, name):
    read, path, text = file
    value, reason = STRANGE[name]
    path.write_text(text.replace("VALUE", value))
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        read(path)
    message = str(caught.value)
    assert reason in message and str(path) in message
    assert len(message) < 400 + len(str(path)) and message.isprintable()


def test_a_key_twice_at_the_top(file):
    """Of what it says last, the digest would hold."""
    read, path, text = file
    text = text.replace("VALUE", "1")
    key = next(iter(json.loads(text)))
    path.write_text(f'{text[:-1]}, "{key}": {json.dumps(json.loads(text)[key])}}}')
    with pytest.raises(DfkdError, match=f"'{key}' is given twice"):
        read(path)


def test_minus_zero(file):
    """It is 0, or no number that can be there."""
    read, path, text = file
    path.write_text(text.replace("VALUE", "-0.0"))
    if path.name == "mapping.json":
        with pytest.raises(ConfigError, match="flatten"):
            read(path)
        return
    found = read(path)
    if path.name == "settings.json":
        assert str(found.synthesis.l2) == "0.0"


@pytest.mark.parametrize("text", ["a\0b", "\0", "\ud800", "a/\0"])
def test_a_name_that_is_none(tmp_path, text):
    """Escaped, so that JSON has it."""
    path = tmp_path / "settings.json"
    for settings in ({"data": {"file": text, "dataset": ""}}, {"name": text}):
        path.write_text(json.dumps({"name": "x"} | settings))
        with pytest.raises(ConfigError):
            config_files.read_settings(str(path))
    config = {"teacher": {"weights": text, "network": "lenet5"}}
    (tmp_path / "run.json").write_text(json.dumps({"config": config}))
    with pytest.raises(DfkdError):
        evaluation.load_teacher(tmp_path, module="", flag="--teacher_module")


@pytest.mark.parametrize(
    "line", [value for value, _ in STRANGE.values()], ids=list(STRANGE)
)
def test_a_strange_line_of_metrics_is_passed_over(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    lines = [f'{{"stage": "s", "step": {step}, "loss": 1.0}}' for step in (1, line)]
    path.write_text("\n".join([*lines, line]) + "\n")
    assert writers.read_scalars(path, stage="s") == {1: {"loss": 1.0}}


def test_a_strange_line_of_an_index_is_passed_over(tmp_path):
    """Of a transfer set; shards of it are made again."""
    made = TransferSet(tmp_path, MANIFEST)
    index = pathlib.Path(tmp_path, "shards.jsonl")
    lines = [f'{{"shard": {value}}}' for value, _ in STRANGE.values()]
    index.write_text("\n".join(lines) + "\n")
    assert TransferSet.existing(tmp_path).missing() == made.missing() == [0, 1]
