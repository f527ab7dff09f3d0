"""Baselines that read real training images: NOT data-free.

The only ways to a student that can. What they read stands in `results.json` as
`real_data`, beside `"data_free": false`.
"""
