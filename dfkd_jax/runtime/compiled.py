"""Compiled programs, kept on disk so that a second start compiles none.

JAX keeps them, but writes each in place and never writes one again: a process that was
killed, or a disk that was full, leaves half a program, on which every later start would
stumble. Here it is deleted when it is found, if it is this user's own: folders may be
shared, and what cannot be read need not be damaged.
"""

import contextlib
import glob
import os
import pathlib
import re
import tempfile
import warnings

import jax

from dfkd_jax.runtime import progress

TEXTS = {
    "damaged": "Compiled programs in {folder} were damaged, as by a kill ({reason}): "
    "they are compiled again.",
    "reading": "Compiled programs in {folder} cannot be read ({reason}): they are "
    "compiled at every start. Check the permissions, or set JAX_COMPILATION_CACHE_DIR "
    "to another folder.",
    "writing": "Compiled programs cannot be kept in {folder} ({reason}): every start "
    "compiles again. Set JAX_COMPILATION_CACHE_DIR to another folder.",
}
TROUBLE = (
    r"Error (reading|writing) persistent compilation cache entry for '(.+?)': (.*)"
)


def keep_in(folder: str) -> None:
    """Keeps compiled programs in `folder`; warns where it cannot be written."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        progress.warn(TEXTS["writing"].format(folder=folder, reason=error.strerror))
        return
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    _mend(pathlib.Path(folder))


def _mend(folder):
    """JAX tells of trouble by a warning: deletes what it is about, and says so."""
    others, said = warnings.showwarning, set()

    def show(message, *args, **kwargs):
        trouble = re.match(TROUBLE, str(message), re.DOTALL)
        if not trouble:
            others(message, *args, **kwargs)
            return
        doing, name, reason = trouble.groups()
        own = [path for path in folder.glob(f"{glob.escape(name)}-*") if _is_own(path)]
        if own and (doing == "writing" or "[Errno" not in reason):
            doing = "damaged" if doing == "reading" else doing
            for path in own:
                path.unlink(missing_ok=True)
        if doing not in said:  # Once: a full disk is in the way of every program.
            said.add(doing)
            progress.warn(TEXTS[doing].format(folder=folder, reason=reason))

    warnings.showwarning = show
    warnings.filterwarnings("always", TROUBLE)  # Not the first of each name alone.


def _is_own(path):
    """Whether this user made the file, and may read and delete it."""
    with contextlib.suppress(OSError):
        return path.lstat().st_uid == os.geteuid() and os.access(path, os.R_OK)
    return False
