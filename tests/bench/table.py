#!/usr/bin/env python3
"""Medians of the workloads' times as a table: table.py DIRECTORY RUNS. Exits with 1 when two sides' results differ."""
import math
import re
import statistics
import sys

BOOT = re.compile(r"\[ *([\d.]+)\] RESULT boot ")
RESULT = re.compile(r"RESULT (\w+) (\d+) (\w+)")
# Results that depend on process numbers, not on the work done.
UNCHECKED = {"getpid"}


def read(path):
    times, sums = {}, {}
    with open(path, errors="replace") as file:
        for line in file:
            if boot := BOOT.search(line):
                times["boot"] = float(boot[1]) * 1e3
            if (result := RESULT.search(line)) and result[1] not in ("boot", "end"):
                times[result[1]] = int(result[2]) / 1e6
                sums[result[1]] = result[3]
    return times, sums


def main():
    directory, runs = sys.argv[1], int(sys.argv[2])
    sides = {side: [read(f"{directory}/{side}.{run}") for run in range(1, runs + 1)] for side in ("native", "ours", "max", "qemu64")}
    expected = sides["ours"][0][1]
    for side, results in sides.items():
        for times, sums in results:
            missing = set(expected) - set(sums)
            wrong = [name for name in expected if name not in UNCHECKED and sums.get(name) != expected[name]]
            if missing or wrong:
                sys.exit(f"{side} did different work: missing {sorted(missing)}, different {wrong}")

    def median(side, name):
        values = [times[name] for times, _ in sides[side] if name in times]
        return statistics.median(values) if values else math.nan

    print(f"{'milliseconds':14}{'native':>10}{'ours':>10}{'QEMU':>10}{'ours/native':>13}{'QEMU/ours':>11}")
    ratios = []
    for name in ["boot", *expected]:
        native, ours = median("native", name), median("ours", name)
        peer = min(median("max", name), median("qemu64", name))
        if name != "boot":
            ratios.append(peer / ours)
        print(f"{name:14}{native:10.1f}{ours:10.1f}{peer:10.1f}{ours / native:13.2f}{peer / ours:11.2f}")
    print(f"geometric mean of QEMU/ours without boot: {math.exp(statistics.fmean(map(math.log, ratios))):.2f}")


main()
