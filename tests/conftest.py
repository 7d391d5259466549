"""Properties are proved on the same examples each time, however busy the machine is."""

from hypothesis import settings

settings.register_profile("dovetail", deadline=None, derandomize=True, database=None)
settings.load_profile("dovetail")
