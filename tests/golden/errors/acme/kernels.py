"""Raises on import, as a package does that was built for another machine."""

raise ImportError("libcudart.so.13: cannot open shared object file")
