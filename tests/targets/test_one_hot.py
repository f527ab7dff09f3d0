import jax
import numpy as np

from dfkd_jax.targets import one_hot

KEYS = jax.random.split(jax.random.key(0), 4_000)


def test_labels_are_hard_and_of_all_classes_alike(strict_dtypes):
    drawn = np.asarray(one_hot.labels(5)(KEYS))
    np.testing.assert_array_equal(
        np.sort(drawn, axis=1), np.tile([0, 0, 0, 0, 1], (4_000, 1))
    )
    # 800 of each; the standard deviation is 25.
    assert np.abs(drawn.sum(0) - 800).max() < 100


def test_a_label_depends_on_its_key_alone():
    draw = one_hot.labels(5)
    np.testing.assert_array_equal(draw(KEYS)[7:9], draw(KEYS[7:9]))
