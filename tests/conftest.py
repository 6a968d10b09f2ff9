"""Settings for all tests."""

import os

import torch
from hypothesis import HealthCheck, settings

# Small tensors: more threads would only wait for each other.
torch.set_num_threads(1)

settings.register_profile(
    "ci", deadline=None, derandomize=True, max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.register_profile("nightly", parent=settings.get_profile("ci"), max_examples=2000,
                          derandomize=False)  # fmt: skip
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
