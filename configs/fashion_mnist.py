"""Fashion-MNIST: LeNet-5 to its half, from the weights of the shipped teacher alone.

    python -m dfkd_jax.main --config=configs/fashion_mnist.py

The recipe of MNIST with the other teacher; nothing was tuned for it.
"""
