"""Real images. No other folder can read any; this one imports no JAX."""
