# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plain directories: ``dir:P/N/rootfs``. A copy is a reflink copy where the filesystem can, else rsync.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import os

from ansible_collections.fleet.lxc.plugins.module_utils.capabilities import Capabilities
from ansible_collections.fleet.lxc.plugins.module_utils.container import Rootfs
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.storage.driver import (
    StorageDriver,
    copy_across,
    copy_tree,
    not_enough_space,
)


class DirectoryDriver(StorageDriver):
    store = "dir"
    capabilities = Capabilities(reflink=True, unprivileged=True)

    def place(self, source: Rootfs, directory: str) -> Rootfs:
        return Rootfs(self.store, f"{directory}/rootfs")

    def problems(self, source: Rootfs, lxcpath: str, method: str, reader: StorageDriver, count: int) -> list[FleetError]:
        if reader.store in ("dir", "btrfs") and self.reflinks(source, lxcpath):
            return []
        self.runner.require("rsync")
        shortage = not_enough_space(lxcpath, reader.used(source), count)
        return [shortage] if shortage else []

    def create(self, rootfs: Rootfs, size: int | None = None, fstype: str | None = None) -> None:
        os.mkdir(rootfs.path, 0o755)

    def clone(self, source: Rootfs, target: Rootfs, method: str, reader: StorageDriver) -> None:
        self.create(target)
        if reader.layers(source) == [source.path]:
            copy_tree(self.runner, source.path, target.path)
        else:
            copy_across(reader, source, self, target, os.path.dirname(target.path))

    def damage(self, rootfs: Rootfs) -> str:
        return "" if os.path.isdir(rootfs.path) else f"{rootfs.path} is missing"

    def discard(self, rootfs: Rootfs) -> None:
        """All of it lies in the container's directory."""
