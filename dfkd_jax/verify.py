"""Recomputes what a work directory claims, from what lies in it alone.

    python -m dfkd_jax.verify runs/mnist/seed0

Of a run of `dfkd_jax.main`, distillation or teacher training: the checksums of its
records, the digests of config, teacher, every shard of the transfer set, student and
checkpoints, and, where the held-out images are at hand, the test accuracy. Nothing in
the directory is changed. What is not there or cannot be had is named all the same.

Exit status: 0 all that was claimed holds; 1 something differs; 2 flags; 3 all that
could be checked holds, but the held-out images could not be had.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags

from dfkd_jax import command_line, evaluation
from dfkd_jax.errors import ConfigError, DataUnavailableError, DfkdError
from dfkd_jax.runtime import places

FLAGS = flags.FLAGS
HOLDS, DIFFERS, UNCHECKED = "holds", "DIFFERS", "not checked"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One claim of a work directory.

    Attributes:
        what: Is claimed.
        verdict: HOLDS, DIFFERS or UNCHECKED.
        detail: The digest or number, what it is instead, or why it was not checked.
        needs_data: Whether held-out images were what was missing.
    """

    what: str
    verdict: str
    detail: str
    needs_data: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sources:
    """What the directory does not say, or must not be trusted to say.

    Attributes:
        module: "package.module:Class" of a network of the user's own.
        teacher_module: Likewise, the teacher's.
        teacher: Weights of the teacher, where they are no longer where they were.
        dataset: Test set; it and `file` empty: what the run names.
        file: An `.npz` file in place of it.
        data_dir: TFDS data folder; empty for the one in the cache.
        raw_dir: Folder with the data set's original files.
    """

    module: str = ""
    teacher_module: str = ""
    teacher: str = ""
    dataset: str = ""
    file: str = ""
    data_dir: str = ""
    raw_dir: str = ""


def check(folder: pathlib.Path, sources: Sources) -> Iterator[Check]:
    """All claims of the work directory `folder`, one by one.

    Raises:
        CheckpointError: It is no work directory.
    """
    folder = places.path(folder, source="folder")
    run = folder / "run.json"
    if not run.is_file():
        raise ConfigError(
            f"{folder} is no work directory (it has no run.json): name one that "
            "dfkd_jax.main made, such as runs/mnist/seed0."
        )
    from dfkd_jax.runtime import parallel
    from dfkd_jax.runtime.records import as_written

    parallel.sum_rightly()  # Called from Python, nothing else did.
    found: list[Any] = []
    try:
        with as_written(run):
            yield from _records(folder, sources, found)
    except DfkdError as error:
        yield Check(what="records", verdict=DIFFERS, detail=str(error))
        return
    if found:
        yield from _accuracies(*found)


def _records(folder, sources, found):
    """Claims about files; leaves in `found` what accuracies are computed from."""
    records: dict[str, Any] = {}
    for name in ("run.json", "results.json", "teacher.json"):
        if (folder / name).exists():
            yield from _read_record(folder / name, records)
    identity = records.get("run.json")
    if identity is None:
        return
    results = records.get("results.json") or records.get("teacher.json")
    if results is None:
        missing = "results.json is not there: the run is not finished"
        yield Check(what="results", verdict=UNCHECKED, detail=missing)
        results = {}
    yield from _config(identity, results)
    role = "teacher" if "teacher.json" in records else "student"
    teacher = None
    if role == "student":
        teacher = yield from _teacher(folder, identity, results, sources)
        yield from _transfer_set(folder, identity, results)
    network = yield from _network(folder, role, results, sources)
    yield from _checkpoints(folder)
    if network:
        found += [role, network, teacher, results, sources]


def _read_record(path, records):
    from dfkd_jax.runtime import files
    from dfkd_jax.runtime import records as checked

    try:
        records[path.name] = checked.read(path)
        sealed = files.CHECKSUM in path.read_text()
        yield Check(
            what=path.name,
            verdict=HOLDS if sealed else UNCHECKED,
            detail="its own checksum" if sealed else "it has no checksum",
        )
    except DfkdError as error:
        yield Check(what=path.name, verdict=DIFFERS, detail=str(error))


def _compare(what: str, claimed: Any, found: Any) -> Check:
    if claimed is None:
        return Check(what=what, verdict=UNCHECKED, detail=f"no claim; it is {found}")
    if claimed == found:
        return Check(what=what, verdict=HOLDS, detail=str(found))
    return Check(
        what=what, verdict=DIFFERS, detail=f"{claimed} is claimed, not {found}"
    )


