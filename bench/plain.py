"""What an import is compared with: the same bytes downloaded to a file, hashed on the way, and synced."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
import urllib.request
from pathlib import Path

PIECE = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    started_s = time.perf_counter()
    digest = hashlib.sha512()
    with urllib.request.urlopen(args.url, timeout=60) as answer, args.file.open("wb") as file:
        while piece := answer.read(PIECE):
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    json.dump({"wall_s": time.perf_counter() - started_s, "sha512": digest.hexdigest()}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
