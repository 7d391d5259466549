"""A run's curves as TensorBoard event files, in a storage that cannot append.

Points are collected; each flush writes one new whole file, numbered so that TensorBoard, which
reads the files of a folder in the order of their names, sees one run.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import Any

from dovetail_workers.storage.protocol import Storage, StorageError


class Curves:
    """The scalars of one attempt, under storage prefix `prefix` (a run folder for TensorBoard)."""

    def __init__(self, storage: Storage, prefix: str) -> None:
        self._storage = storage
        self._prefix = prefix
        self._files = 0
        self._points: list[tuple[float, int, Mapping[str, float]]] = []

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._points.append((time.time(), step, values))

    def flush(self) -> None:
        """Write what came since the last flush; nothing new, no file. A storage that refuses is
        asked again by the next flush: these points are a copy of what the journal holds.
        """
        if not self._points:
            return
        # Only here: the import costs as long as several steps of a small model.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        def events() -> Any:
            yield Event(wall_time=self._points[0][0], file_version="brain.Event:2")
            for wall_time_s, step, values in self._points:
                scalars = [Summary.Value(tag=tag, simple_value=v) for tag, v in values.items()]
                yield Event(wall_time=wall_time_s, step=step, summary=Summary(value=scalars))

        file = io.BytesIO()
        writer = RecordWriter(file)
        for event in events():
            writer.write(event.SerializeToString())
        self._files += 1
        # TensorBoard takes a name for an event file when it contains `tfevents`.
        name = f"events.out.tfevents.{self._files:010d}"
        try:
            self._storage.create(self._prefix + name, file.getvalue())
        except StorageError as error:
            print(f"curves: {error}", flush=True)
            return
        self._points.clear()
