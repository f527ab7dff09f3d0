"""Which sources of a data set answer, found out in a bounded time.

A probe opens a TCP connection to the host (or to the proxy that leads to it) and sends
nothing.
"""

import importlib.util
import os
import pathlib
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable

from dfkd_jax.data import mirrors

DOWNLOAD = "download"
APT_FOLDER = pathlib.Path("/etc/apt")


def reachable_sources(name: str, *, timeout: float) -> list[str]:
    """Those of "download" (TFDS's own) and the mirrors' clients that answer.

    Args:
        name: Data set.
        timeout: Seconds until silence counts as no.
    """
    client = mirrors.CLIENTS[name]
    probes = {DOWNLOAD: lambda: _any_connects(tfds_urls(name), timeout)}
    if mirrors.has_client(client):
        urls = {"npm": _npm_registries, "apt-get": _apt_sources}[client]
        probes[client] = lambda: _any_connects(urls(), timeout)
    answers = _ask_all(probes, timeout)
    if answers.get("npm", False) is None:
        # npm itself takes 0.1-1 s to name its registry; a busy machine is not a no.
        answers["npm"] = _has_route()
    return [source for source, answer in answers.items() if answer]


def tfds_urls(name: str) -> list[str]:
    """The addresses TFDS downloads `name` from, read without importing TFDS."""
    found = importlib.util.find_spec("tensorflow_datasets")
    if found is None or not found.submodule_search_locations:
        return []
    folder = pathlib.Path(found.submodule_search_locations[0])
    checksums = folder / "url_checksums" / f"{name}.txt"
    if not checksums.is_file():
        return []
    lines = checksums.read_text(encoding="utf-8").splitlines()
    return [line.split("\t")[0] for line in lines if line]


def _ask_all(
    probes: dict[str, Callable[[], bool]], timeout: float
) -> dict[str, bool | None]:
    """Every probe's answer, None where it took longer than `timeout` seconds."""
    answers = dict.fromkeys(probes)

    def ask(name):
        try:
            answers[name] = probes[name]()
        except (OSError, ValueError, subprocess.SubprocessError):
            answers[name] = False

    # Daemons: a name server that never answers must not hold up the exit.
    threads = [threading.Thread(target=ask, args=(n,), daemon=True) for n in probes]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(answers)


def _any_connects(urls: Iterable[str], timeout: float) -> bool:
    return any(_connects(*address, timeout) for address in {_address(u) for u in urls})


def _address(url: str) -> tuple[str, int]:
    """Host and port that a client for `url` opens: its own, or its proxy's."""
    parts = urllib.parse.urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _connects(host: str, port: int, timeout: float) -> bool:
    try:
        with socket.create_connection((host, port), timeout=timeout):
            return True
    except OSError:
        return False


def _npm_registries() -> list[str]:
    for variable in ("NPM_CONFIG_REGISTRY", "npm_config_registry"):
        if os.environ.get(variable):
            return [os.environ[variable]]
    command = [shutil.which("npm"), "config", "get", "registry"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    return done.stdout.split()


def _apt_sources() -> list[str]:
    """The configured addresses and proxies (apt-get itself takes 0.4 s to tell)."""
    patterns = ("sources.list", "sources.list.d/*.list", "sources.list.d/*.sources")
    patterns += ("apt.conf", "apt.conf.d/*")
    files = [file for pattern in patterns for file in APT_FOLDER.glob(pattern)]
    lines = [
        line
        for file in files
        if file.is_file()
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
        if not line.lstrip().startswith(("#", "//"))
    ]
    return re.findall(r"https?://[^\s\]\";]+", "\n".join(lines))


def _has_route() -> bool:
    """Whether packets could leave this machine; none is sent.

    The addresses are those that RFC 5737 and RFC 3849 set aside for documentation.
    """
    for family, host in (
        (socket.AF_INET, "192.0.2.1"),
        (socket.AF_INET6, "2001:db8::1"),
    ):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((host, 9))
                return True
        except OSError:
            continue
    return False
