"""Prints medians of what devices.sh kept, and fails when the guests did not do the same work."""

import re
import statistics
import sys

NAMES = ["seq-read", "rand-read", "seq-write", "rand-write", "console", "stream"]


def results(path):
    """Bytes a second and what was computed, by workload; and the disk's checksum."""
    text = open(path, encoding="latin-1").read()
    found = {}
    for name in NAMES:
        match = re.search(rf"={name}\s+(?:probe:[^\n]*\s+)*(\d+) (\w+)", text)
        if match is None:
            sys.exit(f"{path}: no {name} in:\n{text[-2000:]}")
        found[name] = (int(match[1]), match[2])
    return found, text.split()[-2]


def main():
    work, runs = sys.argv[1], int(sys.argv[2])
    ours = [results(f"{work}/ours.{run}") for run in range(1, runs + 1)]
    qemu = [results(f"{work}/qemu.{run}") for run in range(1, runs + 1)]
    if len({disk for _, disk in ours + qemu}) != 1:
        sys.exit("The disks differ")
    print("| workload | ours MB/s | QEMU MB/s | ours/QEMU |\n|---|---|---|---|")
    slow = []
    for name in NAMES:
        if len({found[name][1] for found, _ in ours + qemu}) != 1:
            sys.exit(f"{name}: the guests did not do the same work")
        one, other = (statistics.median(found[name][0] for found, _ in side) / 1e6 for side in (ours, qemu))
        print(f"| {name} | {one:.1f} | {other:.1f} | {one / other:.2f} |")
        if one < 1.5 * other:
            slow.append(name)
    if slow:
        sys.exit(f"Below 1.5 times QEMU: {', '.join(slow)}")


main()
