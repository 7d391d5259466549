"""How much code a job may bring."""

from __future__ import annotations

LIMIT_BYTES = 100 * 2**20  # unpacked, unless the platform is told otherwise
ENTRY_LIMIT = 20_000  # files, folders and links
WAY_OUT = "add what is no code to .gitignore, or set workdir to a smaller folder"
