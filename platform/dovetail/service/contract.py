"""What the platform says about jobs, in JSON: a contract (docs/job-json.md).

Fields may be added, never renamed or removed.

Bytes and seconds are plain numbers, times are RFC 3339 in UTC, and what is not known is null.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict

from dovetail_jobs.lifecycle import State
from dovetail_jobs.spec import JobSpec


def _in_utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)


Time = Annotated[AwareDatetime, AfterValidator(_in_utc)]


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class ProgressView(_View):
    """Where the run is; all null until the first report."""

    phase: str | None = None
    """Which part of the training: `train` for families of one phase."""
    step: int | None = None
    """Optimizer steps done."""
    steps: int | None = None
    """Optimizer steps of this phase; null when the program does not know."""
    steps_per_s: float | None = None
    """Speed over the last seconds."""
    samples_per_s: float | None = None
    """Speed over the last seconds, in samples of the global batch."""
    eta_s: float | None = None
    """Seconds until the last step at this speed."""


class RankView(_View):
    """One training process of an attempt."""

    rank: int
    """0 to the number of devices minus one."""
    pid: int | None = None
    """Its process id on its node."""
    node: str | None = None
    """The node's name."""
    device: str | None = None
    """`cpu:0`, `cuda:1`, …"""
    exit_code: int | None = None
    """As a shell counts it: negative for a signal."""


class AttemptView(_View):
    """One try to run the job on a device. A loss or a granted retry begins the next one."""

    number: int
    """1 for the first."""
    state: str
    """Where the attempt is in its own life."""
    reason: str | None = None
    """Why it is there, one word."""
    pid: int | None = None
    """The training process of rank 0."""
    node: str | None = None
    """The node's name."""
    device: str | None = None
    """The device of rank 0."""
    exit_code: int | None = None
    """Of rank 0, as a shell counts it: negative for a signal."""
    started_at: Time | None = None
    """When its training process began."""
    ended_at: Time | None = None
    """When it was over."""
    resumed_from_step: int | None = None
    """The step of the checkpoint it began from; null from the beginning."""
    ranks: tuple[RankView, ...] = ()
    """Every process, by rank."""


class CheckpointView(_View):
    """A complete checkpoint."""

    step: int
    """Optimizer steps it holds."""
    uri: str
    """The folder or object prefix it lies under."""
    bytes: int
    """Of all its parts."""


class MemoryView(_View):
    """Device memory; each null until known."""

    forecast_bytes: int | None = None
    """The peak foreseen before the run."""
    provenance: Literal["traced", "measured", "declared"] | None = None
    """How the scheduler knows: from the traced step, from an earlier run of the same configuration
    that took more than that, or from what the spec declares of a script."""
    peak_bytes: int | None = None
    """The highest use so far, over `base_bytes`."""
    budget_bytes: int | None = None
    """What the job was given to live in."""
    base_bytes: int | None = None
    """The bare process with its libraries, before the model."""
    swapped_out_bytes: int | None = None
    """What the tensile policy moved from the device; as the rest, of the newest attempt."""
    swapped_in_bytes: int | None = None
    """What it moved back."""
    recomputed_bytes: int | None = None
    """What it computed again instead."""
    passive_fetches: int | None = None
    """How often something was needed before it was back."""
    stall_s: float | None = None
    """How long training waited for it."""
    replans: int | None = None
    """How often it changed its plan."""
    fence: str | None = None
    """Who keeps it to that: `cgroup`, `watched` or `cuda fraction`; null where nobody does."""


class FilesView(_View):
    """Where the job's files lie; null before there are any."""

    log: str | None = None
    """What the newest attempt printed, in numbered segments."""
    curves: str | None = None
    """TensorBoard event files."""


