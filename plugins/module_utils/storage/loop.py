# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Loop: ``loop:P/N/rootdev``, a filesystem in a file. LXC copies give it 1 GiB whatever the source's size; ours keep it.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Collection, Iterator, Sequence

from ansible_collections.fleet.lxc.plugins.module_utils import mounts
from ansible_collections.fleet.lxc.plugins.module_utils.capabilities import Capabilities
from ansible_collections.fleet.lxc.plugins.module_utils.container import Rootfs
from ansible_collections.fleet.lxc.plugins.module_utils.disk import loops_on
from ansible_collections.fleet.lxc.plugins.module_utils.errors import INVALID, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.records import write_atomically
from ansible_collections.fleet.lxc.plugins.module_utils.storage import filesystem
from ansible_collections.fleet.lxc.plugins.module_utils.storage.driver import (
    Order,
    Storage,
    StorageDriver,
    can_reflink,
    copy_across,
    not_enough_space,
)


class LoopDriver(StorageDriver):
    store = "loop"
    takes = frozenset({"size", "fstype"})
    # Two lxc-start at once may choose the same free loop device, and one of them fails ("Failed to set loop fd").
    capabilities = Capabilities(reflink=True, parallel_start=False)

    def home(self, name: str, lxcpath: str, storage: Storage) -> Rootfs:
        return Rootfs(self.store, f"{lxcpath}/{name}/rootdev")

    def problems(self, order: Order, targets: Sequence[Rootfs], swept: Collection[Rootfs] = ()) -> list[FleetError]:
        source, reader = order.source, order.reader
        if reader.store == self.store:
            filesystem.require_renewal(self.runner, source.path)
            size = os.path.getsize(source.path)
            if order.storage.size and order.storage.size < size:
                return [FleetError(f"storage.size is less than the source's {size} bytes", why="a filesystem is not made smaller", kind=INVALID)]
            has = filesystem.filesystem_in(source.path)
            if order.storage.fstype not in (None, has):
                what = f"a copy from loop to loop cannot have the filesystem {order.storage.fstype}"
                return [FleetError(what, why=f"the file is copied as it is, with {has or 'what is in it'}", mend="Leave storage.fstype out.", kind=INVALID)]
            if can_reflink(os.path.dirname(source.path), order.lxcpath):
                shortage = not_enough_space(order.lxcpath, filesystem.renewal_cost(source.path), len(targets))
                return [shortage] if shortage else []
        else:
            self.runner.require("rsync", "mount")
            size, fstype = filesystem.measures(order)
            filesystem.require(self.runner, fstype)
        used = reader.used(source)
        if size < used and reader.store != self.store:
            return [filesystem.too_small(size, used)]
        shortage = not_enough_space(order.lxcpath, used, len(targets))
        return [shortage] if shortage else []

    def create(self, rootfs: Rootfs, directory: str, storage: Storage, mark: str) -> None:
        # Readable by root alone, as liblxc makes it: a whole root filesystem, with its secrets, lies in it.
        with open(os.open(rootfs.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.truncate(storage.size or filesystem.DEFAULT_SIZE)
        filesystem.make(self.runner, rootfs.path, storage.fstype)
        os.makedirs(f"{directory}/rootfs", exist_ok=True)

    def clone(self, order: Order, target: Rootfs, directory: str, mark: str) -> None:
        source, size = order.source, order.storage.size
        if order.reader.store == self.store:
            os.makedirs(os.path.join(directory, "rootfs"), exist_ok=True)
            self.runner.run(["cp", "--preserve=mode,ownership", "--reflink=auto", "--sparse=always", source.path, target.path])
            filesystem.renew(self.runner, target.path)
            if size and size > self.size(target):
                self.grow(target, size, f"{directory}/rootfs")
        else:
            self.create(target, directory, Storage(*filesystem.measures(order)), mark)
            copy_across(order, self, target, directory)

    def layers(self, rootfs: Rootfs) -> list[str] | None:
        return None

    @contextlib.contextmanager
    def rootfs_view(self, rootfs: Rootfs, point: str, writable: bool = False, devices: bool = False) -> Iterator[str]:
        with filesystem.view(self.runner, rootfs.path, point, writable, devices, loop=True):
            yield point

    def size(self, rootfs: Rootfs) -> int | None:
        for path, told in ((_growing(rootfs), _told_size), (rootfs.path, os.path.getsize)):
            with contextlib.suppress(OSError, ValueError):
                return told(path)
        return None

    def block_filesystem(self, rootfs: Rootfs) -> tuple[int, str] | None:
        return os.path.getsize(rootfs.path), filesystem.filesystem_in(rootfs.path)

    def remark(self, rootfs: Rootfs) -> str:
        if not os.path.exists(_growing(rootfs)):
            return ""
        return f"growing {rootfs.path} was cut off: its filesystem has {self.size(rootfs)} bytes (run again with storage.size)"

    def grow(self, rootfs: Rootfs, size: int, point: str) -> None:
        if self.runs_on(rootfs) is not None:
            raise FleetError(f"{rootfs.path} is in use and is not grown", mend="Stop the container first.", kind=INVALID)
        filesystem.require_growth(self.runner, rootfs.path, size)
        has = os.path.getsize(rootfs.path)
        if size < has:
            raise FleetError(f"storage.size is less than the {has} bytes that it has", why="a filesystem is not made smaller", kind=INVALID)
        # Until the filesystem has grown, too, the file counts as not grown, and the next run goes on.
        write_atomically(_growing(rootfs), f"{self.size(rootfs)}\n", 0o600)
        os.truncate(rootfs.path, size)
        filesystem.grow(self.runner, rootfs.path, point, False, loop=True)
        os.unlink(_growing(rootfs))

    def damage(self, rootfs: Rootfs) -> str:
        return "" if os.path.isfile(rootfs.path) else f"{rootfs.path} is missing"

    def runs_on(self, rootfs: Rootfs, roots: Sequence[mounts.Root] | None = None) -> int | None:
        # What was just unmounted stays attached while udev looks at it.
        limit = time.monotonic() + 1
        while loops_on(rootfs.path):
            if time.monotonic() > limit:
                return 0
            time.sleep(0.05)
        return None

    def discard(self, rootfs: Rootfs, mark: str | None = None) -> None:
        """All of it lies in the container's directory."""

    def used(self, rootfs: Rootfs) -> int:
        return os.stat(rootfs.path).st_blocks * 512

    def reflinks(self, source: Rootfs, lxcpath: str) -> bool:
        return can_reflink(os.path.dirname(source.path), lxcpath)


def _growing(rootfs: Rootfs) -> str:
    """The file that tells the size of the filesystem while the file around it is larger."""
    return f"{rootfs.path}.growing"


def _told_size(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return int(file.read())
