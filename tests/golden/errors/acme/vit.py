"""A family of a user's own that cannot be imported here."""

from acme import kernels

__all__ = ["kernels"]
