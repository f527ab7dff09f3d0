import errno
import hashlib
import os
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest

from dfkd_jax.errors import CheckpointError, StorageError
from dfkd_jax.runtime import checkpoints, files, parallel, weights, writers
from dfkd_jax.synthesis.transfer_set import Manifest, TransferSet

HOLD = """
import pathlib, sys, time
from dfkd_jax.runtime import files
with files.lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def mount(tmp_path):
    """Mounts a disk in memory and returns where; skips where one may not."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = []

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting a disk needs root")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_json_and_checksum(tmp_path):
    path = tmp_path / "value.json"
    value = {"τ": 20.0, "list": [1, None, "x"]}
    files.write_json(path, value)
    assert files.read_json(path) == value
    assert files.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert os.listdir(tmp_path) == ["value.json"]


@pytest.mark.parametrize("content", [None, "", '{"a": ', "\udcff"])
def test_what_is_no_json_is_named(tmp_path, content):
    path = tmp_path / "value.json"
    if content is not None:
        path.write_text(content, errors="surrogateescape")
    problem = "cannot be read" if content is None else "is damaged"
    with pytest.raises(CheckpointError, match=f"{path} {problem}"):
        files.read_json(path)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failed_write_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "weights"
    path.write_text("old")
    with pytest.raises(error), files.atomic_write(path) as temporary:
        temporary.write_text("half of the ne")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["weights"]


def test_write_that_cannot_be_synced_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    files.write_json(path, "old")

    def refuse(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=f"{path}: the disk is full"):
        files.write_json(path, "new")
    assert files.read_json(path) == "old"
    assert os.listdir(tmp_path) == ["value.json"]


BIG = np.zeros((4, 50, 50, 1), np.float32)


def write_json(folder):
    files.write_json(folder / "value.json", BIG.tolist())


def write_weights(folder):
    description = weights.Description(
        network="", num_classes=1, image_shape=(), mean=(), std=(), dataset=""
    )
    weights.save(folder / "w.safetensors", {"params": {"a": BIG}}, description)


def write_shard(folder):
    manifest = Manifest(
        num_images=4,
        shard_size=4,
        image_shape=(50, 50, 1),
        num_classes=1,
        seed=0,
        teacher_sha256="",
        settings={},
    )
    TransferSet(folder, manifest).add(0, BIG, np.zeros((4, 1)))


def write_metrics(folder):
    with writers.open_writer(folder / "metrics.jsonl", stage="s") as writer:
        for step in range(2_000):
            writer.write_scalars(step, {"loss": 0.0})


def write_checkpoint(folder):
    state = parallel.replicate(
        {"noise": np.random.default_rng(0).random(40_000, np.float32)}
    )
    with checkpoints.open_checkpoints(folder / "student") as checkpointer:
        checkpoints.save(checkpointer, 1, state)


@pytest.mark.parametrize(
    ("write", "hint"),
    [
        (write_json, "the disk is full"),
        (write_weights, "the disk is full"),
        (write_shard, "the disk is full"),
        (write_metrics, "the disk is full"),
        (write_checkpoint, "the disk is full"),
    ],
)
def test_full_disk_is_one_clear_error(mount, write, hint):
    folder = mount("size=32k")
    with pytest.raises(StorageError, match=f"Cannot write .*{folder}.*{hint}"):
        write(folder)
    assert not list(folder.rglob("*.partial"))


@pytest.mark.parametrize("write", [write_json, write_weights, write_metrics])
def test_read_only_disk_is_one_clear_error(mount, write):
    folder = mount("ro")
    with pytest.raises(StorageError, match=f"{folder}.*: the file system is read-only"):
        write(folder)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "the disk is full .*; free some space"),
        (errno.EDQUOT, "your disk quota is used up; free some space"),
        (errno.EROFS, r"read-only; write elsewhere \(--workdir, --output\)"),
        (errno.EACCES, r"permission denied; write elsewhere \(--workdir, --output\)"),
        (errno.EIO, "the disk does not work"),
        (errno.EBUSY, "Device or resource busy"),
    ],
)
def test_storage_errors_name_the_path_and_the_remedy(tmp_path, number, text):
    with (
        pytest.raises(StorageError, match=f"Cannot write {tmp_path}: .*{text}"),
        files.storage_errors(tmp_path),
    ):
        raise OSError(number, os.strerror(number))


