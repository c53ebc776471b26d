#!/usr/bin/env python3
"""Starts a command and prints the milliseconds until its output ends in a shell prompt: prompt.py LOG COMMAND..."""
import os
import select
import signal
import subprocess
import sys
import time

LIMIT = 60


def main():
    start = time.monotonic()
    process = subprocess.Popen(
        sys.argv[2:],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    text = b""
    try:
        while not text.rstrip(b" ").endswith(b"\n#"):
            left = start + LIMIT - time.monotonic()
            ready = left > 0 and select.select([process.stdout], [], [], left)[0]
            part = os.read(process.stdout.fileno(), 65536) if ready else b""
            if not part:
                sys.exit(f"no prompt from {sys.argv[2]}: {text[-300:]!r}")
            text += part.replace(b"\r", b"").replace(b"\x1b[6n", b"")
        print((time.monotonic() - start) * 1e3)
    finally:
        # The command may be a shell with the machine as its child.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with open(sys.argv[1], "wb") as log:
            log.write(text)


main()
