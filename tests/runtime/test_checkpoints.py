import gc
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from dfkd_jax.errors import CheckpointError, StorageError
from dfkd_jax.runtime import checkpoints, parallel


@pytest.fixture
def _collect():
    yield
    gc.collect()


def failing_load(test):
    """A load that fails leaves coroutines of Orbax, which complain when collected."""
    for mark in (
        pytest.mark.usefixtures("_collect"),
        pytest.mark.filterwarnings("ignore:coroutine .* never awaited:RuntimeWarning"),
        pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    ):
        test = mark(test)
    return test


class State(struct.PyTreeNode):
    step: object
    params: object


def make_state(step, *, units=3):
    kernel = np.random.default_rng(step).normal(size=(units, 2)).astype(np.float32)
    return parallel.replicate(
        State(step=jnp.int32(step), params={"dense": {"kernel": jnp.array(kernel)}})
    )


def save(folder, steps, **options):
    with checkpoints.open_checkpoints(folder, **options) as checkpointer:
        for step in steps:
            checkpoints.save(checkpointer, step, make_state(step))


def restore(folder, state):
    with checkpoints.open_checkpoints(folder) as checkpointer:
        return checkpoints.restore_or(checkpointer, state)


def assert_same(found, expected):
    for one, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
        assert one.sharding == other.sharding


def test_restores_the_latest_exactly_and_where_it_was(tmp_path):
    save(tmp_path / "student", [1, 2, 10])
    assert_same(restore(tmp_path / "student", make_state(0)), make_state(10))


def test_without_a_checkpoint_the_state_stays(tmp_path):
    state = make_state(0)
    assert restore(tmp_path / "new" / "folder", state) is state


def test_parts_on_devices_come_back_on_theirs(tmp_path):
    tree = {"images": parallel.put_split(np.arange(8.0).reshape(4, 2))}
    with checkpoints.open_checkpoints(tmp_path) as checkpointer:
        checkpoints.save(checkpointer, 1, tree)
    assert_same(restore(tmp_path, jax.tree.map(jnp.zeros_like, tree)), tree)


def test_only_the_newest_are_kept_and_only_multiples_are_saved(tmp_path):
    save(tmp_path, range(1, 11), every_steps=3, keep=2)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [6, 9]


def test_the_last_step_can_be_forced(tmp_path):
    with checkpoints.open_checkpoints(tmp_path, every_steps=100) as checkpointer:
        checkpoints.save(checkpointer, 7, make_state(7), force=True)
    assert int(restore(tmp_path, make_state(0)).step) == 7


