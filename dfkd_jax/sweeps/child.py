"""`python -m dfkd_jax.main`, but never longer than the process that started it.

    python -m dfkd_jax.sweeps.child --config=configs/mnist.py

Standard input is a pipe whose other end the parent holds. When the parent dies, however
it does, the system closes it, and this process ends itself as SIGTERM ends it.
"""

import os
import runpy
import signal
import sys
import threading


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.modules.pop("dfkd_jax.main", None)
    runpy.run_module("dfkd_jax.main", run_name="__main__", alter_sys=True)
