# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A machine with device-mapper and ZFS for tests, on any machine: Debian's Linux in user mode, an ordinary program.

    lab build                                           make what is missing of kernel and image, in the cache directory
    lab run [--disk SIZE ...] [--timeout S] -- COMMAND  boot, run COMMAND in the checkout as root, print its output, exit as it did
    lab shell                                           boot, and give a shell

The guest is thrown away after each run. It sees the checkout, read-only, and blank disks, named in FLEET_LXC_DISKS. What it
writes to /srv/exchange lands in the directory of --exchange, which several may have. Variables FLEET_LXC_… are its, too.
A time limit ends it with 124.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fleet-lxc"

SUITE, BACKPORTS, PYTHON = "bookworm", "bookworm-backports", "3.11"  # where user mode is twice as fast as in 6.1
TO_COMPILE = "bc bison flex gcc kmod libc6-dev make perl xz-utils"
IN_THE_ROOT = """
    acl attr bash btrfs-progs busybox-static ca-certificates dnsmasq-base e2fsprogs git iproute2 iptables kmod lvm2 lxc lxc-templates procps
    python3 rsync strace thin-provisioning-tools udev uidmap xfsprogs zfsutils-linux
"""
FROM_PYPI = "ansible-core==2.19.* pytest>=8"
IMAGE_SIZE, DISKS, MEMORY, TIMEOUT = "6G", ["6G", "4G"], "2G", 1200


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("build")
    for name in ("run", "shell"):
        action = actions.add_parser(name)
        action.add_argument("--disk", action="append", metavar="SIZE", help=f"a blank disk; default: {' and '.join(DISKS)}")
        action.add_argument("--memory", default=MEMORY)
        if name == "run":
            action.add_argument("--timeout", type=float, default=TIMEOUT, metavar="S")
            action.add_argument("--exchange", type=Path, metavar="DIRECTORY", help="where /srv/exchange is to be")
            action.add_argument("command", nargs="+")
    options = parser.parse_args()
    # So that what must be done at the end is done.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    if platform.machine() != "x86_64":
        sys.exit(f"Linux runs in user mode on x86_64 only, and this is {platform.machine()}")
    lab = build()
    if options.action != "build":
        with contextlib.ExitStack() as stack:
            return Guest(lab, options, stack).run()
    return 0


# Building


def build():
    """The directory of kernel and image; made when it is not there."""
    CACHE.mkdir(parents=True, exist_ok=True)
    kernel = CACHE / f"lab-kernel-{key(SUITE, BACKPORTS, TO_COMPILE, HERE / 'build-kernel', HERE / 'kernel.config')}.tar.gz"
    lab = CACHE / f"lab-{key(kernel.name, SUITE, IN_THE_ROOT, FROM_PYPI, HERE / 'build-image')}"
    with open(CACHE / "lab.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kernel.exists():
            print("compiling the lab's kernel and ZFS: about 8 minutes, once", flush=True)
            debootstrap(TO_COMPILE, "/dev/null", HERE / "build-kernel", kernel, BACKPORTS)
        if not lab.exists():
            print("making the lab's image", flush=True)
            with tempfile.TemporaryDirectory(dir=CACHE, prefix="lab-part-") as part:
                root = Path(part, "root")
                debootstrap(IN_THE_ROOT, root, HERE / "build-image", kernel, part, PYTHON, FROM_PYPI)
                subprocess.run(["truncate", "-s", IMAGE_SIZE, f"{part}/root.ext4"], check=True)
                subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), "-L", "lab", f"{part}/root.ext4"], check=True)
                shutil.rmtree(root)
                os.rename(part, lab)
                os.mkdir(part)
    return lab


def key(*inputs):
    """A name for what is made of these strings and files."""
    digest = hashlib.sha256()
    for one in inputs:
        digest.update(one.read_bytes() if isinstance(one, Path) else one.encode())
    return digest.hexdigest()[:12]


def debootstrap(packages, root, script, *arguments):
    """A Debian root with packages in it; a script is called with it and further arguments."""
    known = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Label: Debian", "Component: main"], capture_output=True, text=True, check=True
    ).stdout.split()
    mirror = min(set(known), default="http://deb.debian.org/debian")
    sources = [f"deb {mirror} {suite} main contrib" for suite in (SUITE, BACKPORTS)]
    hook = shlex.join([str(script)]) + ' "$1" ' + shlex.join(str(one) for one in arguments)
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages.split())}", f"--customize-hook={hook}"]
    subprocess.run([*command, SUITE, str(root), *sources], check=True)


