"""A module that is no family: it has no build."""
