"""`python -m bench`: measure, print the table, keep a line of history."""

from __future__ import annotations

import argparse
import signal
import sys

from bench import suite
from bench.figures import FIGURES


def main() -> int:
    """0 when everything could be measured, whatever it came to; 1 when not; 130 when it was interrupted: that is not kept."""
    parser = argparse.ArgumentParser(
        prog="bench", description="Measure throughput, latency and fsync on this machine, in one run."
    )
    parser.add_argument("--quick", action="store_true", help="one short round with a smaller table, not kept in the history")
    parser.add_argument("--only", action="append", metavar="NAME", help="this figure, or those whose names begin so; repeatable")
    parser.add_argument("--rounds", type=int, default=None, metavar="N", help="how often everything is measured (3)")
    parser.add_argument("--no-history", action="store_true", help="do not append to bench/history.jsonl")
    parser.add_argument("--list", action="store_true", help="the figures by name, and nothing measured")
    args = parser.parse_args()
    chosen = [one for one in FIGURES if args.only is None or any(one.name.startswith(name) for name in args.only)]
    if args.list or not chosen:
        print("\n".join(f"{one.name:<20} {one.about}" for one in FIGURES))
        return 0 if args.list else 2
    rounds = args.rounds or (1 if args.quick else 3)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # rooms are tidied, programs ended
    results = suite.run(chosen, rounds=rounds, quick=args.quick)
    line = suite.record(chosen, results, rounds=rounds, quick=args.quick)
    print(f"{suite.table(chosen, results)}\n\n{suite.machine_line(line['machine'])}")
    if results.interrupted:
        return 130
    if not args.quick and not args.no_history:
        suite.keep(line)
    return 1 if results.missing else 0


if __name__ == "__main__":
    sys.exit(main())
