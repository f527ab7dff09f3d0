"""Where images come from when there are none: pixels from keys alone.

A source is a file here with `draw(keys, *, image_shape) -> pixels`.
"""
