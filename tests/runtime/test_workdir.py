import re

import pytest

from dfkd_jax.errors import CheckpointError, StorageError
from dfkd_jax.runtime import files, workdir

IDENTITY = {
    "config": {"seed": 0, "synthesis": {"grid_factors": (4, 2, 1), "l2": 0.0}},
    "teacher_sha256": "ab",
}


def reopen(folder, identity):
    with workdir.open_workdir(folder, identity):
        pass


def test_the_same_run_may_come_back(tmp_path):
    for _ in range(2):  # Tuples are lists once they have been JSON.
        reopen(tmp_path / "runs" / "a", IDENTITY)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"teacher_sha256": "cd"}, "teacher_sha256 was 'ab' and is now 'cd'"),
        (
            {"config": IDENTITY["config"] | {"seed": 1}},
            "config.seed was 0 and is now 1",
        ),
        (
            {"config": {"seed": 0, "synthesis": {"grid_factors": (1,), "l2": 0.0}}},
            "config.synthesis.grid_factors was [4, 2, 1] and is now [1]",
        ),
        ({"color": "red"}, "color was None and is now 'red'"),
        ({"config": {"seed": 0}}, "config.synthesis was {"),
    ],
)
def test_another_run_is_refused_and_differences_are_named(tmp_path, change, difference):
    reopen(tmp_path, IDENTITY)
    message = re.escape(f"{tmp_path} was made with other settings: {difference}")
    with pytest.raises(CheckpointError, match=message):
        reopen(tmp_path, IDENTITY | change)
    reopen(tmp_path, IDENTITY)


def test_a_setting_that_is_gone_is_a_difference():
    assert workdir.compare({"a": 1, "b": 2}, {"a": 1}) == ["b was 2 and is now None"]
    assert workdir.compare({"a": {"b": 1}}, {"a": {"b": 1}}) == []
    assert workdir.compare({"a": [[1, [2]]]}, {"a": ((1, (2,)),)}) == []


def test_of_many_differences_five_are_named(tmp_path):
    reopen(tmp_path, {str(i): 0 for i in range(8)})
    with pytest.raises(CheckpointError, match="4 was 0 and is now 1; and 3 more"):
        reopen(tmp_path, {str(i): 1 for i in range(8)})


def test_a_folder_is_held_while_it_is_open(tmp_path):
    with (
        workdir.open_workdir(tmp_path, IDENTITY),
        pytest.raises(StorageError, match="in use by another process"),
        workdir.open_workdir(tmp_path, IDENTITY),
    ):
        pass


FOREIGN = {
    "notes.txt": "mine",
    "student/100/_CHECKPOINT_METADATA": "Orbax's",
    "transfer_set/images-00000.npy": "mine",
    "run.json": '{"experiment": "Sacred\'s", "config": {}}',
    "run.json/file": "a folder of that name",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_that_is_somebody_elses_is_left_as_it_is(tmp_path, name):
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True)
    path.write_text(FOREIGN[name])
    for _ in range(2):  # Nothing that lets the second try pass.
        with pytest.raises(StorageError, match=r"mine is not empty .*not made by"):
            reopen(tmp_path / "mine", IDENTITY)
    assert path.read_text() == FOREIGN[name]
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_an_empty_folder_may_hold_what_file_managers_leave(tmp_path):
    (tmp_path / ".DS_Store").write_text("")
    (tmp_path / ".lock").write_text("mine\n")
    reopen(tmp_path, IDENTITY)
    assert (tmp_path / ".lock").read_text() == "mine\n" + files.OWNED


def test_a_run_whose_record_is_gone_is_still_its_own(tmp_path):
    """As docs/faults.md has it where `run.json` is damaged."""
    reopen(tmp_path, IDENTITY)
    (tmp_path / "student.safetensors").touch()
    (tmp_path / "run.json").unlink()
    reopen(tmp_path, IDENTITY)
    (tmp_path / ".lock").unlink()  # As runs were left before it said whose it is.
    reopen(tmp_path, IDENTITY)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: path.touch(), "a file is in the way"),
        (lambda path: path.symlink_to(path), "symbolic links lead in a circle"),
        (lambda path: path.symlink_to("nothing/there"), "a file is in the way"),
    ],
    ids=["file", "loop", "dangling link"],
)
def test_what_can_be_no_work_directory(tmp_path, make, problem):
    make(tmp_path / "run")
    with pytest.raises(StorageError, match=f"Cannot write {tmp_path}/run: .*{problem}"):
        reopen(tmp_path / "run", IDENTITY)


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(StorageError, match="its name is too long"):
        reopen(tmp_path / ("x" * 300), IDENTITY)


def test_damaged_identity_is_named(tmp_path):
    reopen(tmp_path, IDENTITY)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run\.json is damaged"):
        reopen(tmp_path, IDENTITY)


def test_versions_name_every_library():
    versions = workdir.versions()
    assert set(versions) == {"python", "dfkd_jax", *workdir.LIBRARIES}
    assert all(re.match(r"\d+\.\d+", version) for version in versions.values())


def test_runs_are_marked_by_what_they_are(tmp_path):
    assert workdir.mark(tmp_path) == ""
    marks = []
    for name, identity in (("a", IDENTITY), ("b", IDENTITY), ("c", {"other": 1})):
        reopen(tmp_path / name, identity)
        marks.append(workdir.mark(tmp_path / name))
    assert marks[0] == marks[1] != marks[2]


def test_code_is_told_by_its_bytes(tmp_path, monkeypatch):
    package = tmp_path / "package"
    (package / "runtime").mkdir(parents=True)
    monkeypatch.setattr(workdir, "__file__", str(package / "runtime" / "workdir.py"))
    (package / "a.py").write_text("1")
    first = workdir.source()
    assert first == workdir.source() | {"commit": ""}
    (package / "a.py").write_text("2")
    assert workdir.source()["sha256"] != first["sha256"]


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    "files",
    [
        {".git/HEAD": f"{COMMIT}\n"},
        {".git/HEAD": "ref: refs/heads/main\n", ".git/refs/heads/main": COMMIT},
        {
            ".git/HEAD": "ref: refs/heads/main\n",
            ".git/packed-refs": f"# pack-refs\n{COMMIT} refs/heads/main\n",
        },
        {
            ".git": "gitdir: elsewhere/worktrees/x\n",
            "elsewhere/worktrees/x/HEAD": "ref: refs/heads/x\n",
            "elsewhere/worktrees/x/commondir": "../..\n",
            "elsewhere/refs/heads/x": f"{COMMIT}\n",
        },
    ],
    ids=["detached", "branch", "packed", "worktree"],
)
def test_commit_of_a_clone(tmp_path, files):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert workdir._commit(tmp_path) == COMMIT


@pytest.mark.parametrize("head", [b"ref: refs/heads/none", b"\xff\xfe", b""])
def test_no_commit(tmp_path, head):
    assert workdir._commit(tmp_path) == ""
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_bytes(head)
    assert workdir._commit(tmp_path) == ""
