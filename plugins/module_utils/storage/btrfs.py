# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""btrfs: ``btrfs:P/N/rootfs``, a subvolume. Snapshot and copy on one filesystem are the same thing, independent of the base.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import os
import shlex
from typing import Collection, Sequence

from ansible_collections.fleet.lxc.plugins.module_utils import mounts
from ansible_collections.fleet.lxc.plugins.module_utils.capabilities import Capabilities
from ansible_collections.fleet.lxc.plugins.module_utils.container import Rootfs
from ansible_collections.fleet.lxc.plugins.module_utils.errors import UNSUPPORTED, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.storage.driver import (
    COPY,
    Order,
    Storage,
    StorageDriver,
    copy_across,
    not_enough_space,
)

_SUBVOLUME_INODE = 256


class BtrfsDriver(StorageDriver):
    store = "btrfs"
    capabilities = Capabilities(snapshot=True, reflink=True)

    def home(self, name: str, lxcpath: str, storage: Storage) -> Rootfs:
        return Rootfs(self.store, f"{lxcpath}/{name}/rootfs")

    def problems(self, order: Order, targets: Sequence[Rootfs], swept: Collection[Rootfs] = ()) -> list[FleetError]:
        source, lxcpath, reader = order.source, order.lxcpath, order.reader
        self.runner.require("btrfs")
        mount = mounts.holding(lxcpath)
        if mount and mount.fstype != "btrfs":
            return [FleetError(f"{lxcpath} lies on {mount.fstype}, not on btrfs", mend="Use an lxcpath on btrfs, or method: copy.", kind=UNSUPPORTED)]
        if reader.store == self.store and self._one_filesystem(source.path, lxcpath):
            nested = subvolumes_below(source.path)
            if nested:
                return [_nested(nested)]
            return []
        if order.method != COPY:
            return [FleetError(f"a btrfs snapshot cannot leave its filesystem for {lxcpath}", mend="Use method: copy.", kind=UNSUPPORTED)]
        self.runner.require("rsync")
        shortage = not_enough_space(lxcpath, reader.used(source), len(targets))
        return [shortage] if shortage else []

    @staticmethod
    def _one_filesystem(one: str, other: str) -> bool:
        table = mounts.table()
        a, b = mounts.holding(one, table), mounts.holding(other, table)
        return bool(a and b and a.device == b.device and a.fstype == "btrfs")

    def create(self, rootfs: Rootfs, directory: str, storage: Storage, mark: str) -> None:
        self.runner.run(["btrfs", "subvolume", "create", rootfs.path])
        os.chmod(rootfs.path, 0o755)  # whatever the umask is: it is the guest's own /

    def clone(self, order: Order, target: Rootfs, directory: str, mark: str) -> None:
        if order.reader.store == self.store and self._one_filesystem(order.source.path, os.path.dirname(target.path)):
            self.runner.run(["btrfs", "subvolume", "snapshot", order.source.path, target.path])
        else:
            self.create(target, directory, order.storage, mark)
            copy_across(order, self, target, directory)

    def seal(self, rootfs: Rootfs, generation: str) -> None:
        self.runner.run(["btrfs", "property", "set", "-ts", rootfs.path, "ro", "true"])

    def unseal(self, rootfs: Rootfs) -> None:
        self.runner.run(["btrfs", "property", "set", "-ts", rootfs.path, "ro", "false"])

    def damage(self, rootfs: Rootfs) -> str:
        return "" if is_subvolume(rootfs.path) else f"the subvolume {rootfs.path} is missing"

    def discard(self, rootfs: Rootfs, mark: str | None = None) -> None:
        if is_subvolume(rootfs.path):
            # Deepest first: a subvolume that holds another cannot be removed.
            for path in reversed(subvolumes_below(rootfs.path)):
                self.runner.run(["btrfs", "subvolume", "delete", path])
            self.runner.run(["btrfs", "subvolume", "delete", rootfs.path])


def _nested(paths: Sequence[str]) -> FleetError:
    path = shlex.quote(paths[-1])
    return FleetError(
        f"the source holds {len(paths)} nested subvolume{'s' if len(paths) > 1 else ''}: {', '.join(paths[:10])}{' …' if len(paths) > 10 else ''}",
        why="a snapshot would show an empty directory in place of each",
        mend=f"Make plain directories of them while the source is not sealed, the innermost first: mv {path} {path}.subvolume && "
        f"cp -a --reflink=always {path}.subvolume {path} && btrfs subvolume delete {path}.subvolume",
        kind=UNSUPPORTED,
    )


def is_subvolume(path: str) -> bool:
    try:
        return os.lstat(path).st_ino == _SUBVOLUME_INODE and os.path.isdir(path) and not os.path.islink(path)
    except OSError:
        return False


def subvolumes_below(path: str) -> list[str]:
    """Subvolumes nested in one, each before those that it holds. A subvolume is a directory with inode 256 (btrfs(5))."""
    found, pending = [], [path]
    while pending:
        for entry in os.scandir(pending.pop()):
            if entry.is_dir(follow_symlinks=False):
                if entry.inode() == _SUBVOLUME_INODE or entry.stat(follow_symlinks=False).st_ino == _SUBVOLUME_INODE:
                    found.append(entry.path)
                pending.append(entry.path)
    return found
