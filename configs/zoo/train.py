"""Trains the teachers of the zoo on real data, with labels.

    python -m configs.zoo.train             those that are not there yet
    python -m configs.zoo.train mixup tanh

Needs the extra `plots`. Some minutes each on two cores. Weights are written
to tests/zoo/, with the accuracy on the test set beside them in accuracies.json;
held-out images of parts of data sets go there, too, but not into the repository.
"""

import pathlib
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs.zoo.teachers import NETWORKS, TEACHERS, Teacher
from dfkd_jax import api
from dfkd_jax.data import datasets, tfds
from dfkd_jax.distillation import augment
from dfkd_jax.models import registry
from dfkd_jax.models.network import Linen
from dfkd_jax.runtime import augmentation, files

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "tests/zoo"
BATCH = 128
LEARNING_RATE = 2e-3


class Images(NamedTuple):
    """Pixels `[n, height, width, channels]` from 0 to 1 and labels `[n]`."""

    pixels: np.ndarray
    labels: np.ndarray


def read(teacher: Teacher, split: str) -> Images:
    """The "train", "validation" or "test" images that a teacher is for."""
    if teacher.dataset == "digits":
        found = _digits(split)
    else:
        loaded = tfds.load(teacher.dataset, split, report=print)
        found = Images(np.float32(loaded.images) / 255, loaded.labels)
    if teacher.classes:
        kept = np.isin(found.labels, teacher.classes)
        found = Images(
            found.pixels[kept], np.searchsorted(teacher.classes, found.labels[kept])
        )
    if teacher.side:
        factor = found.pixels.shape[1] // teacher.side
        shape = (-1, teacher.side, factor, teacher.side, factor, 3)
        found = Images(found.pixels.reshape(shape).mean((2, 4)), found.labels)
    if teacher.shares and split == "train":
        rng = np.random.default_rng(0)
        kept = rng.random(len(found.labels)) < np.take(teacher.shares, found.labels)
        found = Images(found.pixels[kept], found.labels[kept])
    return found


def _digits(split):
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    parts = {"test": order[:500], "validation": order[500:700], "train": order[700:]}
    pixels = np.float32(digits.images[..., None] / 16)
    return Images(pixels[parts[split]], digits.target[parts[split]])


def normalization(teacher: Teacher, train: Images) -> tuple[list, list]:
    """Mean and standard deviation of the pixels, one a channel."""
    if teacher.dataset != "digits":
        spec = datasets.spec(teacher.dataset)
        return list(spec.mean), list(spec.std)
    axes = (0, 1, 2)
    return train.pixels.mean(axes).tolist(), train.pixels.std(axes).tolist()


def train(name: str) -> float:
    """Writes the weights of a teacher; its accuracy on the test set."""
    teacher = TEACHERS[name]
    images = read(teacher, "train")
    mean, std = normalization(teacher, images)
    num_classes = int(images.labels.max()) + 1
    kind = teacher.network
    module = registry.create(
        kind if kind in registry.NETWORKS else f"{NETWORKS}:{kind}",
        num_classes=num_classes,
    )
    shape = images.pixels.shape[1:]
    model = Linen(module)
    variables = model.init(jax.random.key(0), shape)
    steps_per_epoch = len(images.labels) // BATCH
    num_steps = steps_per_epoch * teacher.epochs
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, LEARNING_RATE, min(200, num_steps // 10), num_steps
    )
    optimizer = optax.chain(
        optax.add_decayed_weights(teacher.weight_decay), optax.adam(schedule)
    )
    means, stds = np.float32(mean), np.float32(std)

    def change(key, image):
        if teacher.affine or teacher.elastic:
            image = augment.warp(
                key, image, shift=0.0, affine=teacher.affine, elastic=teacher.elastic
            )
        if teacher.flip:
            image = augmentation.flip(
                jax.random.fold_in(key, 1), image, probability=0.5
            )
        if teacher.shift:
            image = augmentation.shift(
                jax.random.fold_in(key, 2), image, max_shift=teacher.shift
            )
        return image

    def loss(params, rest, pixels, targets, key):
        logits, rest = model.train_logits(
            {"params": params} | rest, (pixels - means) / stds, key
        )
        return optax.softmax_cross_entropy(logits, targets).mean(), rest

    @jax.jit
    def epoch(carry, pixels, labels):
        def step(carry, batch):
            params, rest, state, key = carry
            pixels, labels = batch
            key, change_key, mix_key, drop_key = jax.random.split(key, 4)
            targets = optax.smooth_labels(
                jax.nn.one_hot(labels, num_classes), teacher.label_smoothing
            )
            pixels = jax.vmap(change)(jax.random.split(change_key, BATCH), pixels)
            if teacher.mixup:
                weight = jax.random.beta(mix_key, teacher.mixup, teacher.mixup)
                pixels, targets = (
                    weight * each + (1 - weight) * each[::-1]
                    for each in (pixels, targets)
                )
            (value, rest), gradients = jax.value_and_grad(loss, has_aux=True)(
                params, rest, pixels, targets, drop_key
            )
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), rest, state, key), value

        return jax.lax.scan(step, carry, (pixels, labels))

    params = variables.pop("params")
    carry = (params, variables, optimizer.init(params), jax.random.key(1))
    rng = np.random.default_rng(0)
    for number in range(teacher.epochs):
        order = rng.permutation(len(images.labels))[: steps_per_epoch * BATCH]
        batches = (each[order].reshape(-1, BATCH, *each.shape[1:]) for each in images)
        carry, values = epoch(carry, *map(jnp.asarray, batches))
        print(f"{name}: epoch {number + 1}, loss {values.mean():.4f}", flush=True)
    found = api.from_linen(
        module,
        {"params": carry[0]} | carry[1],
        image_shape=shape,
        mean=mean,
        std=std,
    )
    FOLDER.mkdir(exist_ok=True)
    found.save(FOLDER / f"{name}.safetensors")
    test = read(teacher, "test")
    return api.evaluate(found, test.pixels, test.labels)["accuracy"]


def write_held_out(name: str) -> None:
    """Writes the images of a teacher that is for a part of a data set, as bytes."""
    for split in ("validation", "test"):
        images = read(TEACHERS[name], split)
        np.savez_compressed(
            FOLDER / f"{name}_{split}.npz",
            images=np.rint(images.pixels * 255).astype(np.uint8),
            labels=images.labels,
        )


def main(names: list[str]) -> None:
    """Trains the named teachers, or all that have no weights."""
    path = FOLDER / "accuracies.json"
    accuracies = files.read_object(path) if path.exists() else {}
    for name in names or TEACHERS:
        if not TEACHERS[name].is_whole:
            write_held_out(name)
        if TEACHERS[name].weights or (not names and name in accuracies):
            continue
        accuracies[name] = train(name)
        print(f"{name}: {accuracies[name]:.2%} of the test set", flush=True)
        files.write_json(path, accuracies)


if __name__ == "__main__":
    main(sys.argv[1:])
