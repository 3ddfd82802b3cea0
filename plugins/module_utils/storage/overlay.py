# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Overlay: ``overlay:LOWER:P/N/overlay/delta``, the guide's snapshot of a directory-backed container.

The lower is never written; it must not run, change or vanish while clones exist (the kernel's overlayfs.rst calls the
result undefined). A snapshot of an overlay clone is its delta copied over the same lower, so the depth never grows.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import contextlib
import os
from typing import Collection, Iterator, Sequence

from ansible_collections.fleet.lxc.plugins.module_utils import mounts
from ansible_collections.fleet.lxc.plugins.module_utils.capabilities import Capabilities
from ansible_collections.fleet.lxc.plugins.module_utils.container import Rootfs
from ansible_collections.fleet.lxc.plugins.module_utils.errors import UNSUPPORTED, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.storage.driver import (
    Order,
    Storage,
    StorageDriver,
    copy_tree,
    not_enough_space,
    tree_size,
)

# Filesystems that the kernel refuses as the upper layer, or that lack the xattrs and whiteouts it needs.
_NO_UPPER = {"overlay", "nfs", "nfs4", "cifs", "smb3", "vfat", "msdos", "exfat", "9p", "squashfs", "iso9660", "ecryptfs", "ceph", "zfs"}


class OverlayDriver(StorageDriver):
    store = "overlay"
    capabilities = Capabilities(snapshot=True, source_writable_with_clones=False)

    def home(self, name: str, lxcpath: str, storage: Storage) -> Rootfs:
        raise FleetError(f"{name} cannot be made on overlay", why="an overlay stands on another container", mend="Use backing_store: dir.", kind=UNSUPPORTED)

    def place(self, order: Order, name: str) -> Rootfs:
        return Rootfs(self.store, f"{order.lxcpath}/{name}/overlay/delta", order.source.lower or order.source.path)

    def problems(self, order: Order, targets: Sequence[Rootfs], swept: Collection[Rootfs] = ()) -> list[FleetError]:
        source, lxcpath = order.source, order.lxcpath
        mount = mounts.holding(lxcpath)
        if mount and (mount.fstype in _NO_UPPER or mount.fstype.startswith("fuse")):
            return [
                FleetError(
                    f"{lxcpath} lies on {mount.fstype}, which cannot carry the writable layer of an overlay",
                    mend="Use method: copy, or an lxcpath on ext4, XFS or btrfs.",
                    kind=UNSUPPORTED,
                )
            ]
        for path in (source.path, lxcpath):
            if any(character in path for character in ":,\\"):
                return [FleetError(f"{path} cannot be part of an overlay", why="overlay mount options cannot hold ':', ',' or '\\'", kind=UNSUPPORTED)]
        if source.store == "overlay":
            self.runner.require("rsync")
            shortage = not_enough_space(lxcpath, tree_size(source.path), len(targets))
            return [shortage] if shortage else []
        return []

    def create(self, rootfs: Rootfs, directory: str, storage: Storage, mark: str) -> None:
        overlay = os.path.dirname(rootfs.path)
        for path in (overlay, rootfs.path, f"{overlay}/work", f"{directory}/rootfs"):
            os.mkdir(path, 0o755)

    def clone(self, order: Order, target: Rootfs, directory: str, mark: str) -> None:
        source = order.source
        self.create(target, directory, order.storage, mark)
        if source.store == "overlay":
            copy_tree(self.runner, source.path, target.path)
        else:
            # The delta's root is the root directory that the guest sees: it must look like the lower's.
            stat = os.stat(source.path)
            os.chown(target.path, stat.st_uid, stat.st_gid)
            os.chmod(target.path, stat.st_mode & 0o7777)
            for name in os.listxattr(source.path):
                if not name.startswith(("trusted.overlay.", "user.overlay.")):
                    os.setxattr(target.path, name, os.getxattr(source.path, name))
            os.utime(target.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    def instant(self, order: Order) -> bool:
        return order.source.store != self.store

    def counted(self, order: Order) -> bool:
        return True

    def layers(self, rootfs: Rootfs) -> list[str] | None:
        return [rootfs.path, *rootfs.lower.split(":")]

    @contextlib.contextmanager
    def rootfs_view(self, rootfs: Rootfs, point: str, writable: bool = False, devices: bool = False) -> Iterator[str]:
        if writable:
            work = os.path.join(os.path.dirname(rootfs.path), "work")
            options = f"lowerdir={rootfs.lower},upperdir={rootfs.path},workdir={work}"
        else:
            options = f"lowerdir={rootfs.path}:{rootfs.lower}"
        self.runner.run(["mount", "-t", "overlay", "-o", options, "overlay", point])
        try:
            yield point
        finally:
            mounts.unmount(point)

    def damage(self, rootfs: Rootfs) -> str:
        work = os.path.join(os.path.dirname(rootfs.path), "work")
        for path in (rootfs.path, work, *rootfs.lower.split(":")):
            if not os.path.isdir(path):
                return f"{path} is missing"
        return ""

    def surroundings(self, rootfs: Rootfs) -> list[str]:
        overlay = os.path.dirname(rootfs.path)
        return [overlay, rootfs.path, f"{overlay}/work", f"{os.path.dirname(overlay)}/rootfs"]

    def lower_of(self, rootfs: Rootfs) -> list[str]:
        return rootfs.lower.split(":")

    def runs_on(self, rootfs: Rootfs, roots: Sequence[mounts.Root] | None = None) -> int | None:
        for pid, _stat, mount in mounts.roots() if roots is None else roots:
            if mount.fstype == "overlay" and f"upperdir={rootfs.path}" in mount.super_options.split(",") and mounts.is_ours(pid, rootfs.path):
                return pid
        return None

    def discard(self, rootfs: Rootfs, mark: str | None = None) -> None:
        """All of it lies in the container's directory."""

    def used(self, rootfs: Rootfs) -> int:
        return sum(tree_size(path) for path in self.layers(rootfs) or [])
