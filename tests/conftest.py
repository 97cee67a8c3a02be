"""What holds for all tests."""

import os

from hypothesis import settings

# Torch's threads spin while they wait for each other: on two cores tests take several times as long with two of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A slow machine is no fault of the code, and a failure must come back when the test is run again.
settings.register_profile("xmerge", deadline=None, derandomize=True, max_examples=30)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile("xmerge")
