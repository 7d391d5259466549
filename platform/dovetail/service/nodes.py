"""Adding and removing extra nodes of this machine, as the API asks for it: what is refused, and
why. The processes are `cluster/local_nodes.py`'s.
"""

from __future__ import annotations

import socket

from dovetail.cluster.local_nodes import LocalNodes
from dovetail.service import picture
from dovetail.service.cluster_state import ClusterState
from dovetail.service.contract import NodesChanged
from dovetail.settings import Settings
from dovetail.store.store import Store
from dovetail_jobs.errors import Conflict


class Nodes:
    """Both commands return when the processes have started or ended; Ray needs a moment more to
    say so.
    """

    def __init__(self, settings: Settings, state: ClusterState, store: Store) -> None:
        self._settings, self._state, self._store = settings, state, store
        self._local = LocalNodes(
            record=settings.ray_file,
            token_file=settings.ray_token_file,
            log=settings.ray_log,
            devices=settings.cpu_devices or 1,
        )

    def add(self, count: int) -> NodesChanged:
        self._refuse_joined("start them there with `ray start --address=…`")
        return NodesChanged(names=self._local.add(count))

    def remove(self, name: str, force: bool) -> NodesChanged:
        """A node's jobs are lost with it and move; without `force` they keep it."""
        self._refuse_joined("stop them there with `ray stop`")
        ids = {node.id for node in self._state.facts.nodes or () if node.name == name}
        jobs = [
            holding.job_id
            for holding in picture.holdings(self._store.active())
            if holding.node_id in ids
        ]
        if jobs and not force and name != socket.gethostname():
            listed = ", ".join(dict.fromkeys(jobs))
            raise Conflict(
                f"node {name} runs {listed}; wait, `dovetail cancel` them, or remove the node with "
                "--force: they then move to other nodes and go on from their checkpoints"
            )
        self._local.remove(name)
        return NodesChanged(names=(name,))

    def _refuse_joined(self, way_out: str) -> None:
        if address := self._settings.ray_address:
            raise Conflict(
                f"the Ray at {address} was joined, not started here; its nodes are not ours: "
                + way_out
            )
