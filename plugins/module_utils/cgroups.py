# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""This host's cgroups, and limits of a configuration that it would ignore.

LXC sets lxc.cgroup.* on a host with cgroups of version 1 (hybrid ones are such), lxc.cgroup2.* on one with version 2 alone,
and passes over the others with a warning in a log that nobody reads: the container then runs without its limit.
Private to the collection fleet.lxc.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Iterable, Mapping

from ansible_collections.fleet.lxc.plugins.module_utils import mounts
from ansible_collections.fleet.lxc.plugins.module_utils.errors import UNSUPPORTED, FleetError

_KEY = re.compile(r"lxc\.cgroup(2?)\.(([^.]+)\..+)")
# Where LXC keeps its cgroups, and files that each hierarchy has: no controllers.
_NO_CONTROLLERS = {"dir", "cgroup"}
# Version 1 and version 2 of the same limit, where the values are the same ...
_SAME = {
    "memory.limit_in_bytes": "memory.max",
    "cpuset.cpus": "cpuset.cpus",
    "cpuset.mems": "cpuset.mems",
    "pids.max": "pids.max",
    "devices.allow": "devices.allow",
    "devices.deny": "devices.deny",
    "rdma.max": "rdma.max",
    "misc.max": "misc.max",
}
# ... and where they are written otherwise: what to mind in version 1, and in version 2.
_SIMILAR = {
    ("cpu.shares", "cpu.weight"): ("1024 is the default there", "1 to 10000, 100 is the default there"),
    ("cpu.cfs_quota_us", "cpu.max"): ("microseconds in each cpu.cfs_period_us", "quota and period in one value, such as 50000 100000"),
    ("memory.memsw.limit_in_bytes", "memory.swap.max"): ("memory and swap together", "swap alone"),
    ("blkio.weight", "io.weight"): ("10 to 1000", "1 to 10000, 100 is the default there"),
    ("freezer.state", "cgroup.freeze"): ("FROZEN or THAWED", "0 or 1"),
}
_MOUNT_OPTIONS = {"rw", "ro", "none", "all", "xattr", "noprefix", "clone_children", "cpuset_v2_mode"}
_RENAMED = {"blkio": "io"}  # controllers of version 1, as version 2 calls them


@dataclass(frozen=True)
class Layout:
    """How a host's cgroups are mounted."""

    version: int  # which LXC uses: 2 for unified, 1 for hybrid ones as well, 0 where none are mounted
    controllers: frozenset[str]  # of that version

    @property
    def prefix(self) -> str:
        return "lxc.cgroup2." if self.version == 2 else "lxc.cgroup."


def layout(table: Iterable[mounts.Mount] | None = None, root: str = "/sys/fs/cgroup") -> Layout:
    """This host's. As for LXC, version 2 alone is used where it is mounted on the root itself.

    :param table: its mounts, where it is not this process's.
    """
    legacy: set[str] | None = None
    unified = False
    for mount in mounts.table() if table is None else table:
        if mount.point == root:
            unified = mount.fstype == "cgroup2"
        if mount.fstype == "cgroup":
            # What else stands there: rw, name=systemd and the like.
            legacy = (legacy or set()) | set(mount.super_options.split(",")) - _MOUNT_OPTIONS
    if unified:
        with open(f"{root}/cgroup.controllers", encoding="ascii") as file:
            # Version 2 keeps devices by a BPF program, without a controller.
            return Layout(2, frozenset(["devices", *file.read().split()]))
    return Layout(0, frozenset()) if legacy is None else Layout(1, frozenset(option for option in legacy if "=" not in option))


def check(configs: Iterable[Mapping[str, list[str]] | None], where: str = "config") -> None:
    """Refuse limits that this host would ignore or does not have.

    A key of the other version may stand beside one of the host's own version for the same controller: such tasks suit both.

    :param configs: what tasks set, {key: values}.
    :raises FleetError: UNSUPPORTED.
    """
    here: Layout | None = None
    seen: set[frozenset[str]] = set()
    for config in configs:
        keys = frozenset(key for key, values in (config or {}).items() if key.startswith("lxc.cgroup") and any(values))
        if keys and keys not in seen:
            seen.add(keys)
            here = here or layout()
            _check(sorted(keys), here, where)


def _check(keys: Iterable[str], here: Layout, where: str) -> None:
    limits = []
    for key in keys:
        match = _KEY.fullmatch(key)
        if match and match.group(3) not in _NO_CONTROLLERS and here.version:
            limits.append((key, 2 if match.group(1) else 1, match.group(2), match.group(3)))
    own = {_controller(limit) for _key, version, limit, _name in limits if version == here.version}
    for key, version, limit, name in limits:
        if version != here.version:
            if _controller(limit) not in own:
                raise _ignored(key, limit, here, where)
        elif name not in here.controllers:
            raise FleetError(
                f"{where} has {key}, and this host has no cgroup controller {name}",
                why=f"it has {', '.join(sorted(here.controllers))}",
                mend="Leave it out, or enable the controller (on the kernel's command line).",
                kind=UNSUPPORTED,
            )


def _controller(limit: str) -> str:
    """What a limit is a limit of, whatever the version."""
    name = limit.partition(".")[0]
    return _RENAMED.get(name, name)


def _ignored(key: str, limit: str, here: Layout, where: str) -> FleetError:
    other, minding = _equivalent(limit, here.version)
    version = {1: "cgroups of version 1 (or hybrid)", 2: "cgroups of version 2"}[here.version]
    said = f"Write {here.prefix}{other}{f' ({minding})' if minding else ''}" if other else f"Write a limit of {here.prefix}*"
    return FleetError(
        f"{where} has {key}, which LXC ignores here", why=f"this host has {version}", mend=f"{said}; both may stand in one task.", kind=UNSUPPORTED
    )


def _equivalent(limit: str, version: int) -> tuple[str, str]:
    """What a limit of the other version is called in this one, and what to mind; '' where nothing is known."""
    to_two = version == 2
    pairs = {**{(one, two): ("", "") for one, two in _SAME.items()}, **_SIMILAR}
    for (one, two), minding in pairs.items():
        if limit == (one if to_two else two):
            return (two, minding[1]) if to_two else (one, minding[0])
    hugetlb = re.fullmatch(r"hugetlb\.([^.]+)\.(limit_in_bytes|max)", limit)
    return (f"hugetlb.{hugetlb.group(1)}.{'max' if to_two else 'limit_in_bytes'}", "") if hugetlb else ("", "")
