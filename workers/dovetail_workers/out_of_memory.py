"""The end of an attempt for want of memory. No torch: who catches it may not have loaded it."""

from __future__ import annotations


class OutOfMemory(Exception):
    """Memory failed, also on the lowest rung that could be tried; the newest checkpoint is the
    place to go on from. The message is a sentence for the job's owner.
    """
