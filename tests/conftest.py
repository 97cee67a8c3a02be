"""What holds for all tests."""

from hypothesis import settings

# A slow machine is no fault of the code, and a failure must come back when the test is run again.
settings.register_profile("xmerge", deadline=None, derandomize=True)
settings.load_profile("xmerge")
