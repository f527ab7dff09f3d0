import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dfkd_jax.distillation import losses, step

STUDENT = 3 * jax.random.normal(jax.random.key(0), (4, 5))
TEACHER = 3 * jax.random.normal(jax.random.key(1), (4, 5))
LOSSES = {
    name: step.make_loss(name, temperature=2.5) for name in ("hinton", "l1", "l2")
}


def test_hinton_by_hand(strict_dtypes):
    # At τ = 2: the teacher says (1/4, 3/4), the student (1/2, 1/2) and the same.
    teacher = 2 * jnp.log(jnp.array([[1.0, 3.0], [1.0, 3.0]]))
    student = 2 * jnp.log(jnp.array([[1.0, 1.0], [1.0, 3.0]]))
    entropy = 0.25 * np.log(4) + 0.75 * np.log(4 / 3)
    result = losses.hinton(student, teacher, temperature=2.0)
    np.testing.assert_allclose(result, [4 * np.log(2), 4 * entropy], rtol=1e-6)


def test_logit_distances_by_hand(strict_dtypes):
    student = jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    teacher = jnp.array([[1.0, 0.0, 7.0], [0.0, 0.0, 3.0]])
    np.testing.assert_allclose(losses.logit_l1(student, teacher), [2, 1])
    np.testing.assert_allclose(losses.logit_l2(student, teacher), [20 / 3, 3])


def test_feature_error_by_hand(strict_dtypes):
    student = jnp.array([[1.0, 2.0], [0.0, 4.0], [0.0, 0.0]])
    teacher = jnp.array([[3.0, 1.0], [0.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(
        losses.feature_error(student, teacher), [0.5, 0, 0], rtol=1e-6
    )


@pytest.mark.parametrize("shape", [(4, 5), (4, 2, 3, 5)], ids=["dense", "maps"])
def test_feature_error_does_not_care_how_strong_features_are(shape):
    keys = jax.random.split(jax.random.key(2))
    student, teacher = (jax.random.normal(key, shape) for key in keys)
    error = losses.feature_error(student, teacher)
    assert error.shape == (4,)
    np.testing.assert_allclose(
        losses.feature_error(50 * student, 50 * teacher), error, rtol=1e-5
    )


def test_feature_error_gradient(strict_dtypes):
    check_grads(
        jax.jit(lambda student: losses.feature_error(student, TEACHER)),
        (STUDENT,),
        order=1,
        modes=["rev"],
        atol=3e-2,
        rtol=2e-2,
    )


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name):
    check_grads(
        jax.jit(lambda student: LOSSES[name](student, TEACHER)),
        (STUDENT,),
        order=1,
        modes=["rev"],
        atol=3e-2,
        rtol=2e-2,
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_hinton_gradient_in_closed_form(strict_dtypes, temperature):
    gradient = jax.grad(
        lambda s: losses.hinton(s, TEACHER, temperature=temperature).sum()
    )(STUDENT)
    odds = [np.exp(np.asarray(x) / temperature) for x in (STUDENT, TEACHER)]
    student, teacher = (x / x.sum(1, keepdims=True) for x in odds)
    np.testing.assert_allclose(gradient, temperature * (student - teacher), atol=1e-5)


def test_hinton_at_large_temperature_is_l2_of_centered_logits(strict_dtypes):
    """Its gradient tends to (s - t) / classes, both centered (Hinton et al., 2015)."""
    gradient = jax.grad(lambda s: losses.hinton(s, TEACHER, temperature=1e3).sum())(
        STUDENT
    )
    difference = np.asarray(STUDENT - TEACHER)
    difference = difference - difference.mean(1, keepdims=True)
    np.testing.assert_allclose(gradient, difference / 5, atol=0.02)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_ignores_a_shift_of_all_logits(name):
    shift = jnp.array([[1.0], [-2.0], [3.0], [0.0]])
    value = LOSSES[name](STUDENT, TEACHER)
    np.testing.assert_allclose(
        LOSSES[name](STUDENT + shift, TEACHER + shift), value, rtol=1e-4
    )
    if name == "hinton":  # It compares distributions, so one side may be shifted.
        np.testing.assert_allclose(
            LOSSES[name](STUDENT + shift, TEACHER), value, rtol=1e-4
        )


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_beats_the_teacher(name):
    best = LOSSES[name](TEACHER, TEACHER)
    assert (LOSSES[name](STUDENT, TEACHER) > best).all()


SURE = jnp.eye(2)[jnp.array([0, 0, 0, 1])]  # Three images of a class, one.


def weights_by_hand(balance):
    return losses.class_weights(SURE, SURE.mean(0), balance=balance)


def test_all_images_count_the_same_without_balance(strict_dtypes):
    np.testing.assert_array_equal(weights_by_hand(0.0), np.ones(4))


def test_all_classes_count_nearly_the_same_in_balance(strict_dtypes):
    weights = np.asarray(weights_by_hand(1.0))
    np.testing.assert_allclose(weights, 1 / np.array([0.76, 0.76, 0.76, 0.26]))
    np.testing.assert_allclose(weights[:3].sum(), weights[3], rtol=0.03)
    np.testing.assert_allclose(weights_by_hand(0.5), weights**0.5, rtol=1e-6)


def test_an_answer_between_classes_counts_for_both(strict_dtypes):
    weights = losses.class_weights(
        jnp.array([[0.25, 0.75]]), jnp.array([0.49, 0.19]), balance=1.0
    )
    np.testing.assert_allclose(weights, [0.25 / 0.5 + 0.75 / 0.2], rtol=1e-6)


def test_a_class_that_is_not_there_gives_no_infinity(strict_dtypes):
    weights = losses.class_weights(SURE[:3], SURE[:3].mean(0), balance=1.0)
    assert np.isfinite(np.asarray(weights)).all()


def test_divergence_by_hand():
    teacher = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
    student = jnp.log(jnp.array([[0.25, 0.25, 0.5]]))
    expected = 0.5 * np.log(2) - 0.25 * np.log(2)
    np.testing.assert_allclose(losses.divergence(student, teacher), [expected], 1e-5)
    # What is added to all logits changes nothing; a copy has none.
    np.testing.assert_allclose(
        losses.divergence(student + 3, teacher - 2), [expected], 1e-5
    )
    np.testing.assert_allclose(losses.divergence(teacher, teacher), [0], atol=1e-6)
    hard = jnp.log(jnp.array([[0.0, 1.0, 0.0]]))  # Of a label.
    found = losses.divergence(student, hard)
    np.testing.assert_allclose(found, -jax.nn.log_softmax(student)[:, 1], 1e-5)
