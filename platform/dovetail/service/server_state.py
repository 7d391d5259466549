"""What the server knows of its own part right now: whether it decides, and whether its database
answers. Written by the daemon, read by the use cases. Never stored.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Literal

Role = Literal["starting", "decides", "standby"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """`decider` is who decides while we stand by; `outage` what the database said when it went."""

    role: Role = "starting"
    decider: str | None = None
    outage: str | None = None


class ServerState:
    """A box with one frozen value in it; its setters say whether that was news."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._facts = ServerFacts()

    @property
    def facts(self) -> ServerFacts:
        with self._lock:
            return self._facts

    def decides(self) -> bool:
        return self._set(ServerFacts(role="decides"))

    def stands_by(self, decider: str | None) -> bool:
        return self._set(ServerFacts(role="standby", decider=decider))

    def lost_database(self, outage: str) -> bool:
        """The role stays: nobody else can take the lease of a database that does not answer."""
        return self._set(replace(self.facts, outage=outage))

    def _set(self, facts: ServerFacts) -> bool:
        with self._lock:
            changed, self._facts = facts != self._facts, facts
        return changed
