"""What `show` prints of a job: one fact per line, each figure with its unit."""

from __future__ import annotations

from dovetail.cli.output import Json, duration, number, words
from dovetail_jobs.memory_terms import above_reserved
from dovetail_jobs.units import format_bytes, format_seconds

CODE_DIGITS = 12  # of a hash: enough to tell snapshots apart
Facts = list[tuple[str, str]]


def job_facts(job: Json) -> Facts:
    """Label and text; what is not known has no text."""
    files = job.get("files") or {}
    return [
        ("id", job["id"]),
        ("name", job["name"]),
        ("project", job["project"]),
        ("user", job["user"]),
        ("labels", _pairs(job["labels"], "=")),
        ("parent", job["parent"] or ""),
        ("retry of", job.get("origin") or ""),
        ("family", job["spec"].get("family") or ""),
        ("script", " ".join((job["spec"].get("script") or "").split())),
        ("code", (job.get("code") or "")[:CODE_DIGITS]),
        ("state", f"{job['state']} ({words(job['reason'])})" if job["reason"] else job["state"]),
        ("message", job["message"]),
        ("priority", str(job["priority"])),
        ("created", job["created_at"]),
        ("started", job["started_at"] or ""),
        ("ended", job["ended_at"] or ""),
        ("progress", _progress(job["progress"])),
        ("metrics", _pairs({name: number(value) for name, value in job["metrics"].items()}, " ")),
        *((f"attempt {attempt['number']}", _attempt(attempt)) for attempt in job["attempts"]),
        *(
            ("checkpoint", f"step {item['step']}, {format_bytes(item['bytes'])}, {item['uri']}")
            for item in job["checkpoints"]
        ),
        *_memory(job),
        ("log", files.get("log") or ""),
        ("curves", files.get("curves") or ""),
    ]


def place(run: Json) -> str:
    """`node/device` of an attempt, as far as it is known."""
    return "/".join(filter(None, (run.get("node"), run.get("device"))))


def steps(progress: Json) -> str:
    """`120/500 (24%)`, or `120` where nobody knows the end."""
    step, last = progress["step"], progress["steps"]
    if step is None:
        return ""
    return f"{step}/{last} ({100 * step // last}%)" if last else str(step)


def _progress(progress: Json) -> str:
    steps_per_s, samples_per_s = progress["steps_per_s"], progress["samples_per_s"]
    return _listed(
        steps(progress),
        f"{number(steps_per_s)} steps/s" if steps_per_s else "",
        f"{number(samples_per_s)} samples/s" if samples_per_s else "",
        f"{format_seconds(progress['eta_s'])} left" if progress["eta_s"] else "",
    )


def _attempt(attempt: Json) -> str:
    where, step, code = place(attempt), attempt["resumed_from_step"], attempt["exit_code"]
    why = f" ({words(attempt['reason'])})" if attempt["ended_at"] and attempt["reason"] else ""
    return _listed(
        f"{attempt['state']}{why}" + (f" on {where}" if where else ""),
        f"pid {attempt['pid']}" if attempt["pid"] else "",
        f"from step {step}" if step is not None else "",
        f"exit code {code}" if code is not None else "",
    )


def _memory(job: Json) -> Facts:
    """What it takes of its device, and below that what the memory manager did for it."""
    memory = job["memory"]
    reserved = job["spec"].get("resources", {}).get("memory")
    provenance, fence = memory.get("provenance"), memory.get("fence")
    known = f" ({provenance})" if provenance else ""
    return [
        (
            "memory",
            _listed(
                _size("reserved", reserved if isinstance(reserved, int) else None),
                _size("forecast", memory["forecast_bytes"], known),
                _size("budget", memory["budget_bytes"]),
                _size("peak", memory["peak_bytes"]),
                _size("base", memory["base_bytes"]),
                f"fence {fence}" if fence else "",
            ),
        ),
        ("tensile", _moved(memory)),
        ("warning", _above_reserved(job)),
    ]


def _above_reserved(job: Json) -> str:
    memory, spec = job["memory"], job["spec"]
    traced_bytes = memory["forecast_bytes"] if memory.get("provenance") == "traced" else None
    budget = spec.get("memory", {}).get("budget", "auto")
    reserved = spec.get("resources", {}).get("memory", "auto")
    return above_reserved(budget, reserved, traced_bytes) or ""


def _moved(memory: Json) -> str:
    stall_s = memory.get("stall_s")
    return _listed(
        _size("swapped out", memory.get("swapped_out_bytes")),
        _size("swapped in", memory.get("swapped_in_bytes")),
        _size("recomputed", memory.get("recomputed_bytes")),
        _count(memory.get("passive_fetches"), "passive fetch", "passive fetches"),
        f"stalled {duration(stall_s)}" if stall_s is not None else "",
        _count(memory.get("replans"), "replan", "replans"),
    )


def _size(what: str, size_bytes: int | None, known: str = "") -> str:
    return "" if size_bytes is None else f"{what} {format_bytes(size_bytes)}{known}"


def _count(count: int | None, one: str, several: str) -> str:
    return "" if count is None else f"{count} {one if count == 1 else several}"


def _listed(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def _pairs(values: dict[str, str], between: str) -> str:
    return _listed(*(f"{key}{between}{value}" for key, value in values.items()))
