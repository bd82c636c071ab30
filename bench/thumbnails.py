"""What thumbnails through the service are compared with: the same libvips call in a loop, in so many processes.

Imports, the processes' start and each one's first picture are not measured.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

SIDE = 200  # the longer one
QUALITY = 75


def make(photo: Path, out: Path) -> None:
    """What `imageView2/2/w/200` comes to for a photo of 4 by 3."""
    import pyvips

    small = pyvips.Image.thumbnail(str(photo), SIDE, height=SIDE * 3 // 4, size="force", no_rotate=True, fail_on="error")
    small.jpegsave(str(out), Q=QUALITY)


def _loop(photo: Path, out: Path, count: int, together: Barrier, used: SimpleQueue[float]) -> None:
    import pyvips

    pyvips.cache_set_max(0)  # it would remember what it made of this photo
    make(photo, out)
    together.wait()
    began_s = time.process_time()
    for _ in range(count):
        make(photo, out)
    used.put(time.process_time() - began_s)
    together.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    os.environ["VIPS_CONCURRENCY"] = "1"  # one picture a processor, as the service has it
    context = multiprocessing.get_context("spawn")
    together, used = context.Barrier(args.processes + 1), context.SimpleQueue()
    share = args.count // args.processes
    processes = [
        context.Process(
            target=_loop, args=(args.photo, args.photo.with_suffix(f".{number}.jpg"), share, together, used), daemon=True
        )
        for number in range(args.processes)
    ]
    for process in processes:
        process.start()
    together.wait(60)
    started_s = time.perf_counter()
    together.wait(300)
    wall_s = time.perf_counter() - started_s
    cpu_s = sum(used.get() for _ in processes)
    json.dump({"per_s": share * args.processes / wall_s, "cpu_s": cpu_s}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
