#!/usr/bin/env python3
"""Medians of the workloads' times as a table: table.py DIRECTORY RUNS. Exits with 1 when two sides' results differ."""
import math
import re
import statistics
import sys

COSTS = re.compile(r"vCPU created in ([\d.]+) ms, ([\d.]+) MiB private")
RESULT = re.compile(r"RESULT (\w+) (\d+) (\w+)")
# What issue and README ask for: these together at least three times, each of the system's at least twice.
THROUGHPUT = ["integer", "sieve", "calls", "indirect", "nbody", "python", "gzip", "sha256", "aes"]
SYSTEM = ["boot", "getpid", "pipe", "fork", "exec", "fault"]
QEMU = ["max", "qemu64"]


def read(directory, side, run):
    times, results = {}, {}
    with open(f"{directory}/{side}.{run}", errors="replace") as file:
        for name, time, result in RESULT.findall(file.read()):
            if name != "end":
                times[name], results[name] = int(time) / 1e6, result
    if side != "native":
        with open(f"{directory}/{side}.boot.{run}") as file:
            times["boot"] = float(file.read())
    return times, results


def main():
    directory, runs = sys.argv[1], int(sys.argv[2])
    sides = {side: [read(directory, side, run) for run in range(1, runs + 1)] for side in ["native", "ours", *QEMU]}
    expected = sides["native"][0][1]
    for side, measured in sides.items():
        for _times, results in measured:
            different = [name for name in expected.keys() | results.keys() if results.get(name) != expected.get(name)]
            if different:
                sys.exit(f"{side} did different work, so there is nothing to compare: {sorted(different)}")

    def median(side, name):
        values = [times[name] for times, _results in sides[side] if name in times]
        return statistics.median(values) if values else math.nan

    ratios = {}

    def rows(title, names):
        print(f"{title:22}{'native':>10}{'ours':>10}{'QEMU':>10}{'ours/native':>13}{'QEMU/ours':>11}")
        for name in names:
            native, ours = median("native", name), median("ours", name)
            qemu = min(median(side, name) for side in QEMU)
            ratios[name] = qemu / ours
            print(f"{name:22}{native:10.1f}{ours:10.1f}{qemu:10.1f}{ours / native:13.2f}{qemu / ours:11.2f}")

    rows("throughput, ms", [name for name in THROUGHPUT if name in expected])
    done = [ratios[name] for name in THROUGHPUT if name in ratios]
    if done:
        print(f"geometric mean of QEMU/ours: {statistics.geometric_mean(done):.2f}")
    rows("system, ms", [name for name in SYSTEM if name == "boot" or name in expected])
    costs = []
    for run in range(1, runs + 1):
        with open(f"{directory}/ours.{run}.errors") as file:
            costs.append([float(part) for part in COSTS.search(file.read()).groups()])
    start, memory = map(statistics.median, zip(*costs))
    print(f"start of a vCPU: {start:.1f} ms; private memory at the end of the workloads: {memory:.0f} MiB")
    rows("others, ms", [name for name in expected if name not in THROUGHPUT + SYSTEM])


main()