def _attempt(what: str, compute: Callable[[], Any]) -> tuple[Any, list[Check]]:
    """What `compute` gives, or None and the error as a verdict."""
    try:
        return compute(), []
    except DfkdError as error:
        return None, [Check(what=what, verdict=DIFFERS, detail=str(error))]


def _config(identity, results):
    from dfkd_jax.runtime import files, workdir

    config = identity.get("config")
    if results:
        yield _compare("config", results.get("config_sha256"), files.digest(config))
        differences = workdir.compare(config, results.get("config"))
        if differences:
            yield Check(
                what="config in results", verdict=DIFFERS, detail=differences[0]
            )


def _teacher(folder, identity, results, sources):
    """The teacher that the run learned from, where it can be had."""
    from dfkd_jax.config import NetworkConfig, from_mapping
    from dfkd_jax.teachers import weights as teachers

    settings = dict(identity.get("config", {}).get("teacher") or {})
    name = sources.teacher or evaluation.find_teacher(folder)
    module = settings.get("module", "")
    if not name or not settings:
        yield Check(what="teacher", verdict=UNCHECKED, detail="the run names none")
        return None
    if module != sources.teacher_module:
        yield Check(
            what="teacher",
            verdict=UNCHECKED,
            detail=f"say --teacher_module={module} if you trust that code"
            if module
            else "its network is of dfkd_jax: leave --teacher_module out",
        )
        return None
    if name not in teachers.shipped() and not pathlib.Path(name).expanduser().exists():
        yield Check(
            what="teacher",
            verdict=UNCHECKED,
            detail=f"{name} is not there: say where with --teacher",
        )
        return None
    settings["weights"] = name
    network, errors = _attempt(
        "teacher",
        lambda: teachers.load(from_mapping(NetworkConfig, settings, "teacher")),
    )
    yield from errors
    if network is None:
        return None
    yield _compare("teacher", identity.get("teacher_sha256"), network.sha256)
    then = (identity.get("fingerprints") or {}).get("teacher")
    yield from _attempt(
        "logits of the teacher",
        lambda: network.check_fingerprint(then, source="run.json"),
    )[1]
    if results:
        claimed = (results.get("teacher") or {}).get("sha256")
        yield _compare("teacher in results", claimed, network.sha256)
    return network


def _transfer_set(folder, identity, results):
    from dfkd_jax.synthesis.transfer_set import TransferSet

    path = folder / "transfer_set"
    if not (path / "manifest.json").is_file():
        yield Check(
            what="transfer set", verdict=UNCHECKED, detail=f"{path} is not there"
        )
        return
    found, errors = _attempt("transfer set", lambda: TransferSet.existing(path))
    yield from errors
    if found is None:
        return
    yield _compare(
        "teacher of the transfer set",
        identity.get("teacher_sha256"),
        found.manifest.teacher_sha256,
    )
    missing, damaged = found.missing(), found.damaged()
    number = found.manifest.num_shards
    for name, shards in (("missing", missing), ("damaged", damaged)):
        if shards:
            some = ", ".join(map(str, shards[:8])) + (" …" if len(shards) > 8 else "")
            yield Check(
                what="shards",
                verdict=DIFFERS,
                detail=f"{len(shards)} of {number} {name}: {some}",
            )
    if not missing and not damaged:
        yield Check(
            what="shards",
            verdict=HOLDS,
            detail=f"{number} with {len(found):,} pseudo samples",
        )
    if results:
        claimed = results.get("transfer_set_sha256")
        yield _compare("transfer set", claimed, found.digest())


def _network(folder, role, results, sources):
    from dfkd_jax.runtime import files, weights, workdir

    path = folder / f"{role}.safetensors"
    if not path.is_file():
        verdict = DIFFERS if results else UNCHECKED
        yield Check(what=role, verdict=verdict, detail=f"{path} is not there")
        return None
    stored, errors = _attempt(role, lambda: weights.read(path))
    yield from errors
    if stored is None:
        return None
    claims = results if role == "teacher" else results.get("student") or {}
    yield _compare(role, claims.get("sha256"), weights.digest(stored.variables))
    if "file_sha256" in claims:
        yield _compare(f"{path.name}", claims["file_sha256"], files.sha256(path))
    if stored.run:
        yield _compare(f"run of the {role}", stored.run, workdir.mark(folder))
    module = sources.module
    if ":" in stored.description.network and not module:
        yield Check(
            what=f"{role}'s network",
            verdict=UNCHECKED,
            detail=f"say --module={stored.description.network} if you trust that code",
        )
        return None
    network, errors = _attempt(
        role, lambda: evaluation.load_checkpoint(path, module=module)
    )
    yield from errors
    return network[1] if network else None