# Running


class Guest:
    """One boot."""

    def __init__(self, lab, options, stack):
        self.lab, self.options, self.stack = lab, options, stack
        self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lab-", dir="/var/tmp")))
        self.shell = options.action == "shell"
        self.exchange = self.directory / "exchange" if self.shell or not options.exchange else options.exchange.resolve()
        self.control = self.directory / "control"
        self.python = lab / "python"  # what Python compiles there is kept for the next
        self.shared = {"CHECKOUT": CHECKOUT, "CONTROL": self.control, "EXCHANGE": self.exchange, "PYTHON": self.python}
        for directory in self.shared.values():
            directory.mkdir(exist_ok=True, parents=True)

    def run(self):
        if self.shell:
            (self.control / "term").write_text(os.environ.get("TERM", "dumb"))
            with terminal_as_it_was():
                return self.start(self.linux("fd:0,fd:1"), keep=True).wait()
        command = self.options.command
        settings = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in os.environ.items() if name.startswith("FLEET_LXC_"))
        (self.control / "command").write_text(settings + (command[0] if len(command) == 1 else shlex.join(command)))
        end = time.monotonic() + self.options.timeout
        with open(self.control / "console.log", "w") as console:
            guest = self.start(self.linux("null,fd:1"), stdout=console, stderr=console)
        follow = Follower(self.control / "output")
        while guest.poll() is None:
            if time.monotonic() > end:
                follow.print()
                print(f"the lab was ended after {self.options.timeout:g} s", file=sys.stderr)
                return 124
            time.sleep(0.1)
            follow.print()
        follow.print()
        status = self.control / "status"
        if not status.exists():
            print(f"the lab ended without a status; its console said:\n{tail(self.control / 'console.log')}", file=sys.stderr)
            return 125
        return int(status.read_text())

    def linux(self, console):
        """The command that is the machine. Its memory is a file, which it makes in TMPDIR, and which must be one in memory."""
        disks = []
        for number, size in enumerate(self.options.disk or DISKS):
            subprocess.run(["truncate", "-s", size, str(self.directory / f"disk{number}")], check=True)
            disks.append(f"ubd{number + 1}={self.directory}/disk{number}")
        memory = self.directory / "memory"
        memory.mkdir()
        # Each process inside is one outside, and none is to outlive the machine.
        alone = ["unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"]
        return [
            *[*alone, "sh", "-euc", f"mount -t tmpfs -o size=100% tmpfs {shlex.quote(str(memory))}; \"$@\"; true", "sh"],
            *["env", f"TMPDIR={memory}", f"HOME={self.directory}"],
            *[f"{self.lab}/linux", f"mem={self.options.memory}", f"ubd0={self.directory}/root.cow,{self.lab}/root.ext4", *disks],
            *["root=/dev/ubda", "rw", "rootfstype=ext4", "quiet", "loglevel=4", "con=null", f"con0={console}"],
            *[f"{name}={path}" for name, path in self.shared.items()],
            *["init=/bin/sh", "--", "-c", '"mount -t hostfs -o $CHECKOUT,ro checkout /srv/checkout; exec /srv/checkout/tests/storage_lab/init"'],
        ]

    def start(self, command, keep=False, **options):
        """A process that ends with this one, whatever ends this one."""
        if not keep:
            options.setdefault("stdin", subprocess.DEVNULL)
        process = subprocess.Popen(command, preexec_fn=die_with_parent, **options)
        self.stack.callback(end, process)
        return process


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def end(process):
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()


@contextlib.contextmanager
def terminal_as_it_was():
    """A machine's console is raw."""
    before = termios.tcgetattr(0) if os.isatty(0) else None
    try:
        yield
    finally:
        if before:
            termios.tcsetattr(0, termios.TCSADRAIN, before)


class Follower:
    """Prints what is added to a file."""

    def __init__(self, path):
        self.path, self.position = path, 0

    def print(self):
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb") as file:
            file.seek(self.position)
            sys.stdout.buffer.write(file.read())
            sys.stdout.flush()
            self.position = file.tell()


def tail(path, lines=60):
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else "(nothing)"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