def damage(folder):
    """Cuts every file that holds numbers."""
    files = [path for path in folder.rglob("d/*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@failing_load
def test_damaged_checkpoint_is_named(tmp_path):
    save(tmp_path, [5])
    damage(tmp_path / "5")
    with pytest.raises(CheckpointError, match=f"Checkpoint {tmp_path}/5 cannot be"):
        restore(tmp_path, make_state(0))
    with pytest.raises(CheckpointError, match=f"Checkpoint {tmp_path}/5 cannot be"):
        checkpoints.load_variables(tmp_path)


def test_half_written_checkpoint_is_passed_over(tmp_path):
    """What a killed process leaves: a folder that was not renamed yet."""
    save(tmp_path, [1, 2])
    (tmp_path / "2").rename(tmp_path / "2.orbax-checkpoint-tmp")
    assert_same(restore(tmp_path, make_state(0)), make_state(1))


@failing_load
@pytest.mark.parametrize(
    "other",
    [
        lambda: make_state(0, units=5),
        lambda: make_state(0).replace(
            params=parallel.replicate({"other": {"kernel": jnp.zeros((3, 2))}})
        ),
    ],
    ids=["other shape", "other name"],
)
def test_checkpoint_of_another_network_is_refused(tmp_path, other):
    save(tmp_path, [5])
    with pytest.raises(CheckpointError, match=f"{tmp_path}/5 .*another network"):
        restore(tmp_path, other())


@pytest.mark.parametrize("where", ["", "4"], ids=["series", "one checkpoint"])
def test_parameters_alone(tmp_path, where):
    save(tmp_path, [2, 4])
    found = checkpoints.load_variables(tmp_path / where)
    kernel = found["params"]["dense"]["kernel"]
    assert isinstance(kernel, np.ndarray)
    np.testing.assert_array_equal(kernel, make_state(4).params["dense"]["kernel"])


@failing_load
def test_folder_without_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be restored"):
        checkpoints.load_variables(tmp_path)


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(StorageError, match="Cannot write"),
        checkpoints.open_checkpoints(tmp_path / "file"),
    ):
        pass


def test_errors_of_the_loop_come_through(tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        checkpoints.open_checkpoints(tmp_path) as checkpointer,
    ):
        checkpoints.save(checkpointer, 1, make_state(1))
        raise ZeroDivisionError
    assert int(restore(tmp_path, make_state(0)).step) == 1


def largest(folder):
    files = [path for path in folder.rglob("d/*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip(folder):
    content = bytearray(largest(folder).read_bytes())
    content[len(content) // 2] ^= 1
    largest(folder).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (flip, "is not what was written"),
        (lambda folder: largest(folder).unlink(), "is missing"),
        (lambda folder: (folder / "more").touch(), "does not belong to it"),
        (lambda folder: (folder / checkpoints.SEAL).write_text("{}"), "is damaged"),
    ],
)
def test_a_checkpoint_that_is_not_what_was_written(tmp_path, change, problem):
    """Orbax itself notices few of these."""
    save(tmp_path, [3, 5])
    assert checkpoints.problem_of(tmp_path / "5") == ""
    change(tmp_path / "5")
    with pytest.raises(CheckpointError, match=problem):
        restore(tmp_path, make_state(0))
    assert problem in checkpoints.problem_of(tmp_path / "5")
    assert checkpoints.problem_of(tmp_path / "3") == ""


def test_a_checkpoint_of_another_run(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(name)
        save(tmp_path / name / "student", [5])
    shutil.rmtree(tmp_path / "b" / "student")
    shutil.copytree(tmp_path / "a" / "student", tmp_path / "b" / "student")
    with pytest.raises(CheckpointError, match="it is of another run"):
        restore(tmp_path / "b" / "student", make_state(0))
    assert_same(restore(tmp_path / "a" / "student", make_state(0)), make_state(5))


def test_killed_between_saving_and_its_checksums(tmp_path):
    """Damage to what has none could not be found: the one before is taken."""
    save(tmp_path, [5, 10])
    (tmp_path / "10" / checkpoints.SEAL).unlink()
    assert_same(restore(tmp_path, make_state(0)), make_state(5))
    assert not (tmp_path / "10").exists()


def test_what_this_run_did_not_save_is_never_removed(tmp_path):
    """Whether it lay there before, or came between two starts."""
    save(tmp_path / "student", [5])
    foreign = tmp_path / "student" / "100" / "_METADATA"
    foreign.parent.mkdir()
    foreign.write_text("Orbax's")
    with pytest.raises(StorageError, match="student/100 was not made by this run"):
        save(tmp_path / "student", [10])
    assert foreign.read_text() == "Orbax's"
    foreign.unlink()
    foreign.parent.rmdir()
    assert_same(restore(tmp_path / "student", make_state(0)), make_state(5))


class Broken:
    """A checkpointer that cannot save."""

    def __init__(self, folder, error):
        self.directory, self._error = folder, error

    def save(self, *_, **__):
        raise self._error


def test_only_storage_errors_speak_of_the_disk(tmp_path):
    """What a peer that was killed makes of a collective is none."""
    gloo = Broken(tmp_path / "student", ValueError("Gloo AllGather failed"))
    with pytest.raises(ValueError, match="Gloo"):
        checkpoints.save(gloo, 1, make_state(1))
    full = Broken(tmp_path / "student", ValueError("ENOSPC: No space left on device"))
    with pytest.raises(StorageError, match="student/1: the disk is full"):
        checkpoints.save(full, 1, make_state(1))


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    save(tmp_path, [5])

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoints.files, "sha256", refuse)
    with pytest.raises(CheckpointError, match="Permission denied") as error:
        restore(tmp_path, make_state(0))
    assert "damaged" not in str(error.value)
    assert "delete" not in str(error.value)
