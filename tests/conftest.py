"""Settings for every test."""

from __future__ import annotations

import os

from hypothesis import settings

# Hypothesis fails examples that took longer than 200 ms by default: no test of ours judges wall time.
# In CI the examples are the same in every run; elsewhere they are new ones each time.
settings.register_profile("fedbus", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("fedbus")
