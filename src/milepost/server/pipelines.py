"""Pipelines of media work: queues named `media.<project>.<name>`, which are nothing to other projects."""

from __future__ import annotations

MEDIA = "media"


def pipeline_queue(project: str, name: str) -> str:
    """The queue of a project's pipeline."""
    return f"{MEDIA}.{project}.{name}"


def is_foreign(queue: str, project: str) -> bool:
    """Whether the queue is a pipeline of another project."""
    return queue.startswith(f"{MEDIA}.") and queue.count(".") > 1 and not queue.startswith(pipeline_queue(project, ""))


__all__ = ["MEDIA", "is_foreign", "pipeline_queue"]
