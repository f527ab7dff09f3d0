"""What people are told of settings."""

import dataclasses

import pytest

from dfkd_jax import config, settings_help


@pytest.mark.parametrize("kind", config.KINDS)
def test_every_setting_has_a_sentence(kind):
    found = list(settings_help.describe(config.KINDS[kind], config.defaults(kind)))
    assert len(found) > 10
    for setting in found:
        assert setting.meaning.endswith("."), setting.name
        assert "Attributes" not in setting.meaning


def test_changes_are_marked():
    settings = config.ExperimentConfig(name="mine", seed=3)
    text = settings_help.shown(
        type(settings), dataclasses.asdict(settings), config.defaults("distillation")
    )
    assert "* config.seed = 3   (default 0)" in text
    assert "  config.distillation.batch_size = 128" in text
    assert "[cosine, constant]" in text and "[from 0 to 1]" in text
    assert max(map(len, text.splitlines())) <= 80
