"""What every test stands on."""

import os

from hypothesis import settings

# The same examples at every run, so that a test fails for what was changed and not by chance; HYPOTHESIS_PROFILE=search
# looks for new ones.
settings.register_profile("house", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "house"))