def _checkpoints(folder):
    from dfkd_jax.runtime import checkpoints, workdir

    mark = workdir.mark(folder)
    for path in sorted(folder.glob("*/*/" + checkpoints.SEAL)):
        problem = checkpoints.problem_of(path.parent, mark)
        yield Check(
            what=f"checkpoint {path.parent.relative_to(folder)}",
            verdict=DIFFERS if problem else HOLDS,
            detail=problem or "its files and run",
        )


def _accuracies(role, network, teacher, results, sources):
    """Accuracies on the split that was read, computed again."""
    from dfkd_jax.config import DataConfig
    from dfkd_jax.data import held_out
    from dfkd_jax.runtime import progress

    claims = {role: results} if role == "teacher" else dict(results)
    split = str(results.get("split", "test"))
    what = f"{split} accuracy"
    if (claims.get(role) or {}).get(f"{split}_accuracy") is None:
        yield Check(what=what, verdict=UNCHECKED, detail="the run was not evaluated")
        return
    dataset, file = sources.dataset, sources.file
    if not dataset and not file:
        named = results.get("dataset") or network.description.dataset
        dataset, file = ("", named) if named.endswith(".npz") else (named, "")
    if not dataset and not file:
        missing = "the run names no test set: say --dataset or --data_file"
        yield Check(what=what, verdict=UNCHECKED, detail=missing)
        return
    try:
        data = DataConfig(
            dataset=dataset, file=file, dir=sources.data_dir, raw_dir=sources.raw_dir
        )
        held_out.preflight(data)
        real = held_out.load(data, split=split, report=progress.say)
        assert real is not None
        real.check(network.description, source=f"The {role}")
    except DfkdError as error:
        yield Check(
            what=what,
            verdict=UNCHECKED,
            detail=str(error),
            needs_data=isinstance(error, DataUnavailableError | ConfigError),
        )
        return
    if "test_set_sha256" in results:
        yield _compare(f"{split} set", results["test_set_sha256"], real.sha256)
    for name, trained in ((role, network), ("teacher", teacher)):
        if trained is None:
            continue
        found = evaluation.evaluate(trained, real.images, real.labels)
        claimed = (claims.get(name) or {}).get(f"{split}_accuracy")
        yield _compare(f"{what} of the {name}", claimed, found["accuracy"])


def main(argv: list[str]) -> int:
    """Prints every check; the exit status."""
    folders = list(dict.fromkeys(map(pathlib.Path, argv[1:])))
    if not folders:
        raise ConfigError(
            "Name a work directory: python -m dfkd_jax.verify runs/mnist/seed0."
        )
    from dfkd_jax.data import held_out
    from dfkd_jax.runtime import parallel, progress

    held_out.check_flags(
        dataset=FLAGS.dataset,
        data_dir=FLAGS.data_dir,
        raw_dir=FLAGS.raw_dir,
        data_file=FLAGS.data_file,
    )
    sources = Sources(
        module=FLAGS.module,
        teacher_module=FLAGS.teacher_module,
        teacher=FLAGS.teacher,
        dataset=FLAGS.dataset,
        file=FLAGS.data_file,
        data_dir=FLAGS.data_dir,
        raw_dir=FLAGS.raw_dir,
    )
    parallel.configure(cpu_devices=0)
    statuses = [0]
    for folder in folders:
        progress.say(f"{folder}")
        found = []
        for item in check(folder, sources):
            found.append(item)
            progress.say(f"  {item.verdict:<12} {item.what}: {item.detail}")
        differ = sum(item.verdict == DIFFERS for item in found)
        left = sum(item.verdict == UNCHECKED for item in found)
        progress.say(
            f"  {len(found) - differ - left} hold, {differ} differ, {left} not checked"
        )
        if differ:
            statuses.append(1)
        elif any(item.needs_data for item in found):
            statuses.append(DataUnavailableError.exit_status)
    return 1 if 1 in statuses else max(statuses)


if __name__ == "__main__":
    flags.DEFINE_string(
        "module", "", "package.module:Class of a network that is not of this package."
    )
    flags.DEFINE_string("teacher_module", "", "Likewise, of the teacher's network.")
    flags.DEFINE_string(
        "teacher", "", "Where the teacher's weights are, if they were moved."
    )
    flags.DEFINE_string("dataset", "", "Test set; default: what the run names.")
    flags.DEFINE_string("data_file", "", "Likewise, an .npz file of your own.")
    flags.DEFINE_string("data_dir", "", "TFDS data folder; default in the cache.")
    flags.DEFINE_string("raw_dir", "", "Folder with the data set's original files.")
    command_line.run(main, positional=True)