class JobView(_View):
    """A job, whole."""

    id: str
    """Short, unique and permanent."""
    name: str
    """As its spec says; several jobs may share it."""
    project: str
    """As its spec says."""
    user: str
    """Who submitted it."""
    labels: dict[str, str]
    """As its spec says."""
    parent: str | None
    """The id of the search it belongs to."""
    state: State
    """Where it is in its life; SUCCEEDED, FAILED and CANCELLED are final."""
    reason: str | None
    """Why it is in this state, one word."""
    message: str
    """The same as one sentence for a person."""
    priority: int
    """0 to 100; higher goes first."""
    created_at: Time
    """When its submission was acknowledged."""
    started_at: Time | None
    """When its first attempt began to run."""
    ended_at: Time | None
    """When it reached its final state."""
    spec: dict[str, Any]
    """Resolved: every default filled in. A valid input for another submission."""
    progress: ProgressView
    """Where the run is."""
    metrics: dict[str, float]
    """The last value of each metric; only what the workload's functions returned, deterministic."""
    attempts: tuple[AttemptView, ...]
    """In order; the last one is the present one."""
    checkpoints: tuple[CheckpointView, ...]
    """Complete and kept, oldest first."""
    memory: MemoryView
    """Device memory foreseen and used."""
    files: FilesView = FilesView()
    """Where its log and curves lie."""
    origin: str | None = None
    """The id of the job that this one retries."""
    code: str | None = None
    """The sha256 of the code that every attempt runs; null for a job that brings none."""
    warnings: tuple[str, ...] = ()
    """In the answer to a submission: what its author should know, as far as it is known by then."""


class EventView(_View):
    """One line of a job's story."""

    id: int
    """Grows with time; ask for what came `after` it."""
    at: Time
    """When."""
    attempt: int | None = None
    """The attempt it concerns."""
    kind: str
    """What happened."""
    state: str
    """The job's state after it."""
    reason: str | None = None
    """The job's reason after it."""
    message: str
    """One sentence."""


class MetricPointView(_View):
    """One value of a curve. A resumed attempt supersedes the later points of earlier ones."""

    metric: str
    """Its name."""
    phase: str = "train"
    """The phase it belongs to."""
    step: int
    """Optimizer steps done."""
    attempt: int
    """Who measured it."""
    value: float
    """The value, in every digit."""


class LogChunk(_View):
    """A stretch of what an attempt printed."""

    attempt: int | None
    """Whose log; null while the job has no attempt."""
    offset: int
    """Bytes before `data`."""
    next_offset: int
    """Where to go on reading."""
    data: str
    """Whole characters; bytes that are no UTF-8 appear as U+FFFD."""
    complete: bool
    """Nothing will follow: the attempt is over and this is its end."""


class PlacementView(_View):
    """Where a job would run."""

    node: str
    """The node's name."""
    device: str
    """`cpu:0`, `cuda:1`, …"""


class CodeView(_View):
    """A code snapshot that the server keeps."""

    sha256: str
    """Its name: the hash of its content."""
    bytes: int
    """Of its files, unpacked."""
    files: int
    """How many; folders and links are not counted."""


class ForecastView(_View):
    """Device memory of one training step without a manager, foreseen by tracing it."""

    peak_bytes: int
    """Of the step as the user wrote it."""
    floor_bytes: int
    """The least that a plan of the tensile policy can keep."""
    margin_bytes: int
    """The true peak lies within it, as a rule."""
    by_class: dict[str, int]
    """What lives at the peak."""


class PlanView(_View):
    """What a submission would do now; nothing is kept."""

    spec: dict[str, Any]
    """Resolved."""
    placement: PlacementView | None
    """Null when it would wait, or can never run here."""
    reason: str
    """Why, one word."""
    message: str
    """Why, one sentence."""
    code: CodeView | None = None
    """What it would run; null for a job that brings no code."""
    forecast: ForecastView | None = None
    """Null for a script, and for a step that cannot be foreseen."""
    warnings: tuple[str, ...] = ()
    """What would not stop it, and should be known."""


class ServerOptions(_View):
    """What the server was told at its start; null where it chose."""

    cpu_devices: int | None = None
    """CPU devices of a machine without a GPU."""
    device_memory_bytes: int | None = None
    """Of one CPU device."""
    port: int | None = None
    """The port it was told to listen on."""
    ray_address: str | None = None
    """The Ray it joined instead of starting one."""


