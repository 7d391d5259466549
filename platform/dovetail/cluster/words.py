"""Ray's errors in a person's words."""

from __future__ import annotations

KILLED = "its process ended without a word (killed, out of memory, or crashed)"
_DETAIL = "Worker exit detail: "


def first_line(error: BaseException) -> str:
    """The error's kind and first line, at most 400 characters."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"[:400]


def why_gone(error: BaseException, node: str | None, node_lives: bool) -> str:
    """Why a worker is gone. `node` is what a person calls its node, None if that is not known."""
    text = str(error)
    if not node_lives or "its node has died" in text:
        return f"node {node} is gone" if node else "its node is gone"
    if isinstance(error, TimeoutError):
        return "its worker did not answer in time"
    _, _, detail = text.partition(_DETAIL)
    if "connection error code 2" in detail:
        return f"its worker died: {KILLED}"
    said = detail or next((line for line in reversed(text.splitlines()) if line.strip()), "")
    sentence = said.strip().partition(". ")[0].rstrip(".") or first_line(error)
    return f"its worker died: {sentence}"[:400]
