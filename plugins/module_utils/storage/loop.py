# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Loop: ``loop:P/N/rootdev``, a filesystem in a file. LXC copies give it 1 GiB whatever the source's size; ours keep it.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import contextlib
import glob
import os
from typing import Iterator

from ansible_collections.fleet.lxc.plugins.module_utils.capabilities import Capabilities
from ansible_collections.fleet.lxc.plugins.module_utils.container import Rootfs
from ansible_collections.fleet.lxc.plugins.module_utils.errors import RESOURCES, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.storage.driver import (
    StorageDriver,
    can_reflink,
    copy_across,
    not_enough_space,
)

DEFAULT_SIZE = 1 << 30  # LXC's own
_NEW_UUID = {"xfs": ["xfs_admin", "-U", "generate"], "btrfs": ["btrfstune", "-f", "-u"]}


class LoopDriver(StorageDriver):
    store = "loop"
    # Two lxc-start at once may choose the same free loop device, and one of them fails ("Failed to set loop fd").
    capabilities = Capabilities(reflink=True, needs_size=True, parallel_start=False)

    def place(self, source: Rootfs, directory: str) -> Rootfs:
        return Rootfs(self.store, f"{directory}/rootdev")

    def problems(self, source: Rootfs, lxcpath: str, method: str, reader: StorageDriver, count: int) -> list[FleetError]:
        if reader.store == self.store:
            tool = _NEW_UUID.get(filesystem_in(source.path), [None])[0]
            if tool:
                self.runner.require(tool)
            if can_reflink(os.path.dirname(source.path), lxcpath):
                return []
        else:
            self.runner.require("mkfs.ext4", "rsync", "mount")
        shortage = not_enough_space(lxcpath, reader.used(source), count)
        return [shortage] if shortage else []

    def create(self, rootfs: Rootfs, size: int | None = None, fstype: str | None = None) -> None:
        # Readable by root alone, as liblxc makes it: a whole root filesystem, with its secrets, lies in it.
        with open(os.open(rootfs.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.truncate(size or DEFAULT_SIZE)
        self.runner.run([f"mkfs.{fstype or 'ext4'}", "-q", rootfs.path])
        os.makedirs(os.path.join(os.path.dirname(rootfs.path), "rootfs"), exist_ok=True)

    def clone(self, source: Rootfs, target: Rootfs, method: str, reader: StorageDriver) -> None:
        directory = os.path.dirname(target.path)
        if reader.store == self.store:
            os.makedirs(os.path.join(directory, "rootfs"), exist_ok=True)
            self.runner.run(["cp", "--preserve=mode,ownership", "--reflink=auto", "--sparse=always", source.path, target.path])
            # XFS and btrfs do not mount twice under one UUID.
            renew = _NEW_UUID.get(filesystem_in(target.path))
            if renew:
                self.runner.run([*renew, target.path])
        else:
            self.create(target, max(DEFAULT_SIZE, reader.used(source) * 5 // 4))
            copy_across(reader, source, self, target, directory)

    def layers(self, rootfs: Rootfs) -> list[str] | None:
        return None

    @contextlib.contextmanager
    def rootfs_view(self, rootfs: Rootfs, point: str, writable: bool = False) -> Iterator[str]:
        options = "loop,nodev,nosuid" if writable else "loop,ro,nodev,nosuid"
        if not writable and filesystem_in(rootfs.path) == "ext4":
            options += ",noload"
        self.runner.run(["mount", "-o", options, rootfs.path, point])
        try:
            yield point
        finally:
            self.runner.run(["umount", point])

    def damage(self, rootfs: Rootfs) -> str:
        return "" if os.path.isfile(rootfs.path) else f"{rootfs.path} is missing"

    def runs_on(self, rootfs: Rootfs) -> int | None:
        for path in glob.glob("/sys/block/loop*/loop/backing_file"):
            try:
                with open(path, encoding="utf-8", errors="surrogateescape") as file:
                    if os.path.samefile(file.read().rstrip("\n"), rootfs.path):
                        return 0
            except OSError:
                continue
        return None

    def discard(self, rootfs: Rootfs) -> None:
        """All of it lies in the container's directory."""

    def used(self, rootfs: Rootfs) -> int:
        return os.stat(rootfs.path).st_blocks * 512

    def reflinks(self, source: Rootfs, lxcpath: str) -> bool:
        return can_reflink(os.path.dirname(source.path), lxcpath)


def filesystem_in(path: str) -> str:
    """The filesystem in a device or file, told by its magic number; '' when it is none that we know.

    :raises FleetError: RESOURCES when it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(0x10048)
    except OSError as error:
        raise FleetError(f"cannot read {path}", why=str(error), kind=RESOURCES) from error
    if head[:4] == b"XFSB":
        return "xfs"
    if head[0x10040:0x10048] == b"_BHRfS_M":
        return "btrfs"
    return "ext4" if head[0x438:0x43A] == b"\x53\xef" else ""
