# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A btrfs filesystem for containers, and its line in /etc/fstab.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import glob
import os
import re
import uuid
from typing import Any, Mapping

from ansible_collections.fleet.lxc.plugins.module_utils import mounts
from ansible_collections.fleet.lxc.plugins.module_utils.command import Runner
from ansible_collections.fleet.lxc.plugins.module_utils.disk import goes_when_unmounted, loop_devices, signatures
from ansible_collections.fleet.lxc.plugins.module_utils.errors import CONFLICT, INVALID, UNSUPPORTED, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.pool import Pool, Step, contents
from ansible_collections.fleet.lxc.plugins.module_utils.records import write_atomically

LABEL = "fleet.lxc"  # of the filesystem
FSTAB, MARK = "/etc/fstab", "x-fleet.lxc"


class Btrfs(Pool):
    """A btrfs filesystem and its line in /etc/fstab."""

    tools = ("mkfs.btrfs",)

    def __init__(self, runner: Runner, options: Mapping[str, Any]):
        super().__init__(runner, options, os.path.normpath(options["mountpoint"]))
        if not self.name.startswith("/") or self.name == "/" or re.search(r"\s", self.name):
            raise FleetError(f"the mountpoint {self.name} is no absolute path without spaces", kind=INVALID)

    def check_kernel(self, check_mode: bool) -> None:
        if not self._load("/sys/fs/btrfs", "btrfs", check_mode):
            raise FleetError("this kernel has no btrfs", mend="Use another kernel, or another kind of storage.", kind=UNSUPPORTED)

    def _mounted(self) -> mounts.Mount | None:
        return next((mount for mount in reversed(mounts.table()) if mount.point == os.path.realpath(self.name)), None)

    def plan(self) -> list[Step]:
        mount = self._mounted()
        if mount:
            self._check_mount(mount)
            found = self.disk.holds("btrfs") if self.disk else None
            return self._fstab_steps(found.uuid) if found and found.label == LABEL else []
        disk, steps = self.needed_disk(), []
        if os.path.isdir(self.name) and os.listdir(self.name):
            raise FleetError(
                f"nothing is mounted on {self.name}, for it is not empty",
                why=f"{sorted(os.listdir(self.name))[0]} would be hidden",
                mend="Choose another mountpoint, or move what is in it away.",
                kind=CONFLICT,
            )
        if not os.path.isdir(self.name):
            steps.append(Step(f"make the directory {self.name}", lambda: os.makedirs(self.name, 0o755)))
        found = disk.holds("btrfs")
        identifier = found.uuid if found else str(uuid.uuid4())
        if not found or found.label != LABEL:
            disk.must_be_empty()
            steps += self.make_file()
            steps.append(Step(f"make a btrfs filesystem on {disk.path}", self.run("mkfs.btrfs", "-q", "-L", LABEL, "-U", identifier, disk.path)))
        steps += self._fstab_steps(identifier)
        return [*steps, Step(f"mount {self.name}", self.run("mount", self.name))]

    def _check_mount(self, mount: mounts.Mount) -> None:
        if mount.fstype != "btrfs" or self.disk and not self.disk.places() & set(self._devices(mount)):
            raise FleetError(
                f"{mount.source} ({mount.fstype}) is mounted on {self.name}",
                why=f"not {self.disk.path}" if self.disk else "that is no btrfs",
                mend="Choose another mountpoint, or unmount that.",
                kind=CONFLICT,
            )

    @staticmethod
    def _devices(mount: mounts.Mount) -> list[str]:
        """The devices of the mounted filesystem, as the kernel knows them: a copy of one bears the same UUID."""
        source = os.path.realpath(mount.source)
        for directory in glob.glob("/sys/fs/btrfs/*/devices"):
            found = sorted(f"/dev/{name.replace('!', '/')}" for name in os.listdir(directory))
            if source in found:
                return found
        return [source]

    # The boot mounts it again by a line that bears our mark. Another's line for the same mountpoint is left as it is.

    def _fstab(self) -> list[str]:
        try:
            with open(FSTAB, encoding="utf-8", errors="surrogateescape") as file:
                return file.read().splitlines()
        except FileNotFoundError:
            return []

    def _lines_of_mountpoint(self) -> list[str]:
        return [line for line in self._fstab() if not line.lstrip().startswith("#") and self.name in line.split()[1:2]]

    def _fstab_steps(self, identifier: str) -> list[Step]:
        what = self.disk.file.replace("\\", "\\134").replace(" ", "\\040") if self.disk.file else f"UUID={identifier}"
        line = f"{what} {self.name} btrfs {'loop,' if self.disk.file else ''}nofail,{MARK} 0 0"
        there = self._lines_of_mountpoint()
        foreign = [one for one in there if MARK not in one]
        for one in foreign:
            if not self._names_it(one, identifier):
                raise FleetError(
                    f"{FSTAB} mounts something else on {self.name}",
                    why=one.strip(),
                    mend="Choose another mountpoint, or remove that line.",
                    kind=CONFLICT,
                )
        if line in there or foreign:
            return []
        return [Step(f"write a line for {self.name} to {FSTAB}", lambda: self._write_fstab([line]))]

    def _names_it(self, line: str, identifier: str) -> bool:
        """Whether another's line mounts this filesystem."""
        what, _point, fstype, options = [*line.split(), "", ""][:4]
        what = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), what.replace('"', ""))
        if fstype not in ("btrfs", "auto") or not self.disk.holds("btrfs") and "subvol" in options:
            return False
        if what.upper() == f"UUID={identifier}".upper():
            return True
        if not what.startswith("/"):
            what = self.runner.run(["findfs", what], check=False).stdout.strip()
        return os.path.realpath(what) in {os.path.realpath(place) for place in self.disk.places()}

    def _write_fstab(self, lines: list[str]) -> None:
        old = set(self._lines_of_mountpoint())
        kept = [line for line in self._fstab() if line not in old or MARK not in line]
        write_atomically(FSTAB, "".join(f"{line}\n" for line in [*kept, *lines]), None if os.path.exists(FSTAB) else 0o644)

    def removal(self) -> list[Step]:
        mount = self._mounted()
        if not mount:
            if self.disk and self.disk.is_there() and any(one.label == LABEL for one in self.disk.signatures()):
                raise self._unseen()
            return []
        self._check_mount(mount)
        devices = self._devices(mount)
        if not any((one.type, one.label) == ("btrfs", LABEL) for one in signatures(self.runner, devices[0])):
            raise self._not_ours(f"Use umount {self.name}.")
        files = [loop_devices()[device] for device in devices if goes_when_unmounted(device)]
        if files and not (self.disk and self.disk.file):
            raise FleetError(f"{self.name} lies on the file {', '.join(files)}", mend="Set file and size to have it removed.", kind=INVALID)
        elsewhere = [one.point for one in mounts.table() if one != mount and os.path.realpath(one.source) in devices]
        if elsewhere:
            raise self._in_use([f"it is mounted at {point}" for point in elsewhere])
        # What is mounted may be one subvolume of many.
        there = mounts.in_private_mounts(lambda: contents(devices[0], "btrfs", "subvolid=5"))
        if there:
            raise self._in_use(there)
        steps = [Step(f"unmount {self.name}", self.run("umount", self.name))]
        if any(MARK in line for line in self._lines_of_mountpoint()):
            steps.append(Step(f"remove the line for {self.name} from {FSTAB}", lambda: self._write_fstab([])))
        return steps + self.give_back(devices)
