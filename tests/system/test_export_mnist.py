"""Exported networks on the whole MNIST test set, in processes without this package."""

import subprocess
import sys

import numpy as np
import pytest

from dfkd_jax.data import tfds
from dfkd_jax.exporting import networks, sources

pytestmark = pytest.mark.network
PRELUDE = "import sys\nsys.modules['dfkd_jax'] = None\nimport numpy as np\n"
LOADERS = {
    "stablehlo": (
        "import jax.export\n"
        "file = open('network', 'rb').read()\n"
        "call = jax.export.deserialize(bytearray(file)).call\n"
    ),
    "onnx": (
        "import onnxruntime\n"
        "session = onnxruntime.InferenceSession('network')\n"
        "call = lambda images: session.run(None, {'images': images})[0]\n"
    ),
}
APPLY = (
    "images = np.load('images.npy').astype(np.float32) / 255\n"
    "np.save('logits.npy', np.concatenate([np.asarray(call(images[i : i + 999]))"
    " for i in range(0, len(images), 999)]))\n"
)


@pytest.fixture(scope="module")
def images():
    return tfds.load("mnist", "test").images


@pytest.mark.parametrize("format_name", LOADERS)
def test_predictions_are_the_same_to_the_last_image(tmp_path, images, format_name):
    if format_name == "onnx":
        pytest.importorskip("jax2onnx")
        pytest.importorskip("onnxruntime")
    network = sources.load_network("mnist_lenet5")
    networks.write(tmp_path / "network", network, format_name=format_name)
    np.save(tmp_path / "images.npy", images)
    subprocess.run(
        [sys.executable, "-c", PRELUDE + LOADERS[format_name] + APPLY],
        cwd=tmp_path,
        check=True,
    )
    found = np.load(tmp_path / "logits.npy")
    wanted = networks.evaluation_function(network)(images.astype(np.float32) / 255)
    assert found.shape == (10_000, 10)
    np.testing.assert_array_equal(found.argmax(1), wanted.argmax(1))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
