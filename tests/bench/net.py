#!/usr/bin/env python3
"""Compares TCP through the network device with QEMU's: the same Debian, one vCPU, QEMU with TCG, virtio-net-pci and its
user-mode network.

usage: tests/bench/net.py [PACKAGE] [RUNS]

PACKAGE is the data directory of the Debian guest package (`guest image build debian` makes it); GUEST names the binary,
target/release/guest unless given. In each run a fresh copy of the guest boots here, then under QEMU, and moves blocks to
and from a server on this host, which times them and checks every byte that it gets; the guest checks by count and sum.
"""
import os
import pathlib
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

BLOCK = 1 << 20
BLOCKS = int(os.environ.get("BLOCKS", 256))
ROUNDS = 3
HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
HOME = pathlib.Path(os.environ.get("XDG_DATA_HOME", pathlib.Path.home() / ".local/share"))


def pattern():
    words, state = [], 1
    for _ in range(BLOCK // 4):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        words.append(state)
    return struct.pack(f"<{len(words)}I", *words)


PATTERN = pattern()
SUM = sum(struct.unpack(f"<{BLOCK // 8}Q", PATTERN))


class Console:
    """A root shell on the guest's console."""

    def __init__(self, command, environment):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, bufsize=0
        )
        self.seen = b""

    def expect(self, text):
        while text not in self.seen:
            data = self.process.stdout.read(65536)
            if not data:
                sys.exit(f"the guest ended without {text!r}: {self.seen[-2000:]!r}")
            self.seen += data
        self.seen = self.seen.split(text, 1)[1]

    def type(self, line):
        self.process.stdin.write(line.encode() + b"\n")


def accept(listener):
    connection, _ = listener.accept()
    connection.settimeout(300)
    return connection


def from_guest(console, listener):
    """Bytes per second from the guest."""
    console.type(f"/tmp/stream send 10.0.2.2 {listener.getsockname()[1]} {BLOCKS}")
    connection = accept(listener)
    buffer, begin = bytearray(BLOCK), None
    for _ in range(BLOCKS):
        view, have = memoryview(buffer), 0
        while have < BLOCK:
            count = connection.recv_into(view[have:])
            begin = begin or time.monotonic()
            if count == 0:
                sys.exit("the guest sent too little")
            have += count
        if buffer != PATTERN:
            sys.exit("the guest's bytes came changed")
    if connection.recv(1):
        sys.exit("the guest sent too much")
    elapsed = time.monotonic() - begin
    connection.close()
    return BLOCKS * BLOCK / elapsed


def to_guest(console, listener):
    """Bytes per second to the guest."""
    console.type(f"/tmp/stream receive 10.0.2.2 {listener.getsockname()[1]}")
    connection = accept(listener)
    begin = time.monotonic()
    for _ in range(BLOCKS):
        connection.sendall(PATTERN)
    connection.shutdown(socket.SHUT_WR)
    answer = connection.makefile().readline().split()
    elapsed = time.monotonic() - begin
    if answer != [str(BLOCKS * BLOCK), str(BLOCKS * SUM % 2**64)]:
        sys.exit(f"the guest got something else: {answer}")
    connection.close()
    return BLOCKS * BLOCK / elapsed


def measure(console, program, results):
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(300)
    console.expect(b"automatic login")
    console.type("until ip -4 route | grep -q ^default; do sleep 0.2; done; echo up $((6 * 7))")
    console.expect(b"up 42")
    # The program comes over the network, too.
    console.type(f"cat </dev/tcp/10.0.2.2/{listener.getsockname()[1]} >/tmp/stream; chmod +x /tmp/stream; echo got $((6 * 7))")
    connection = accept(listener)
    connection.sendall(program)
    connection.close()
    console.expect(b"got 42")
    for _ in range(ROUNDS):
        for name, direction in (("guest to host", from_guest), ("host to guest", to_guest)):
            results.setdefault(name, []).append(direction(console, listener))
    console.type("poweroff -f")
    console.process.wait(timeout=120)


def copy(package, directory):
    directory.mkdir(parents=True)
    for name in ("vmlinuz", "initrd.img", "rootfs.img", "guest.cfg"):
        subprocess.run(["cp", "--sparse=always", package / name, directory / name], check=True)


def ours(work, package, program, results):
    copy(package, work / "data/guest/packages/debian_guest/data")
    (work / "run").mkdir()
    environment = dict(os.environ, XDG_DATA_HOME=str(work / "data"), XDG_RUNTIME_DIR=str(work / "run"))
    guest = os.environ.get("GUEST", os.environ.get("CARGO_TARGET_DIR", ROOT / "target") / pathlib.Path("release/guest"))
    command = [guest, "launch", "debian", "--cpus", "1", "--memory", str(1 << 30)]
    measure(Console(command, environment), program, results)


def qemu(work, package, program, results):
    copy(package, work)
    command = ["qemu-system-x86_64", "-accel", "tcg,thread=single", "-M", "q35", "-cpu", "max", "-m", "1024", "-smp", "1"]
    command += ["-display", "none", "-nodefaults", "-kernel", work / "vmlinuz", "-initrd", work / "initrd.img"]
    command += ["-append", "root=/dev/vda rw console=ttyS0 systemd.log_target=kmsg", "-serial", "null"]
    command += ["-drive", f"file={work}/rootfs.img,if=none,id=d,format=raw", "-device", "virtio-blk-pci,drive=d"]
    command += ["-device", "virtio-serial-pci", "-chardev", "stdio,id=c,signal=off", "-device", "virtconsole,chardev=c"]
    command += ["-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n", "-device", "virtio-rng-pci"]
    measure(Console(command, os.environ), program, results)


def main():
    package = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HOME / "guest/packages/debian_guest/data"
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    results = {"ours": {}, "QEMU": {}}
    work = pathlib.Path(tempfile.mkdtemp())
    try:
        subprocess.run(["gcc", "-O2", "-static", "-o", work / "stream", ROOT / "tests/guests/stream.c"], check=True)
        program = (work / "stream").read_bytes()
        for run in range(runs):
            for name, machine in (("ours", ours), ("QEMU", qemu)):
                print(f"run {run + 1} of {runs}: {name}", file=sys.stderr)
                directory = work / f"{name}{run}"
                directory.mkdir() if name == "ours" else None
                machine(directory, package, program, results[name])
                shutil.rmtree(directory)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"| TCP, {BLOCKS} MiB | ours MiB/s | QEMU MiB/s | ours/QEMU |\n|---|---|---|---|")
    for name in results["ours"]:
        mine, theirs = (statistics.median(results[machine][name]) / BLOCK for machine in ("ours", "QEMU"))
        print(f"| {name} | {mine:.0f} | {theirs:.0f} | {mine / theirs:.2f} |")


main()
