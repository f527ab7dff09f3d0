import json

import pytest

from dfkd_jax.errors import ConfigError
from dfkd_jax.teachers import mappings
from dfkd_jax.teachers.mappings import Source


def parse(values):
    return mappings.parse(values, origin="The mapping m.json")


def test_a_file_of_every_form(tmp_path):
    path = tmp_path / "m.json"
    path.write_text(
        '{"conv_1": "features.0", "norm": {"from": "bn"},'
        ' "dense_1": {"from": "fc", "flatten": [16, 5, 4]},'
        ' "dense_2": {"from": "fc2", "flatten": false},'
        ' "a/query": {"from": "q", "transpose": [1, 0]}, "$ignore": ["aux."]}'
    )
    mapping = mappings.read(path)
    assert mapping.sources == {
        "conv_1": Source(name="features.0"),
        "norm": Source(name="bn"),
        "dense_1": Source(name="fc", flatten=(16, 5, 4)),
        "dense_2": Source(name="fc2", flatten=()),
        "a/query": Source(name="q", transpose=(1, 0)),
    }
    assert mapping.ignore == ("aux.",)
    assert mapping.origin == f"The mapping {path}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["conv_1"], "must be a JSON object of layers"),
        ({}, "names no layer"),
        ({"$ignore": ["aux."]}, "names no layer"),
        ({"c": "a", "$ignore": "aux."}, r"\$ignore must be texts"),
        ({"c": "a", "$ignore": [""]}, r"\$ignore must be texts"),
        ({"c": 3}, "'c' must be the name of a PyTorch layer, or an object"),
        ({"c": None}, "'c' must be the name"),
        ({"c": ""}, "'c' lacks the name of a PyTorch layer"),
        ({"c": {"flatten": [1, 2, 3]}}, "'c' lacks the name of a PyTorch layer"),
        ({"c": {"from": 1}}, "'c' lacks the name of a PyTorch layer"),
        (
            {"c": {"from": "a", "flaten": [1, 2, 3]}},
            """'c' has an unknown option 'flaten'. Did you mean "flatten"?""",
        ),
        ({"c": {"from": "a", "flatten": [2, 3]}}, r"must be \[channels, height"),
        ({"c": {"from": "a", "flatten": [2, 3, 0]}}, r"must be \[channels, height"),
        ({"c": {"from": "a", "flatten": [2, 3, 1.5]}}, r"must be \[channels, height"),
        ({"c": {"from": "a", "flatten": [2, 3, True]}}, r"must be \[channels, height"),
        ({"c": {"from": "a", "flatten": True}}, r"must be \[channels, height"),
        ({"c": {"from": "a", "flatten": "no"}}, r"must be \[channels, height"),
        ({"c": {"from": "a", "transpose": [1, 1]}}, "must be an order of axes"),
        ({"c": {"from": "a", "transpose": 1}}, "must be an order of axes"),
    ],
)
def test_what_is_wrong_is_named(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse(values)
    assert str(caught.value).startswith("The mapping m.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"conv_1": "a", "conv_1": "b"}', "'conv_1' is given twice"),
        ("conv_1: a", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        (b"\xff\xfe\x00", "is no JSON"),
        (json.dumps({"conv_1": "a" * 1_000_000}), "larger than 1,000,000 bytes"),
    ],
)
def test_files_that_are_no_mappings(tmp_path, content, message):
    path = tmp_path / "m.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message):
        mappings.read(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"m\.json cannot be read \(No such file"):
        mappings.read(tmp_path / "m.json")
