import os
import pathlib
import stat

import pytest

from dfkd_jax.errors import ConfigError
from dfkd_jax.runtime import places


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """A user without HOME whom the system does not know."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(places.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(places.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_cache_is_where_the_user_wants_it(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert places.cache() == pathlib.Path("/caches/dfkd_jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert places.cache() == pathlib.Path("/home/me/.cache/dfkd_jax")


def test_without_a_home_it_is_a_temporary_folder_of_the_users_own(homeless):
    found = places.cache()
    assert found == homeless / f"dfkd_jax-{os.getuid()}"
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    assert places.cache() == found


@pytest.mark.parametrize("trap", ["writable", "link"])
def test_a_folder_that_others_may_write_to_is_not_used(homeless, trap):
    path = homeless / f"dfkd_jax-{os.getuid()}"
    if trap == "link":
        (homeless / "theirs").mkdir()
        path.symlink_to(homeless / "theirs")
    else:
        path.mkdir()
        path.chmod(0o777)
    found = places.cache()
    assert found != path
    assert stat.S_IMODE(found.stat().st_mode) == 0o700


@pytest.mark.parametrize("path", ["~", "~/runs", "~nobody_of_this_name/runs"])
def test_no_folder_called_tilde_is_made(homeless, path):
    with pytest.raises(ConfigError, match="has no home folder here"):
        places.expand(path, source="--workdir")


def test_home_is_put_in_place_of_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert places.expand("~/runs", source="--workdir") == "/home/me/runs"
    assert places.expand("runs/~", source="--workdir") == "runs/~"