class DatabaseStatus(_View):
    """Whether the database is there, and where."""

    state: Literal["up", "lost"] = "up"
    """`lost`: running jobs go on, and nothing is decided until it is back."""
    place: str | None = None
    """A file, or host and name; never a user or password."""
    message: str | None = None
    """What is wrong, while it is not up."""


class ServerStatus(_View):
    """A server: one process, and what it was told."""

    pid: int
    """Its process id."""
    url: str
    """Where it listens."""
    version: str
    """Of Dovetail."""
    uptime_s: float
    """Since its start."""
    home: str | None = None
    """Its state folder."""
    options: ServerOptions = ServerOptions()
    """What it was told at its start."""
    role: Literal["starting", "decides", "standby"] = "decides"
    """Of several servers on one database, one decides; the others only serve."""
    message: str | None = None
    """Who decides, while this one stands by."""


class RayStatus(_View):
    """Whether Ray is there, and where."""

    state: Literal["starting", "up", "lost"]
    """`lost`: jobs wait until it is back."""
    address: str | None = None
    """Of its head."""
    dashboard_url: str | None = None
    """Ray's own dashboard."""
    message: str | None = None
    """What is wrong, while it is not up."""


class DeviceStatus(_View):
    """A device."""

    name: str
    """`cpu:0`, `cuda:1`, …"""
    bytes: int
    """What jobs may use of it."""
    job: str | None = None
    """The id of the job that holds it; of several, the first."""
    jobs: tuple[str, ...] = ()
    """The ids of all jobs on it."""


class NodeStatus(_View):
    """A machine of the cluster."""

    id: str
    """Ray's id."""
    name: str
    """What a person calls it."""
    cpus: float
    """Logical."""
    devices: tuple[DeviceStatus, ...]
    """Of this node, in order."""


class NodesChanged(_View):
    """Nodes that were added or removed."""

    names: tuple[str, ...]
    """As `ClusterStatus.nodes` names them, once Ray has noticed."""


class JobUseView(_View):
    """What a job has of a device. Most is null without a lease: it has it alone, or only starts."""

    job: str
    """Its id."""
    name: str | None = None
    """As its spec says."""
    attempt: int | None = None
    """Which of its attempts."""
    state: State | None = None
    """Where the job is in its life."""
    admitted: bool | None = None
    """Whether the device's broker has let it in; one that waits has no bytes yet."""
    lease_bytes: int | None = None
    """What it may hold now."""
    resident_bytes: int | None = None
    """What it holds by the system's count, over its bare process."""
    cap_bytes: int | None = None
    """What it plans for."""
    minimum_bytes: int | None = None
    """What nobody takes from it: a step ends with so much."""
    rung: int | None = None
    """The plan that it follows, of its `rungs`; 1 is with all the memory it wants."""
    rungs: int | None = None
    """How many plans it has."""
    speed: float | None = None
    """Predicted, over a step with all the memory it wants: its slowdown is 1 / speed."""
    swapped_out_bytes: int | None = None
    """What left the device so far."""
    fence: str | None = None
    """Who keeps it to that: `cgroup`, `watched` or `cuda fraction`; null where nobody does."""
    message: str = ""
    """What it waits for."""


class DeviceUseView(_View):
    """A device, and who has what of it."""

    node: str
    """The node's name."""
    device: str
    """`cpu:0`, `cuda:1`, …"""
    bytes: int
    """What jobs may use of it."""
    free_bytes: int | None = None
    """Of no lease; null while a job has the device alone."""
    jobs: tuple[JobUseView, ...] = ()
    """Those who run there, then others who joined its broker."""


class HeldView(_View):
    """What a job had of a device at a moment."""

    job: str
    """Its id."""
    name: str | None = None
    """As its spec says."""
    lease_bytes: int
    """What it might hold."""
    resident_bytes: int | None = None
    """What it held by the system's count, over its bare process."""


class DeviceSampleView(_View):
    """How a device was shared from a moment on."""

    at: Time
    """When."""
    jobs: tuple[HeldView, ...]
    """Those who shared it."""


class DeviceHistoryView(_View):
    """How a device was shared over the last two hours, as far as the server saw it."""

    node: str
    """The node's name."""
    device: str
    """`cpu:0`, `cuda:1`, …"""
    bytes: int
    """What jobs may use of it."""
    samples: tuple[DeviceSampleView, ...]
    """Oldest first; each holds until the next."""
    until: Time
    """How long the last one held."""


