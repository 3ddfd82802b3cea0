# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One call of lxc_storage: a btrfs filesystem, a VG with a thin pool, a ZFS dataset, where the containers of a host will be kept.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

from typing import Any, Mapping

from ansible_collections.fleet.lxc.plugins.module_utils.command import Runner
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FAILED, INVALID, RESOURCES, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.host import require_root
from ansible_collections.fleet.lxc.plugins.module_utils.locks import Lock, hold
from ansible_collections.fleet.lxc.plugins.module_utils.pool import Pool, Step
from ansible_collections.fleet.lxc.plugins.module_utils.pool_btrfs import Btrfs
from ansible_collections.fleet.lxc.plugins.module_utils.pool_lvm import Lvm
from ansible_collections.fleet.lxc.plugins.module_utils.pool_zfs import Zfs

_DISK: dict[str, Any] = {"device": {"type": "path"}, "file": {"type": "path"}, "size": {"type": "str"}}
STORAGE_ARGUMENTS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "btrfs": {"type": "dict", "options": {"mountpoint": {"type": "path", "required": True}, **_DISK}},
    "lvm": {
        "type": "dict",
        "options": {"vg": {"type": "str", "required": True}, "thinpool": {"type": "str"}, "thinpool_size": {"type": "str"}, **_DISK},
    },
    "zfs": {"type": "dict", "options": {"dataset": {"type": "str", "required": True}, **_DISK}},
    "timeout": {"type": "int", "default": 600},
    "lock_timeout": {"type": "int", "default": 300},
}
LOCK = Lock("storage", True, "this host's storage")
KINDS: dict[str, type[Pool]] = {"btrfs": Btrfs, "lvm": Lvm, "zfs": Zfs}


class StorageCall:
    """The one call that prepares a host's storage, or removes it."""

    def __init__(self, options: Mapping[str, Any]):
        require_root()
        self.runner = Runner(options["timeout"])
        self.absent = options["state"] == "absent"
        self.kinds = [kind for kind in KINDS if options[kind]]
        if not self.kinds:
            raise FleetError("nothing is asked for", mend=f"Set one of {', '.join(KINDS)}.", kind=INVALID)
        self.options = options

    def run(self, check_mode: bool) -> dict[str, Any]:
        """Do what the options ask; in check mode say what would be done.

        :raises FleetError: before the first step when anything would have to be overwritten.
        """
        if check_mode:
            return self._run(check_mode)
        with hold([LOCK], self.options["lock_timeout"]) as locks, self.runner.keeping(locks):
            return self._run(check_mode)

    def _run(self, check_mode: bool) -> dict[str, Any]:
        pools = [KINDS[kind](self.runner, self.options[kind]) for kind in self.kinds]
        for pool in pools:
            # Check mode tells what a machine would get whose tools are yet to be installed.
            if not check_mode and not self.absent:
                self.runner.require(*pool.tools)
            if not self.absent and (pool.has_tools() or not check_mode):
                pool.check_kernel(check_mode)
        steps = self._steps(pools)
        done = [step.what for step in steps]
        if not check_mode:
            for _look in range(3):
                for step in steps:
                    step.do()
                # What was attached or imported shows only now what is missing in it; and what was made must be found again.
                steps = self._steps(pools) if steps else []
                done += [step.what for step in steps]
            if steps:
                raise FleetError("the storage was made and is not found again", why="; ".join(step.what for step in steps), kind=FAILED)
        after = "".join(f"{what}\n" for what in done)
        return {"changed": bool(done), "actions": done, "diff": {"before": "", "after": after, "before_header": "storage", "after_header": "storage"}}

    def _steps(self, pools: list[Pool]) -> list[Step]:
        steps = []
        for pool in pools:
            if self.absent and not pool.has_tools():
                raise FleetError(f"{pool.name} cannot be looked at", why=f"{', '.join(pool.tools)} are not installed", kind=RESOURCES)
            steps += pool.removal() if self.absent else pool.plan()
        return steps
