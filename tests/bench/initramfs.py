#!/usr/bin/env python3
"""Packs a directory, with a console node, into a newc initramfs: initramfs.py DIRECTORY OUT."""
import os
import sys


def entry(name, mode, data=b"", rdev=(0, 0)):
    fields = [0, mode, 0, 0, 1, 0, len(data), 0, 0, rdev[0], rdev[1], len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08X" % f for f in fields) + name.encode() + b"\0"
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


def main():
    root, out = sys.argv[1:]
    image = [entry("dev", 0o040755), entry("dev/console", 0o020600, rdev=(5, 1))]
    for directory, directories, files in os.walk(root):
        directories.sort()
        for name in directories:
            image.append(entry(os.path.relpath(os.path.join(directory, name), root), 0o040755))
        for name in sorted(files):
            path = os.path.join(directory, name)
            mode = 0o100755 if os.access(path, os.X_OK) else 0o100644
            with open(path, "rb") as file:
                image.append(entry(os.path.relpath(path, root), mode, file.read()))
    image.append(entry("TRAILER!!!", 0))
    with open(out, "wb") as file:
        file.write(b"".join(image))


main()
