#!/usr/bin/env python3
"""Packs one static executable as /init, with a console node, into a newc initramfs: initramfs.py INIT OUT."""
import sys


def entry(name, mode, data=b"", rdev=(0, 0)):
    fields = [0, mode, 0, 0, 1, 0, len(data), 0, 0, rdev[0], rdev[1], len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08X" % f for f in fields) + name.encode() + b"\0"
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


with open(sys.argv[1], "rb") as file:
    init = file.read()
image = entry("dev", 0o040755) + entry("dev/console", 0o020600, rdev=(5, 1)) + entry("init", 0o100755, init)
with open(sys.argv[2], "wb") as file:
    file.write(image + entry("TRAILER!!!", 0))