class ClusterStatus(_View):
    """The platform at a glance."""

    server: ServerStatus
    """The process that answers."""
    ray: RayStatus
    """The cluster below."""
    database: DatabaseStatus = DatabaseStatus()
    """Where jobs are kept."""
    nodes: tuple[NodeStatus, ...]
    """Empty until the cluster is up."""
    counts: dict[str, int]
    """How many jobs are in each state; states without jobs are left out."""


class ProblemView(_View):
    """One thing wrong with a spec."""

    key: str
    """Dotted: `train.steps`."""
    rule: str
    """What holds, and the way out."""
    value: str | None = None
    """As written."""
    file: str | None = None
    """Where it was written, if in a file."""
    line: int | None = None
    """Where in the file."""


class ProblemDetails(_View):
    """Every refusal and failure, as `application/problem+json` (RFC 9457)."""

    type: str
    """A URN that names the kind."""
    title: str
    """The kind, in words."""
    status: int
    """The HTTP status."""
    detail: str
    """The sentence for the user."""
    code: str
    """The kind, for programs."""
    problems: tuple[ProblemView, ...] = ()
    """For `bad_spec`: all that is wrong."""


class Service(Protocol):
    """The use cases, as the API calls them from its threads. All raise the DovetailError tree.

    `ref` is a job's id, a unique beginning of it, or a name (the newest job of that name).
    """

    def submit(
        self, spec: JobSpec, key: str | None, user: str, code: str | None = None
    ) -> tuple[JobView, bool]:
        """Acknowledge a job that runs `code`. True if it is new, False if `key` had submitted it
        before.
        """

    def plan(self, spec: JobSpec, code: str | None = None) -> PlanView:
        """Resolve the spec and say where it would run now."""

    def code(self, sha256: str) -> CodeView:
        """A code snapshot that is kept, whole; NotFound otherwise."""

    def keep_code(self, sha256: str, archive: Path) -> CodeView:
        """Keep an archive of this content; UserError if it is of another, or too large."""

    def job(self, ref: str) -> JobView:
        """One job; NotFound names near ones."""

    def jobs(
        self, states: Sequence[State] | None, project: str | None, limit: int | None
    ) -> list[JobView]:
        """Newest first; None asks for all."""

    def cancel(self, ref: str) -> JobView:
        """Stop a job without a checkpoint; a job that is over stays as it is."""

    def retry(self, ref: str, from_scratch: bool) -> JobView:
        """A new job of the same spec that resumes from the newest checkpoint.

        Conflict unless the job is FAILED or CANCELLED.
        """

    def events(self, ref: str, after: int) -> list[EventView]:
        """The job's story after event number `after`."""

    def metrics(self, ref: str, metric: str | None) -> list[MetricPointView]:
        """The effective curves, by metric and step."""

    def logs(self, ref: str, attempt: int | None, offset: int, limit_bytes: int) -> LogChunk:
        """At most `limit_bytes` of a log from byte `offset`; None is the newest attempt."""

    def status(self) -> ClusterStatus:
        """Server, cluster, devices and counts."""

    def devices(self) -> list[DeviceUseView]:
        """Every device of the cluster, with those who hold or share it."""

    def device_histories(self) -> list[DeviceHistoryView]:
        """Of every device that was shared of late."""

    def add_nodes(self, count: int) -> NodesChanged:
        """Start extra nodes on this machine; Conflict for a Ray that was joined."""

    def remove_node(self, name: str, force: bool) -> NodesChanged:
        """End an extra node of this machine. Conflict while it runs jobs, unless `force`."""

    def change_number(self) -> int:
        """Grows whenever a job, a log or the cluster changes."""

    def wait_change(self, after: int, timeout_s: float) -> int:
        """Block until the change number is above `after` or the time is over; the number then.

        A server that ends lets everyone go who waits.
        """

    def shutdown(self, stop_ray: bool) -> None:
        """Begin to end the server (it answers first), with the Ray that it started if asked."""
