# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a clone costs on each backing store: the figures of docs/storage/README.md, as a Markdown table.

    python tests/benchmark/stores.py [--archive ROOTFS.tar] [--clones N] [--runs N] [STORE ...]

Of several runs the fastest counts. Each store gets a blank disk of its own: one of FLEET_LXC_DISKS, or a sparse file. Stores that
this kernel lacks are left out. As root, with ansible-core and pytest installed, as in the environment that ./test makes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part) for part in ("tests/integration", "tests", ".collections")]

from conftest import Fleet, sh  # first, for it sets up Ansible's way to find collections

from ansible_collections.fleet.lxc.plugins.module_utils import mounts
from ansible_collections.fleet.lxc.plugins.module_utils.command import Runner
from ansible_collections.fleet.lxc.plugins.module_utils.storage.registry import Registry

BIG = 64 << 20
NETWORK = {"lxc.net.0.type": "empty", "lxc.net.0.link": None, "lxc.net.0.flags": None}


@dataclass(frozen=True)
class Store:
    """A store, on a filesystem or in a VG or pool."""

    on: str
    clone: dict
    base: dict = field(default_factory=dict)
    storage: dict = field(default_factory=dict)


STORES = {
    "dir, rsync": Store("ext4", {"method": "copy"}),
    "dir, reflink": Store("xfs", {"method": "copy"}),
    "overlay": Store("ext4", {"method": "snapshot"}),
    "btrfs": Store("btrfs", {"method": "snapshot"}, {"backing_store": "btrfs"}),
    "loop, file copy": Store("ext4", {"method": "copy"}, {"backing_store": "loop"}, {"size": "1G"}),
    "loop, reflink": Store("xfs", {"method": "copy"}, {"backing_store": "loop"}, {"size": "1G"}),
    "lvm thick": Store("vg", {"method": "snapshot"}, {"backing_store": "lvm"}, {"vg": "", "size": "1G"}),
    "lvm thin": Store("vg", {"method": "snapshot"}, {"backing_store": "lvm"}, {"vg": "", "thinpool": "pool", "size": "1G"}),
    "zfs": Store("zpool", {"method": "snapshot"}, {"backing_store": "zfs"}, {"zfs_dataset": ""}),
}


