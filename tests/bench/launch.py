"""The measurements of launch.sh: GUEST PACKAGE RUNS."""

import json
import os
import re
import selectors
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

MEMORY = 1 << 30
PROMPT = b"login:"
PATIENCE = 600
LIMITS = {"to the prompt": 0.5, "around the guest": 150, "guest list": 30, "memory": 150}


def copy_package(package, to):
    """A copy with holes: the guest writes to its disk."""
    data = os.path.join(to, "data")
    os.makedirs(data)
    for name in os.listdir(os.path.join(package, "data")):
        source = os.path.join(package, "data", name)
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", source, data], check=True)
    return data


def config_of(data):
    with open(os.path.join(data, "guest.cfg")) as file:
        return json.load(file)


def seconds_to_prompt(begin, outputs):
    """Reads everything that the guest says until one of its terminals asks for a login."""
    selector = selectors.DefaultSelector()
    seen = {}
    for output in outputs:
        os.set_blocking(output, False)
        selector.register(output, selectors.EVENT_READ)
        seen[output] = b""
    while time.monotonic() - begin < PATIENCE:
        for key, _ in selector.select(timeout=1):
            more = os.read(key.fd, 65536)
            if not more:
                raise SystemExit("the guest ended without a prompt: " + seen[key.fd].decode(errors="replace")[-2000:])
            seen[key.fd] += more
            if PROMPT in seen[key.fd]:
                return time.monotonic() - begin
    raise SystemExit("no prompt in time")


