"""What the paper compares with, as far as it is not a choice of settings.

None of it reaches real images, but for what lies in `real_data`.
"""
