import jax
import numpy as np

from dfkd_jax.reporting import run_files, soft_labels


def draw_labels(keys):
    return jax.nn.softmax(jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys))


def test_draws_by_seed():
    first = soft_labels.draw(draw_labels, seed=3, count=6)
    assert first.shape == (6, 4)
    np.testing.assert_allclose(first.sum(1), 1, rtol=1e-6)
    assert len(np.unique(first, axis=0)) == 6
    np.testing.assert_array_equal(first, soft_labels.draw(draw_labels, seed=3, count=6))
    other = soft_labels.draw(draw_labels, seed=4, count=6)
    assert not np.allclose(first, other)


def test_more_draws_begin_alike():
    few, many = (soft_labels.draw(draw_labels, seed=0, count=count) for count in (3, 9))
    np.testing.assert_allclose(few, many[:3], rtol=1e-6)


def test_draws_do_not_depend_on_batches(monkeypatch):
    sizes = []

    def counting(keys):
        sizes.append(len(keys))
        return draw_labels(keys)

    whole = soft_labels.draw(counting, seed=0, count=7)
    monkeypatch.setattr(soft_labels, "BATCH_SIZE", 3)
    np.testing.assert_allclose(
        whole, soft_labels.draw(counting, seed=0, count=7), rtol=1e-6
    )
    assert sizes == [100, 3, 3, 3]


def test_what_is_saved_is_read(tmp_path, maker):
    folder = maker.make()
    labels = {
        name: draw_labels(jax.random.split(jax.random.key(0), 5))
        for name in ("gaussian", "dirichlet")
    }
    labels = {k: np.pad(v, ((0, 0), (0, 6))) for k, v in labels.items()}
    soft_labels.save(folder / "soft_labels.npz", labels)
    found = run_files.read(folder).drawn
    assert list(found) == ["gaussian", "dirichlet"]
    for name in labels:
        np.testing.assert_array_equal(found[name], labels[name])
