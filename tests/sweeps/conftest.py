import pytest

from dfkd_jax.sweeps import plan


@pytest.fixture
def runs(tmp_path):
    """Noise of the student's side: two values, two seeds; none has been made."""
    return plan.plan(
        "configs/mnist.py:smoke",
        {},
        [plan.axis_of_set("distillation.noise=0,0.5")],
        seeds=[0, 1],
        split="validation",
        workdir=tmp_path,
    )