class User:
    """A user of the program with a home of their own."""

    def __init__(self, program, package):
        self.program = program
        self.home = tempfile.mkdtemp(prefix="launch-", dir=os.environ.get("TMPDIR"))
        self.data = copy_package(package, os.path.join(self.home, "data/guest/packages/debian_guest"))
        os.mkdir(os.path.join(self.home, "run"))
        self.environment = dict(
            os.environ,
            XDG_DATA_HOME=os.path.join(self.home, "data"),
            XDG_RUNTIME_DIR=os.path.join(self.home, "run"),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid, _ in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        shutil.rmtree(self.home, ignore_errors=True)

    def start(self, *words, **options):
        return subprocess.Popen([self.program, *words], env=self.environment, **options)

    def run(self, *words):
        begin = time.monotonic()
        subprocess.run(
            [self.program, *words], env=self.environment, check=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        return time.monotonic() - begin

    def launch(self, *more):
        return ["launch", "debian", "--cpus", "1", "--memory", str(MEMORY), *more]

    def processes(self):
        """All that run for this user, as ids and names."""
        marker = ("XDG_RUNTIME_DIR=" + os.path.join(self.home, "run")).encode()
        found, parents, names = set(), {}, {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    ours = marker in file.read().split(b"\0")
                with open(f"/proc/{pid}/stat") as file:
                    parents[int(pid)] = int(file.read().rsplit(")", 1)[1].split()[1])
                with open(f"/proc/{pid}/cmdline") as file:
                    names[int(pid)] = file.read().replace("\0", " ").strip()
            except OSError:
                continue
            if ours:
                found.add(int(pid))
        # Components have an environment of their own, and are found by whose children they are.
        while True:
            more = {pid for pid, parent in parents.items() if parent in found} - found
            if not more:
                return [(pid, names[pid]) for pid in sorted(found)]
            found |= more


def prompt_here(program, package):
    with User(program, package) as user:
        begin = time.monotonic()
        pipe = subprocess.PIPE
        child = user.start(*user.launch(), stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        return seconds_to_prompt(begin, [child.stdout.fileno()])


def prompt_qemu(package):
    """The machine that QEMU's documentation recommends, with the devices that ours has."""
    with tempfile.TemporaryDirectory(prefix="launch-", dir=os.environ.get("TMPDIR")) as home:
        data = copy_package(package, home)
        config = config_of(data)
        path = lambda name: os.path.join(home, name)
        disk = config["block"][0].split(",")[0]
        serial, serial_end = os.pipe()
        console, console_end = os.pipe()
        begin = time.monotonic()
        child = subprocess.Popen(
            [
                "qemu-system-x86_64", "-accel", "tcg", "-M", "q35", "-cpu", "max", "-m", str(MEMORY >> 20), "-smp", "1",
                "-display", "none", "-nodefaults", "-no-reboot",
                "-kernel", path(config["linux"]), "-initrd", path(config["ramdisk"]), "-append", config["cmdline"],
                "-drive", f"file={path(disk)},if=none,id=disk,format=raw", "-device", "virtio-blk-pci,drive=disk",
                "-serial", f"file:/dev/fd/{serial_end}",
                "-device", "virtio-serial-pci", "-chardev", f"file,id=console,path=/dev/fd/{console_end}",
                "-device", "virtconsole,chardev=console",
                "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net",
                "-device", "virtio-rng-pci", "-device", "virtio-balloon-pci",
            ],
            pass_fds=[serial_end, console_end], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )
        os.close(serial_end)
        os.close(console_end)
        try:
            return seconds_to_prompt(begin, [serial, console])
        finally:
            child.kill()
            child.wait()
            os.close(serial)
            os.close(console)


def around(program, package):
    """Everything until the guest runs by itself: `launch --detach`, with no component manager there, in milliseconds."""
    with User(program, package) as user:
        return user.run(*user.launch("--detach")) * 1000


def memory_of(processes):
    """Proportional set size in MiB without the guest's memory, in all and by process."""
    sizes = []
    for pid, name in processes:
        kib = 0
        guest = False
        with open(f"/proc/{pid}/smaps") as file:
            for line in file:
                if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                    # Every process maps it whole, and it is the only mapping of its size that is a file without a name.
                    begin, end = (int(part, 16) for part in line.split()[0].split("-"))
                    inode = int(line.split()[4])
                    guest = inode != 0 and "(deleted)" in line and guest_memory(inode, pid)
                elif line.startswith("Pss:") and not guest:
                    kib += int(line.split()[1])
        sizes.append((name.split("/")[-1] or name, kib / 1024))
    return sum(size for _, size in sizes), sizes


def guest_memory(inode, pid, known={}):
    """Whether a file is the guest's memory: it has its size, or more for the hole below 4 GiB."""
    if inode not in known:
        known[inode] = False
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                stat = os.stat(f"/proc/{pid}/fd/{fd}")
            except OSError:
                continue
            if stat.st_ino == inode:
                known[inode] = stat.st_size >= MEMORY
    return known[inode]


def running(program, package):
    """`guest list` in milliseconds, and memory, with the guest at its prompt."""
    with User(program, package) as user:
        pipe = subprocess.PIPE
        child = user.start(*user.launch(), stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        seconds_to_prompt(time.monotonic(), [child.stdout.fileno()])
        times = [user.run("list") * 1000 for _ in range(21)]
        return statistics.median(times), memory_of(user.processes())


def main():
    program, package, runs = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2]), int(sys.argv[3])
    here, qemu, overhead = [], [], []
    for _ in range(runs):
        # In turn, so that what else the machine does hits both.
        here.append(prompt_here(program, package))
        qemu.append(prompt_qemu(package))
        overhead.append(around(program, package))
    list_time, (memory, by_process) = running(program, package)
    ratio = statistics.median(here) / statistics.median(qemu)
    rows = [
        ("to the login prompt, s", f"{statistics.median(here):.2f}", f"QEMU {statistics.median(qemu):.2f}", ""),
        ("to the login prompt, of QEMU's time", f"{ratio:.2f}", f"{LIMITS['to the prompt']}", ratio > LIMITS["to the prompt"]),
        ("around the guest (launch --detach, cold), ms", f"{statistics.median(overhead):.0f}", f"{LIMITS['around the guest']}",
         statistics.median(overhead) > LIMITS["around the guest"]),
        ("guest list, ms", f"{list_time:.1f}", f"{LIMITS['guest list']}", list_time > LIMITS["guest list"]),
        ("memory beyond the guest's, MiB", f"{memory:.1f}", f"{LIMITS['memory']}", memory > LIMITS["memory"]),
    ]
    print(f"| medians of {runs}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs | measured | limit |")
    print("|---|---|---|")
    for name, measured, limit, _ in rows:
        print(f"| {name} | {measured} | {limit} |")
    print("\nMemory by process, MiB: " + ", ".join(f"{name} {size:.1f}" for name, size in by_process))
    print(f"To the prompt, s: here {[round(t, 2) for t in here]}, QEMU {[round(t, 2) for t in qemu]}; "
          f"around, ms: {[round(t) for t in overhead]}")
    sys.exit(any(exceeded is True for *_, exceeded in rows))


main()
