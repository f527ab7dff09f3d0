"""Every parser of files that may come from strangers, as a function of bytes.

A target writes its input where the parser looks for it and calls the parser. It returns
whether the input was taken; the errors that the parser promises count as a refusal, and
anything else that is raised is a bug. `SEEDS` are valid inputs to start from.
"""

import functools
import gzip
import io
import json
import os
import pathlib
import tarfile
import tempfile
import zipfile
from collections.abc import Callable

import numpy as np
from safetensors.numpy import save as serialize

from dfkd_jax import evaluation, json_settings
from dfkd_jax.config import default_config
from dfkd_jax.data import held_out, mirrors, raw_files
from dfkd_jax.errors import DfkdError
from dfkd_jax.reporting import curves, run_files
from dfkd_jax.runtime import files, weights
from dfkd_jax.synthesis.transfer_set import Manifest, TransferSet
from dfkd_jax.teachers import mappings, pytorch

SPLIT = b"\n\x00\n"  # Between two files of one input.
DESCRIPTION = weights.Description(
    network="lenet5_half",
    num_classes=3,
    image_shape=(2, 2, 1),
    mean=(0.5,),
    std=(0.25,),
    dataset="toys",
)
MANIFEST = Manifest(
    num_images=4,
    shard_size=2,
    image_shape=(2, 2, 1),
    num_classes=3,
    seed=0,
    teacher_sha256="f" * 64,
    settings={},
)


@functools.cache
def folder() -> pathlib.Path:
    """A folder in memory where there is one, for the files of this process."""
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    made = tempfile.TemporaryDirectory(dir=shared)
    folder.keep = made  # Removed when the process ends.
    return pathlib.Path(made.name)


def _file(name: str, data: bytes) -> pathlib.Path:
    path = folder() / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def _json(value) -> bytes:
    return json.dumps(value).encode()


# Targets ----------------------------------------------------------------------------


def safetensors(data: bytes) -> None:
    weights.load(_file("weights.safetensors", data))


def safetensors_of_others(data: bytes) -> None:
    pytorch.read_state_dict(_file("theirs.safetensors", data))


def pytorch_archive(data: bytes) -> None:
    pytorch.read_state_dict(_file("theirs.pt", data))


def transfer_set(data: bytes) -> None:
    manifest, _, index = data.partition(SPLIT)
    path = _file("transfer_set/manifest.json", manifest)
    _file("transfer_set/shards.jsonl", index)
    found = TransferSet.existing(path.parent)
    found.missing()
    found.damaged()
    found.digest()
    if len(found):
        found.gather(np.arange(min(len(found), 2)))


def record(data: bytes) -> None:
    path = _file("run/run.json", data)
    weights.describe(files.read_object(path).get("description"), source=str(path))
    evaluation.find_teacher(path.parent)


def report(data: bytes) -> None:
    run, _, results = data.partition(SPLIT)
    path = _file("report/run.json", run)
    _file("report/results.json", results)
    run_files.read(path.parent)


def metrics(data: bytes) -> None:
    curves.read(_file("metrics.jsonl", data))


def mapping(data: bytes) -> None:
    mappings.read(_file("mapping.json", data))


def settings(data: bytes) -> None:
    json_settings.get_config(str(_file("settings.json", data)))


def test_set(data: bytes) -> None:
    held_out._read_file(_file("test_set.npz", data))


def idx_files(data: bytes) -> None:
    names = list(raw_files.IDX_FILES["mnist"])
    for name, content in zip(names, data.split(SPLIT, 3), strict=False):
        _file(f"raw/{name}", content)
    raw_files.verified("mnist", folder() / "raw")


def cifar10_archive(data: bytes) -> None:
    raw_files._verify_cifar10(_file("cifar-10-binary.tar.gz", data))


def package(data: bytes) -> None:
    contents = mirrors._read_members(_file("package.tgz", data))
    for content in contents.values():
        mirrors.published_gzip(content, stored_name="x", mtime=0)


# Seeds ------------------------------------------------------------------------------


def _weights():
    path = folder() / "seed.safetensors"
    tensors = {"params": {"output": {"kernel": np.ones((2, 3), np.float32)}}}
    weights.save(path, tensors, DESCRIPTION, run="ab")
    return path.read_bytes()


def _state_dict():
    return {
        "conv1.weight": np.ones((2, 1, 3, 3), np.float32),
        "fc.bias": np.arange(3, dtype=np.float16),
        "bn.num_batches_tracked": np.array(7),
    }


def _torch_files():
    try:
        import torch
    except ImportError:
        return []
    found = []
    tensors = {name: torch.from_numpy(value) for name, value in _state_dict().items()}
    whole = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    for content in (tensors, {"state_dict": tensors, "epoch": 3}, whole):
        for modern in (True, False):
            stream = io.BytesIO()
            torch.save(content, stream, _use_new_zipfile_serialization=modern)
            found.append(stream.getvalue())
    return found


