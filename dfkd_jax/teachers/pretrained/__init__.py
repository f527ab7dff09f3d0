"""Trained teachers that come with the package, each with a manifest beside it."""
