# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What LVM tells of its volumes and groups, and device-mapper of its devices.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import contextlib
import glob
import json
from dataclasses import dataclass
from typing import Mapping

from ansible_collections.fleet.lxc.plugins.module_utils.command import Runner

# fullreport tells of segments and physical volumes too, of which we want to hear little.
_COLUMNS = {
    "vg": "vg_name,vg_free,vg_extent_size",
    "lv": "vg_name,lv_name,origin,pool_lv,lv_attr,lv_layout,lv_size,data_percent,metadata_percent,lv_tags,lv_uuid",
    "pv": "pv_name",
    "pvseg": "pvseg_start",
    "seg": "seg_start",
}
TAG = "fleet.lxc."  # with the id of a container
GROWS = f"{TAG}grows-from."  # with the size that the filesystem of a growing volume has still


@dataclass(frozen=True)
class Volume:
    """One logical volume, as LVM tells it. Sizes in bytes."""

    vg: str
    name: str
    origin: str
    pool: str
    attr: str
    layout: frozenset[str]
    size: int
    data_percent: float
    metadata_percent: float
    tags: tuple[str, ...]
    uuid: str

    @classmethod
    def of(cls, row: Mapping[str, str]) -> Volume:
        return cls(
            row["vg_name"],
            row["lv_name"],
            row["origin"],
            row["pool_lv"],
            row["lv_attr"],
            frozenset(row["lv_layout"].split(",")),
            int(row["lv_size"]),
            float(row["data_percent"] or 0),
            float(row["metadata_percent"] or 0),
            tuple(filter(None, row["lv_tags"].split(","))),
            row["lv_uuid"],
        )

    @property
    def thin(self) -> bool:
        # lv_attr says "o" of the origin of anything, thin or thick.
        return self.layout >= {"thin", "sparse"}

    @property
    def is_pool(self) -> bool:
        return self.layout >= {"thin", "pool"}

    @property
    def thick_snapshot(self) -> bool:
        return self.attr[0] in "sS"

    @property
    def active(self) -> bool:
        return self.attr[4] != "-"

    @property
    def invalid(self) -> bool:
        return self.attr[4] in "IS"

    @property
    def grows_from(self) -> int | None:
        """The size that its filesystem has still, when growing it was cut off."""
        return next((int(tag[len(GROWS) :]) for tag in self.tags if tag.startswith(GROWS)), None)

    @property
    def path(self) -> str:
        return f"/dev/{self.vg}/{self.name}"

    @property
    def device(self) -> str:
        """Its name below /dev/mapper."""
        return f"{self.vg.replace('-', '--')}-{self.name.replace('-', '--')}"


@dataclass(frozen=True)
class Group:
    """One volume group, as LVM tells it. Bytes."""

    free: int
    extent: int


def report(runner: Runner) -> tuple[dict[str, Volume], dict[str, Group]]:
    """Every logical volume by its path /dev/VG/LV, and every volume group by its name.

    One command tells of both: LVM's take long, for they read every disk.

    :raises FleetError: RESOURCES without LVM's command, FAILED.
    """
    runner.require("lvm")
    answer = runner.run(
        # The administrator's lvm.conf may put LVM's own log into the report, which is no JSON then.
        ["lvm", "fullreport", "--config", "log/report_command_log=0", "--reportformat", "json", "--units", "b", "--nosuffix"]
        + [word for kind, columns in _COLUMNS.items() for word in ("--configreport", kind, "-o", columns)]
    )
    reports = json.loads(answer.stdout)["report"]
    groups = {row["vg_name"]: Group(int(row["vg_free"]), int(row["vg_extent_size"])) for one in reports for row in one.get("vg", ())}
    volumes = [Volume.of(row) for one in reports for row in one.get("lv", ())]
    return {volume.path: volume for volume in volumes}, groups


def suspended() -> frozenset[str]:
    """The devices of device-mapper to which no read or write goes through."""
    names = set()
    for directory in glob.glob("/sys/block/dm-*/dm"):
        with contextlib.suppress(OSError):
            with open(f"{directory}/suspended", encoding="ascii") as file, open(f"{directory}/name", encoding="utf-8") as name:
                if file.read().strip() == "1":
                    names.add(name.read().strip())
    return frozenset(names)