def test_a_disk_without_inodes(mount):
    folder = mount("nr_inodes=2")
    (folder / "one").touch()
    with pytest.raises(StorageError, match=r"the disk is full \(bytes or inodes\)"):
        write_json(folder)


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "words of another language"), errno.ENOSPC),
        (ValueError("RESOURCE_EXHAUSTED: No space left on device"), errno.ENOSPC),
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed"), 0),
        (RuntimeError("the task stopped sending heartbeats"), 0),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), 0),
        (KeyError("params"), 0),
    ],
)
def test_storage_errors_among_others(error, number):
    assert files.storage_errno(error) == number
    wrapped = ValueError("Orbax's words")
    wrapped.__cause__ = error
    assert files.storage_errno(wrapped) == number


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
@pytest.mark.parametrize(
    "write", [write_json, lambda folder: files.lock(folder).__enter__()]
)
def test_a_file_system_without_locks_is_not_in_use(tmp_path, monkeypatch, write, code):
    def no_locks(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    with pytest.raises(StorageError) as caught:
        write(tmp_path)
    assert f"cannot be locked ({os.strerror(code)})" in str(caught.value)
    assert "in use" not in str(caught.value)


def test_a_record_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    files.write_json(tmp_path / "value.json", 1)
    monkeypatch.setattr("builtins.open", refuse)
    problem = r"cannot be read \(Permission denied\): check the path, its permissions"
    with pytest.raises(CheckpointError, match=problem):
        files.read_json(tmp_path / "value.json")


def test_folder_under_a_file_cannot_be_locked(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(StorageError, match=r"Cannot write .*file/folder: "),
        files.lock(tmp_path / "file" / "folder"),
    ):
        pass


def test_lock_refuses_a_second_process_until_the_first_is_killed(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(StorageError, match=f"{folder} is in use"),
            files.lock(folder),
        ):
            pass
        holder.kill()
        holder.wait()
        for _ in range(2):  # Let go at the end too.
            with files.lock(folder):
                pass


def test_two_writers_of_one_file(tmp_path):
    path = tmp_path / "value.json"
    with files.atomic_write(path) as temporary:
        temporary.write_text("1")
        with (
            pytest.raises(StorageError, match="being written by another process"),
            files.atomic_write(path),
        ):
            pass
    assert path.read_text() == "1"
    files.write_json(path, 2)
    assert files.read_json(path) == 2
    assert os.listdir(tmp_path) == ["value.json"]


def test_what_a_killed_writer_left_is_written_over(tmp_path):
    (tmp_path / ".value.json.partial").write_text("half of somethi")
    files.write_json(tmp_path / "value.json", {"a": 1})
    assert files.read_json(tmp_path / "value.json") == {"a": 1}
    assert os.listdir(tmp_path) == ["value.json"]


def test_digest_knows_no_order_and_every_value():
    digest = files.digest({"a": (1, 2), "b": {"c": 0.1}})
    assert digest == files.digest({"b": {"c": 0.1}, "a": [1, 2]})
    assert digest != files.digest({"b": {"c": 0.2}, "a": [1, 2]})
    assert digest != files.digest({"b": {"c": 0.1}, "a": [2, 1]})


def test_a_device_is_no_record(tmp_path):
    (tmp_path / "zeros.json").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="no file"):
        files.read_json(tmp_path / "zeros.json")


def test_a_record_that_is_too_large(tmp_path):
    files.write_json(tmp_path / "value.json", "x" * 100)
    with pytest.raises(CheckpointError, match="larger than 50 bytes"):
        files.read_json(tmp_path / "value.json", max_bytes=50)


def test_an_object_is_asked_for(tmp_path):
    files.write_json(tmp_path / "value.json", [1])
    with pytest.raises(CheckpointError, match="list in place of an object"):
        files.read_object(tmp_path / "value.json")


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: None, ""),
        (lambda path: files.write_json(path, {"checkpoint": "a", "b": 1}), ""),
        (lambda path: files.write_json(path, {"b": 1}), "is there already"),
        (lambda path: path.write_bytes(b"\xff\x00weights"), "is there already"),
        (lambda path: path.write_text(""), "is there already"),
        (lambda path: path.mkdir(), "is there already"),
        (lambda path: path.symlink_to("nowhere"), "is there already"),
    ],
)
def test_output_replaces_what_the_command_wrote_alone(tmp_path, make, problem):
    path = tmp_path / "output.json"
    make(path)
    before = os.listdir(tmp_path)
    with pytest.raises(StorageError, match=problem) if problem else nullcontext():
        files.check_replaceable(path, '{\n  "checkpoint": ')
    assert os.listdir(tmp_path) == before
