# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A machine with device-mapper and ZFS for tests, on any machine: QEMU in software emulation with Debian's cloud kernel.

    lab build                                           make what is missing of kernel and image, in the cache directory
    lab run [--disk SIZE ...] [--timeout S] -- COMMAND  boot, run COMMAND in the checkout as root, print its output, exit as it did
    lab shell                                           boot, and give a shell

The guest is thrown away after each run. It sees the checkout, read-only, and blank disks, named in FLEET_LXC_DISKS. What it
writes to /srv/exchange lands in the directory of --exchange, which several may have. A time limit ends it with 124.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fleet-lxc"

SUITE, PYTHON = "bookworm", "3.11"
TO_COMPILE = "gcc make libc6-dev binutils kmod linux-headers-cloud-amd64"
IN_THE_ROOT = """
    acl attr bash btrfs-progs busybox-static ca-certificates dnsmasq-base e2fsprogs git iproute2 iptables kmod lvm2 lxc lxc-templates procps
    python3 rsync strace thin-provisioning-tools udev uidmap xfsprogs zfsutils-linux
"""
FROM_PYPI = "ansible-core==2.19.* pytest>=8"
IMAGE_SIZE, DISKS, MEMORY, TIMEOUT = "6G", ["6G", "4G"], "2G", 1200
# What of a processor costs emulation most. A second one costs a fifth more work for the same tests, and two guests use two cores anyway.
CPU = "max,la57=off,avx=off,avx2=off,smap=off,smep=off"
VIRTIOFSD = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"]  # Debian 12, Debian 13


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
    lab = build()
    if options.action != "build":
        with contextlib.ExitStack() as stack:
            return Guest(lab, options, stack).run()
    return 0


# Building


def build():
    """The directory of kernel, initramfs and image; made when it is not there."""
    CACHE.mkdir(parents=True, exist_ok=True)
    kernel = CACHE / f"lab-kernel-{key(SUITE, TO_COMPILE, HERE / 'build-kernel')}.tar.gz"
    lab = CACHE / f"lab-{key(kernel.name, SUITE, IN_THE_ROOT, FROM_PYPI, HERE / 'build-image', HERE / 'initramfs')}"
    with open(CACHE / "lab.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kernel.exists():
            print("compiling ZFS for the lab's kernel: 4 to 9 minutes, once", flush=True)
            debootstrap(TO_COMPILE, "/dev/null", HERE / "build-kernel", kernel)
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
    mirror = sorted(set(known))[:1]  # without one, mmdebstrap knows where Debian is
    hook = shlex.join([str(script)]) + ' "$1" ' + shlex.join(str(one) for one in arguments)
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages.split())}", f"--customize-hook={hook}"]
    subprocess.run([*command, "--components=main,contrib", SUITE, str(root), *mirror], check=True)


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
        for directory in (self.exchange, self.control, self.python):
            directory.mkdir(exist_ok=True, parents=True)

    def run(self):
        if self.shell:
            (self.control / "term").write_text(os.environ.get("TERM", "dumb"))
            return self.start(self.qemu("mon:stdio"), keep=True).wait()
        command = self.options.command
        (self.control / "command").write_text(command[0] if len(command) == 1 else shlex.join(command))
        end = time.monotonic() + self.options.timeout
        guest = self.start(self.qemu(f"file:{self.control}/console.log"))
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

    def qemu(self, serial):
        drives = [f"file={self.lab}/root.ext4,format=raw,if=virtio,snapshot=on"]
        for number, size in enumerate(self.options.disk or DISKS):
            image = self.directory / f"disk{number}"
            subprocess.run(["truncate", "-s", size, str(image)], check=True)
            drives.append(f"file={image},format=raw,if=virtio,cache=unsafe,discard=unmap")
        kernel = "console=ttyS0 quiet loglevel=4 panic=-1 apparmor=0 mitigations=off no_timer_check"  # the timer is late on a busy host
        return [
            *["qemu-system-x86_64", "-M", "pc,memory-backend=memory", "-accel", "tcg,thread=single", "-cpu", CPU, "-smp", "1", "-m", self.options.memory],
            *["-object", f"memory-backend-memfd,id=memory,size={self.options.memory},share=on"],  # shared with virtiofsd
            *["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", serial],
            *["-kernel", f"{self.lab}/vmlinuz", "-initrd", f"{self.lab}/initramfs", "-append", kernel],
            *[word for drive in drives for word in ("-drive", drive)],
            *self.share("checkout", CHECKOUT),
            *self.share("control", self.control),
            *self.share("exchange", self.exchange),
            *self.share("python", self.python),
        ]

    def share(self, tag, directory):
        """QEMU's arguments for a directory of this machine."""
        socket = self.directory / f"{tag}.socket"
        daemon = next((path for path in VIRTIOFSD if os.path.exists(path)), None)
        if not daemon:
            sys.exit("virtiofsd is missing: apt-get install virtiofsd, or qemu-system-common on Debian 12")
        with open(self.directory / f"{tag}.log", "w") as log:
            self.start([daemon, f"--socket-path={socket}", "-o", f"source={directory}", "-o", "log_level=warn"], stdout=log, stderr=log)
        for _attempt in range(100):
            if socket.exists():
                break
            time.sleep(0.05)
        else:
            sys.exit(f"virtiofsd does not start: {(self.directory / f'{tag}.log').read_text()}")
        return ["-chardev", f"socket,id={tag},path={socket}", "-device", f"vhost-user-fs-pci,chardev={tag},tag={tag}"]

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


def tail(path, lines=20):
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else "(nothing)"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
