import numpy as np
import pytest

from dfkd_jax.baselines import game


@pytest.mark.parametrize(
    ("spread", "warned"), [(0.0, True), (0.005, True), (0.05, False), (1.0, False)]
)
def test_a_generator_that_makes_one_image_is_noticed(capfd, spread, warned):
    """Pixels differ within an image; what counts is how images differ."""
    random = np.random.default_rng(0)
    image = random.normal(size=(1, 8, 8, 1))
    game.warn_if_alike(image + spread * random.normal(size=(50, 8, 8, 1)))
    error = capfd.readouterr().err
    assert ("WARNING: The generator makes the same image" in error) == warned
