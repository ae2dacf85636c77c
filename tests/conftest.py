"""What every test shares: hypothesis draws the same examples in every run, and keeps no database of them."""

import hypothesis

hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("repeatable")