def _transfer_set():
    root = folder() / "seed_set"
    made = TransferSet(root, MANIFEST)
    made.add(0, np.ones((2, 2, 2, 1)), np.full((2, 3), 1 / 3))
    target = folder() / "transfer_set"
    target.mkdir(exist_ok=True)
    for path in made.paths(0):
        (target / path.name).write_bytes(path.read_bytes())
    manifest = (root / "manifest.json").read_bytes()
    return manifest + SPLIT + (root / "shards.jsonl").read_bytes()


KEYS = ("name", "seed", "teacher", "student", "targets")


def _run(sealed):
    path = folder() / "seed_run.json"
    config = default_config().to_dict()
    value = {
        "config": {key: config[key] for key in KEYS},
        "teacher_sha256": "f" * 64,
        "description": {
            "network": "lenet5_half",
            "num_classes": 3,
            "image_shape": [2, 2, 1],
            "mean": [0.5],
            "std": [0.25],
            "dataset": "toys",
            "arguments": {},
        },
    }
    files.write_json(path, value, sealed=sealed)
    return path.read_bytes()


def _results():
    row = {"class": "0", "count": 2, "recall": 0.5, "precision": None}
    evaluation = {"accuracy": 0.5, "per_class": [row], "confusion": [[1, 1], [0, 2]]}
    return _json({"student": {"evaluation": evaluation}, "seconds": {"prepare": 1.0}})


def _npz(save, **changes):
    stream = io.BytesIO()
    arrays = {
        "images": np.zeros((3, 2, 2, 1), np.uint8),
        "labels": np.array([0, 1, 2]),
    }
    save(stream, **(arrays | changes))
    return stream.getvalue()


def _tar(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def _zip_of(members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _lines(*records):
    return b"".join(_json(one) + b"\n" for one in records)


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "safetensors": (safetensors, lambda: [_weights(), serialize(_state_dict())]),
    "safetensors of others": (
        safetensors_of_others,
        lambda: [serialize(_state_dict(), {"format": "pt"})],
    ),
    "PyTorch archive": (pytorch_archive, _torch_files),
    "transfer set": (transfer_set, lambda: [_transfer_set()]),
    "run.json": (record, lambda: [_run(True), _run(False)]),
    "report": (report, lambda: [_run(False) + SPLIT + _results()]),
    "metrics.jsonl": (
        metrics,
        lambda: [
            _lines(
                {"stage": "distillation", "step": 1, "loss": 2.0},
                {"stage": "distillation", "step": 2, "loss": 1.0, "agreement": 0.5},
            )
        ],
    ),
    "mapping": (
        mapping,
        lambda: [
            _json(
                {
                    "conv_1": "features.0",
                    "dense_1": {"from": "classifier.0", "flatten": [16, 5, 5]},
                    "a/b": {"from": "x", "transpose": [1, 0]},
                    "$ignore": ["auxiliary."],
                }
            )
        ],
    ),
    "JSON settings": (
        settings,
        lambda: [
            _json(
                {
                    "name": "theirs",
                    "seed": 1,
                    "teacher": {"weights": "x", "image_shape": [8, 8, 1]},
                    "student": {"network": "lenet5", "arguments": {"a": [1, 2]}},
                    "synthesis": {"num_images": 3200, "grid_factors": [4, 1]},
                    "targets": {"sigma": 0.5},
                }
            ),
            _json({"kind": "teacher", "num_epochs": 2}),
        ],
    ),
    "test set (.npz)": (
        test_set,
        lambda: [
            _npz(np.savez),
            _npz(np.savez_compressed),
            _npz(np.savez, images=np.full((3, 2, 2, 1), 0.5, np.float32)),
        ],
    ),
    "original IDX files": (
        idx_files,
        lambda: [
            SPLIT.join(
                [
                    b"\0\0\x08\x03\0\0\0\x01\0\0\0\x02\0\0\0\x02abcd",
                    b"\0\0\x08\x01\0\0\0\x01\x05",
                    gzip.compress(b"\0\0\x08\x01\0\0\0\x01\x05", mtime=0),
                    b"",
                ]
            )
        ],
    ),
    "CIFAR-10 archive": (
        cifar10_archive,
        lambda: [
            _tar({"cifar-10-batches-bin/data_batch_1.bin": b"abc", "other": b"x" * 99})
        ],
    ),
    "package": (
        package,
        lambda: [
            _tar(
                {
                    "package/a.gz": gzip.compress(b"abc", mtime=0),
                    "../../etc/passwd": b"x",
                }
            )
        ],
    ),
}


def call(target: Callable[[bytes], None], data: bytes) -> bool:
    """Whether the input was taken; a refusal must be one of the project's errors."""
    try:
        target(data)
    except DfkdError as error:
        assert str(error)
        return False
    return True
