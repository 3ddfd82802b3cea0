# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A VG for containers, and a thin pool in it.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import json
import os
from typing import Any, Mapping

from ansible_collections.fleet.lxc.plugins.module_utils.command import Runner
from ansible_collections.fleet.lxc.plugins.module_utils.errors import CONFLICT, UNSUPPORTED, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.pool import Pool, Step
from ansible_collections.fleet.lxc.plugins.module_utils.storage.lvm_report import Volume, report
from ansible_collections.fleet.lxc.plugins.module_utils.wanted import parse_size, wanted_storage

TAG = "fleet.lxc.host"  # of the VG


class Lvm(Pool):
    """A volume group, and a thin pool in it."""

    tools = ("lvs", "vgs", "pvs")

    def __init__(self, runner: Runner, options: Mapping[str, Any]):
        super().__init__(runner, options, options["vg"])
        wanted_storage({"vg": options["vg"], "thinpool": options["thinpool"]})
        self.thinpool, self.thinpool_size = options["thinpool"], parse_size("thinpool_size", options["thinpool_size"])

    def check_kernel(self, check_mode: bool) -> None:
        if not self._load("/sys/class/misc/device-mapper", "dm_mod", check_mode):
            raise FleetError("this kernel has no device-mapper, so there is no LVM", mend="Use another kernel, or another kind of storage.", kind=UNSUPPORTED)

    def _group(self) -> dict[str, str] | None:
        """{PV: our tag or nothing} of the VG; None when there is no such VG."""
        if not self.has_tools():
            return None
        said = self.runner.run(["pvs", "--reportformat", "json", "-o", "pv_name,vg_name,vg_tags"]).stdout
        rows = [row for part in json.loads(said)["report"] for row in part["pv"] if row["vg_name"] == self.name]
        return {os.path.realpath(row["pv_name"]): row["vg_tags"] for row in rows} or None

    def _volumes(self) -> list[Volume]:
        return [volume for volume in report(self.runner)[0].values() if volume.vg == self.name]

    def plan(self) -> list[Step]:
        group, steps = self._group(), []
        if group is None:
            disk = self.needed_disk()
            if disk.file and self._lies_detached():
                steps += [Step(f"attach {disk.file} as a loop device", disk.attach), Step(f"activate the VG {self.name}", self._activate)]
                return steps  # its thin pool is seen by the run's second look
            if not disk.was_just_made():
                disk.must_be_empty()
            steps += self.make_file()
            if disk.file and not disk.loops():
                steps.append(Step(f"attach {disk.file} as a loop device", disk.attach))
            steps.append(
                Step(f"make the VG {self.name} on {disk.path}", lambda: self.runner.run(["vgcreate", "-q", "--addtag", TAG, self.name, disk.attach()]))
            )
        elif self.disk and not self.disk.places() & set(group):
            raise FleetError(
                f"there is already a VG {self.name} on {', '.join(group)}",
                why=f"not on {self.disk.path}",
                mend="Leave device and file out to use it as it is, or choose another name.",
                kind=CONFLICT,
            )
        if not self.thinpool:
            return steps
        there = next((volume for volume in self._volumes() if volume.name == self.thinpool), None) if group else None
        if there and not there.is_pool:
            raise FleetError(f"{there.path} is no thin pool", mend="Choose another name for the thin pool.", kind=CONFLICT)
        if not there:
            room = ["-L", f"{self.thinpool_size}b"] if self.thinpool_size else ["-l", "90%FREE"]
            argv = ["lvcreate", "-q", "-y", "--type", "thin-pool", *room, "-n", self.thinpool, self.name]
            steps.append(Step(f"make the thin pool {self.name}/{self.thinpool}", self.run(*argv)))
        return steps

    def _lies_detached(self) -> bool:
        """Whether the file holds this VG, as after a reboot. LVM keeps a VG's description as text at the beginning of each PV."""
        if self.disk.loops() or not self.disk.holds("LVM2_member"):
            return False
        with open(self.disk.file, "rb") as file:
            head = file.read(1 << 20)
        return f"{self.name} {{\nid = ".encode() in head and f'"{TAG}"'.encode() in head

    def _activate(self) -> None:
        self.runner.run(["vgchange", "-q", "-ay", self.name])

    def removal(self) -> list[Step]:
        group = self._group()
        if group is None:
            if self.disk and self.disk.file and self.disk.is_there() and self._lies_detached():
                raise self._unseen()
            return []
        if not all(TAG in tags.split(",") for tags in group.values()):
            raise self._not_ours(f"Use vgremove {self.name}.")
        self._check_place(group)
        volumes = self._volumes()
        others = [volume.path for volume in volumes if not (volume.is_pool and volume.name == self.thinpool)]
        if others:
            raise self._in_use(others)
        steps = []
        if volumes:
            steps.append(Step(f"remove the thin pool {self.name}/{self.thinpool}", self.run("lvremove", "-q", "-y", f"{self.name}/{self.thinpool}")))
        steps.append(Step(f"remove the VG {self.name}", self.run("vgremove", "-q", self.name)))
        return [*steps, Step(f"make no PV of {', '.join(group)}", self.run("pvremove", "-q", *group)), *self.give_back(group)]