class Place:
    """A filesystem, VG or pool of our own: how much of it is in use."""

    def __init__(self, kind, directory, device, thin):
        self.kind, self.directory, self.device, self.thin = kind, directory, device, thin
        self.name = f"fleet{uuid.uuid4().hex[:6]}"
        if kind == "vg":
            sh(["vgcreate", "-q", self.name, device])
            if thin:
                sh(["lvcreate", "-q", "-y", "--type", "thin-pool", "-l", "90%FREE", "-n", "pool", self.name])
        elif kind == "zpool":
            sh(["zpool", "create", "-m", "none", self.name, device])
            sh(["zfs", "create", "-o", "acltype=posixacl", "-o", "xattr=sa", f"{self.name}/lxc"])
        else:
            sh([f"mkfs.{kind}", "-q", device])
            sh(["mount", device, str(directory)])

    def value(self):
        return f"{self.name}/lxc" if self.kind == "zpool" else self.name

    def used(self):
        """Bytes; of a thick VG what its volumes occupy, written or not."""
        os.sync()
        if self.thin:
            size, percent = sh(["lvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "lv_size,data_percent", f"{self.name}/pool"]).split()
            return int(int(size) * float(percent) / 100)
        if self.kind == "vg":
            return -int(sh(["vgs", "--noheadings", "--units", "b", "--nosuffix", "-o", "vg_free", self.name]))
        if self.kind == "zpool":
            sh(["zpool", "sync", self.name])
            return int(sh(["zfs", "get", "-H", "-p", "-o", "value", "used", self.name]))
        if self.kind == "btrfs":
            sh(["btrfs", "filesystem", "sync", str(self.directory)])
        stat = os.statvfs(self.directory)
        return (stat.f_blocks - stat.f_bfree) * stat.f_frsize

    def remove(self):
        if self.kind == "vg":
            sh(["vgremove", "-q", "-f", "-y", self.name])
            sh(["pvremove", "-q", self.device])
        elif self.kind == "zpool":
            sh(["zpool", "destroy", self.name])
        else:
            sh(["umount", str(self.directory)])


@contextlib.contextmanager
def disk(directory):
    """A blank block device."""
    given = os.environ.get("FLEET_LXC_DISKS", "").split()
    if given:
        sh(["wipefs", "--all", given[0]])
        yield given[0]
        return
    with open(directory / "disk", "wb") as file:
        file.truncate(20 << 30)
    device = sh(["losetup", "--find", "--show", str(directory / "disk")]).strip()
    try:
        yield device
    finally:
        sh(["losetup", "--detach", device])


def timed(work):
    os.sync()
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


def inside(fleet, name, work):
    rootfs = fleet.rootfs(name)
    driver = Registry(Runner()).driver(rootfs)

    def run():
        with driver.rootfs_view(rootfs, fleet.path(name, "rootfs"), True) as path:
            work(path)

    mounts.in_private_mounts(run)


def write(path):
    with open(f"{path}/big", "wb") as file:
        for _block in range(BIG >> 20):
            file.write(os.urandom(1 << 20))


def touch(path):
    with open(f"{path}/big", "r+b") as file:
        file.write(b"x")


def measure(store, archive, count):
    """Milliseconds and MiB: (make, remove, disk per clone, disk for the first byte changed in a file of 64 MiB)."""
    with tempfile.TemporaryDirectory(prefix="stores-", dir="/var/tmp") as temporary, disk(Path(temporary)) as device:
        point = Path(temporary, "point")
        point.mkdir()
        place = Place(store.on, point, device, "thinpool" in store.storage)
        lxcpath = Path(temporary if store.on in ("vg", "zpool") else point, "lxc")
        lxcpath.mkdir()
        fleet, names = Fleet(lxcpath), f"n[1:{count}]"
        try:
            source = {"rootfs_archive": archive} if archive else {"template": "busybox"}
            storage = {key: value or place.value() for key, value in store.storage.items()}
            fleet.base(name="golden", config=NETWORK, **source, **store.base, **({"storage": storage} if storage else {}))
            inside(fleet, "golden", write)
            fleet.base(name="golden", config=NETWORK, state="sealed")
            fleet.clone(source="golden", name="warm", **store.clone)
            before = place.used()
            make = timed(lambda: fleet.clone(source="golden", name=names, **store.clone))
            each = (place.used() - before) / count
            before = place.used()
            inside(fleet, "n1", touch)
            first = place.used() - before
            remove = timed(lambda: fleet.clone(name=names, state="absent"))
            fleet.clone(name="warm", state="absent")
            fleet.base(name="golden", state="absent")
        finally:
            place.remove()
    return make / count * 1e3, remove / count * 1e3, each / 2**20, first / 2**20


def available(store):
    needs = {"vg": "/dev/mapper/control", "zpool": "/dev/zfs"}.get(store.on)
    return needs is None or os.path.exists(needs)


def figure(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="*", metavar="STORE", help=", ".join(STORES))
    parser.add_argument("--archive", help="a tar archive of the base's root filesystem; default: busybox")
    parser.add_argument("--clones", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    what = f"{options.clones} clones in one call of {os.path.basename(options.archive or 'busybox')}, best of {options.runs}"
    print(f"Linux {platform.release()}, {os.cpu_count()} CPUs, {what}\n")
    print("| store | ms to make | ms to remove | MiB when made | MiB for the first byte changed in a file of 64 MiB |")
    print("|---|---|---|---|---|")
    for name in options.stores or STORES:
        if available(STORES[name]):
            runs = [measure(STORES[name], options.archive, options.clones) for _run in range(options.runs)]
            print(f"| {name} | " + " | ".join(figure(min(values)) for values in zip(*runs)) + " |", flush=True)
    print()


if __name__ == "__main__":
    main()
