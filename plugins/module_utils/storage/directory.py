# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plain directories: ``dir:P/N/rootfs``. A copy is a reflink copy where the filesystem can, else rsync.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import os
from typing import Collection, Sequence

from ansible_collections.fleet.lxc.plugins.module_utils.capabilities import Capabilities
from ansible_collections.fleet.lxc.plugins.module_utils.container import Rootfs
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.storage.driver import (
    Order,
    Storage,
    StorageDriver,
    copy_across,
    copy_tree,
    not_enough_space,
)


class DirectoryDriver(StorageDriver):
    store = "dir"
    capabilities = Capabilities(reflink=True)

    def home(self, name: str, lxcpath: str, storage: Storage) -> Rootfs:
        return Rootfs(self.store, f"{lxcpath}/{name}/rootfs")

    def problems(self, order: Order, targets: Sequence[Rootfs], swept: Collection[Rootfs] = ()) -> list[FleetError]:
        if order.reader.store in ("dir", "btrfs") and self.reflinks(order.source, order.lxcpath):
            return []
        self.runner.require("rsync")
        shortage = not_enough_space(order.lxcpath, order.reader.used(order.source), len(targets))
        return [shortage] if shortage else []

    def create(self, rootfs: Rootfs, directory: str, storage: Storage, mark: str) -> None:
        os.mkdir(rootfs.path)
        os.chmod(rootfs.path, 0o755)  # whatever the umask is: it is the guest's own /

    def clone(self, order: Order, target: Rootfs, directory: str, mark: str) -> None:
        self.create(target, directory, order.storage, mark)
        if order.reader.layers(order.source) == [order.source.path]:
            copy_tree(self.runner, order.source.path, target.path)
        else:
            copy_across(order, self, target, directory)

    def damage(self, rootfs: Rootfs) -> str:
        return "" if os.path.isdir(rootfs.path) else f"{rootfs.path} is missing"

    def discard(self, rootfs: Rootfs, mark: str | None = None) -> None:
        """All of it lies in the container's directory."""
