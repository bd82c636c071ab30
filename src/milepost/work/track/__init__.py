"""The tracker: jobs in other clouds, followed by kinds of our own.

`spec` what the kinds take · `kinds` one question and what follows · `channel` all questions to one place · `channels` those
of the process · `transport` guarded I/O · `mirror` from the cloud's view to ours · `sweep` what is left of jobs that are gone.
"""

from milepost.work.track.kinds import track, track_sub

__all__ = ["track", "track_sub"]
