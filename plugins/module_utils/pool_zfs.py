# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A ZFS pool for containers, and a dataset in it.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

from typing import Any, Mapping

from ansible_collections.fleet.lxc.plugins.module_utils import mounts
from ansible_collections.fleet.lxc.plugins.module_utils.command import Runner
from ansible_collections.fleet.lxc.plugins.module_utils.disk import disk_of_zfs, is_block_device
from ansible_collections.fleet.lxc.plugins.module_utils.errors import BUSY, CONFLICT, INVALID, UNSUPPORTED, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.pool import Pool, Step, contents
from ansible_collections.fleet.lxc.plugins.module_utils.wanted import wanted_storage

PROPERTY = "fleet.lxc:host"  # of the pool


class Zfs(Pool):
    """A pool, and the dataset below which containers get theirs."""

    tools = ("zpool", "zfs")

    def __init__(self, runner: Runner, options: Mapping[str, Any]):
        wanted_storage({"zfs_dataset": options["dataset"]})
        self.dataset = options["dataset"]
        super().__init__(runner, options, self.dataset.split("/")[0])
        if self.dataset == self.name:
            raise FleetError(f"{self.dataset} is a pool", mend=f"Name a dataset in it, such as {self.dataset}/lxc.", kind=INVALID)

    def check_kernel(self, check_mode: bool) -> None:
        if not self._load("/dev/zfs", "zfs", check_mode):
            raise FleetError(
                "this kernel has no ZFS module",
                why="modprobe zfs fails",
                mend="On Ubuntu install linux-modules-extra; on Debian install zfs-dkms and linux-headers-amd64 from contrib, then run this again.",
                kind=UNSUPPORTED,
            )

    def _pools(self) -> list[str]:
        return self.runner.run(["zpool", "list", "-H", "-o", "name"]).stdout.split() if self.has_tools() else []

    def _vdevs(self) -> list[str]:
        """The devices and files of the pool. zpool cuts off a long path: that of our file is known by its label."""
        rows = self.runner.run(["zpool", "list", "-v", "-H", "-P", "-L", self.name]).stdout.splitlines()
        found = [name for name in (row.strip("\t").split("\t")[0] for row in rows) if name.startswith("/")]
        ours = self.disk and self.disk.file
        return [ours if ours and one != ours and self._is_cut_off(one, ours) else one for one in found]

    def _is_cut_off(self, name: str, path: str) -> bool:
        # A copy of the file has the same label, with the path of the original.
        if not path.startswith(name) or not self.disk.is_there():
            return False
        guid = self.runner.run(["zpool", "get", "-H", "-p", "-o", "value", "guid", self.name]).stdout.strip()
        label = [line.strip() for line in self.runner.run(["zdb", "-l", path], check=False).stdout.splitlines()]
        return {f"pool_guid: {guid}", f"path: '{path}'"} <= set(label)

    def _places(self) -> set[str]:
        # ZFS puts partitions on a whole disk.
        return {*self.disk.places(), *self.disk.partitions()}

    def _datasets(self) -> list[str]:
        return self.runner.run(["zfs", "list", "-H", "-t", "all", "-o", "name", "-r", self.name]).stdout.splitlines()

    def _contents(self, dataset: str) -> list[str]:
        if self.runner.run(["zfs", "get", "-H", "-o", "value", "type", dataset]).stdout.strip() != "filesystem":
            return [f"the volume {dataset}"]
        try:
            found = mounts.in_private_mounts(lambda: contents(dataset, "zfs"))
        except FleetError as error:
            raise FleetError(
                f"{self.name} is not removed, for what is in {dataset} cannot be seen",
                why=error.why,
                mend=f"If it is encrypted: zfs load-key {dataset}.",
                kind=BUSY,
            ) from error
        return [f"{name} in {dataset}" for name in found if name != ".zfs"]

    def plan(self) -> list[Step]:
        steps, made = [], self.name in self._pools()
        if not made:
            disk = self.needed_disk()
            place = disk.find("zfs_member", self.name)
            if place:
                return [Step(f"import the pool {self.name}", self.run("zpool", "import", "-d", place, self.name))]  # the run looks again
            disk.must_be_empty()
            steps += self.make_file()
            argv = ["zpool", "create", "-m", "none", "-O", f"{PROPERTY}=yes", self.name, disk.path]
            steps.append(Step(f"make the pool {self.name} on {disk.path}", self.run(*argv)))
        elif self.disk and not self._places() & set(self._vdevs()):
            raise FleetError(
                f"there is already a pool {self.name} on {', '.join(self._vdevs())}",
                why=f"not on {self.disk.path}",
                mend="Leave device and file out to use it as it is, or choose another name.",
                kind=CONFLICT,
            )
        if not made or self.dataset not in self._datasets():
            # Without these two a guest has no POSIX ACLs, and its other attributes are slow.
            options = ["-o", "mountpoint=none", "-o", "acltype=posixacl", "-o", "xattr=sa"]
            steps.append(Step(f"make the dataset {self.dataset}", self.run("zfs", "create", "-p", *options, self.dataset)))
        return steps

    def removal(self) -> list[Step]:
        if self.name not in self._pools():
            if self.disk and self.disk.find("zfs_member", self.name):
                raise self._unseen()
            return []
        if self.runner.run(["zfs", "get", "-H", "-o", "value", PROPERTY, self.name]).stdout.strip() != "yes":
            raise self._not_ours(f"Use zpool destroy {self.name}.")
        ancestors = ["/".join(self.dataset.split("/")[:depth]) for depth in range(1, self.dataset.count("/") + 2)]
        datasets = self._datasets()
        others = [name for name in datasets if name not in ancestors]
        if others:
            raise self._in_use(others)
        there = [one for name in ancestors if name in datasets for one in self._contents(name)]
        if there:
            raise self._in_use(there)
        vdevs = self._vdevs()
        self._check_place(vdevs, self._places() if self.disk else None)
        files = [vdev for vdev in vdevs if not is_block_device(vdev) and not (self.disk and vdev == self.disk.file)]
        if files:
            raise FleetError(
                f"{self.name} is not removed, for it lies on what is not named and is no device",
                why=", ".join(files),
                mend=f"Set file and size, or use zpool destroy {self.name} and remove that.",
                kind=CONFLICT,
            )
        disks = [disk for disk in map(disk_of_zfs, vdevs) if disk]
        return [Step(f"remove the pool {self.name}", self.run("zpool", "destroy", self.name)), *self.give_back(dict.fromkeys([*vdevs, *disks]))]
