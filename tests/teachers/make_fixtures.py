"""Makes the recorded PyTorch networks of test_pytorch.py.

Needs the extra torch; run in the root of the repository:

    python tests/teachers/make_fixtures.py
"""

import pathlib

import torch
import torch_nets
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).parent / "fixtures"


def main():
    FOLDER.mkdir(exist_ok=True)
    networks = {
        "lenet5_half_dafl": (torch_nets.LeNet5((3, 8), (60, 42)), (1, 28, 28)),
        "custom": (torch_nets.Custom(), (3, 16, 12)),
    }
    for name, (network, shape) in networks.items():
        torch_nets.randomized(network)
        images = torch.randn(3, *shape)
        with torch.no_grad():
            logits = network(images)
        save_file(network.state_dict(), FOLDER / f"{name}.safetensors")
        recorded = {"images": images, "logits": logits}
        save_file(recorded, FOLDER / f"{name}_recorded.safetensors")


if __name__ == "__main__":
    main()
