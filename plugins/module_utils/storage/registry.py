# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which driver serves which container. A new backing store is one file beside this one and one line in DRIVERS.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ansible_collections.fleet.lxc.plugins.module_utils import mounts
from ansible_collections.fleet.lxc.plugins.module_utils.command import Runner
from ansible_collections.fleet.lxc.plugins.module_utils.container import Rootfs
from ansible_collections.fleet.lxc.plugins.module_utils.errors import INVALID, UNSUPPORTED, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.storage.btrfs import BtrfsDriver
from ansible_collections.fleet.lxc.plugins.module_utils.storage.directory import DirectoryDriver
from ansible_collections.fleet.lxc.plugins.module_utils.storage.driver import COPY, SNAPSHOT, Order, Storage, StorageDriver
from ansible_collections.fleet.lxc.plugins.module_utils.storage.loop import LoopDriver
from ansible_collections.fleet.lxc.plugins.module_utils.storage.lvm import LvmDriver, device_path
from ansible_collections.fleet.lxc.plugins.module_utils.storage.overlay import OverlayDriver
from ansible_collections.fleet.lxc.plugins.module_utils.storage.zfs import ZfsDriver

DRIVERS: dict[str, type[StorageDriver]] = {
    driver.store: driver
    for driver in (
        DirectoryDriver,
        OverlayDriver,
        BtrfsDriver,
        LoopDriver,
        LvmDriver,
        ZfsDriver,
    )
}


@dataclass(frozen=True)
class Request:
    """What a call asks of storage.

    :param name: the source's.
    :param method: auto, snapshot or copy.
    :param backing_store: a store's name, or None for what fits.
    :param clones: the names of the clones to be made.
    :param unfinished: those of them that lie there half made and are swept first.
    """

    source: Rootfs
    name: str
    lxcpath: str
    method: str
    backing_store: str | None
    clones: tuple[str, ...]
    unfinished: frozenset[str] = frozenset()
    storage: Storage = Storage()


@dataclass(frozen=True)
class Choice:
    """How the clones are made."""

    order: Order
    driver: StorageDriver


class Registry:
    def __init__(self, runner: Runner):
        self.drivers = {store: driver(runner) for store, driver in DRIVERS.items()}

    def driver(self, rootfs: Rootfs, container: str | None = None) -> StorageDriver:
        """The driver of a root filesystem.

        :raises FleetError: UNSUPPORTED for a store that no driver serves.
        """
        driver = self.drivers.get(rootfs.store)
        if driver is None:
            raise FleetError(
                f"its backing store {rootfs.store or 'of unknown type'} ({rootfs}) is not supported",
                container=container,
                why=f"supported are {', '.join(self.drivers)}",
                kind=UNSUPPORTED,
            )
        try:
            driver.check(rootfs)
        except FleetError as error:
            error.container = error.container or container
            raise
        return driver

    def refresh(self) -> None:
        """Another observation begins."""
        for driver in self.drivers.values():
            driver.refresh()

    def choose(self, request: Request) -> Choice:
        """The driver and method for clones, every problem that can be known ahead excluded.

        :raises FleetError: UNSUPPORTED or RESOURCES, with what works instead.
        """
        reader = self.driver(request.source, request.name)
        if request.method == SNAPSHOT:
            return self._passing(request, SNAPSHOT, self._snapshot_driver(reader, request), reader)
        if request.method == COPY:
            return self._passing(request, COPY, self._copy_driver(reader, request), reader)
        try:
            return self._passing(request, SNAPSHOT, self._snapshot_driver(reader, request), reader)
        except FleetError as error:
            if error.kind != UNSUPPORTED:
                raise
            driver = self._copy_driver(reader, request)
            plain = reader.layers(request.source) in ([request.source.path], None)
            if driver.store in (reader.store, "dir") and plain and driver.reflinks(request.source, request.lxcpath):
                return self._passing(request, COPY, driver, reader)
            raise FleetError(
                f"method: auto finds neither a snapshot nor a reflink copy of {request.name}",
                why=str(error),
                mend="Set method: copy for full copies.",
                kind=UNSUPPORTED,
            ) from error

    @staticmethod
    def _passing(request: Request, method: str, driver: StorageDriver, reader: StorageDriver) -> Choice:
        check_storage(driver, request.storage)
        order = Order(request.source, method, request.lxcpath, reader, request.storage)
        places = {name: driver.place(order, name) for name in request.clones}
        for problem in driver.problems(order, list(places.values()), {place for name, place in places.items() if name in request.unfinished}):
            raise problem
        return Choice(order, driver)

    def _snapshot_driver(self, reader: StorageDriver, request: Request) -> StorageDriver:
        name, backing_store = request.name, request.backing_store
        fitting = "overlay" if reader.store == "dir" else reader.store
        driver = self.drivers[fitting]
        if not driver.capabilities.snapshot:
            raise FleetError(
                f"{name} is on {reader.store}, which has no snapshots",
                mend="Use method: copy (it shares blocks where the filesystem has reflinks).",
                kind=UNSUPPORTED,
            )
        if backing_store not in (None, fitting):
            raise FleetError(
                f"a snapshot of {name}, which is on {reader.store}, cannot be on {backing_store}",
                mend=f"Leave backing_store out (it is {fitting} then), or use method: copy.",
                kind=UNSUPPORTED,
            )
        return driver

    def _copy_driver(self, reader: StorageDriver, request: Request) -> StorageDriver:
        backing_store = request.backing_store
        if backing_store == "overlay":
            raise FleetError("a full copy cannot be on overlay", mend="Use method: snapshot, or another backing_store.", kind=UNSUPPORTED)
        if backing_store:
            return self.drivers[backing_store]
        if reader.store == "btrfs":
            mount = mounts.holding(request.lxcpath)
            return self.drivers["btrfs" if mount and mount.fstype == "btrfs" else "dir"]
        return self.drivers["dir" if reader.store == "overlay" else reader.store]


def check_storage(driver: StorageDriver, storage: Storage) -> None:
    """:raises FleetError: INVALID for an option that means nothing to this store."""
    for option, value in vars(storage).items():
        if value is not None and option not in driver.takes:
            stores = ", ".join(store for store, other in DRIVERS.items() if option in other.takes)
            raise FleetError(f"storage.{option} does not fit the backing store {driver.store}", why=f"it is for {stores}", mend="Leave it out.", kind=INVALID)


def normalise(rootfs: Rootfs) -> Rootfs:
    """A path without a type as liblxc would see it (a directory is dir, a file is loop), and one name for each LVM volume."""
    if rootfs.store == "lvm":
        return Rootfs("lvm", device_path(rootfs.path))
    if rootfs.store:
        return rootfs
    if os.path.isdir(rootfs.path):
        return Rootfs("dir", rootfs.path)
    if os.path.isfile(rootfs.path):
        return Rootfs("loop", rootfs.path)
    return Rootfs("lvm", device_path(rootfs.path)) if is_logical_volume(rootfs.path) else rootfs


def is_logical_volume(path: str) -> bool:
    """Whether a block device is LVM's, as liblxc tells it (lvm_detect in src/lxc/storage/lvm.c)."""
    try:
        stat = os.stat(path)
        with open(f"/sys/dev/block/{os.major(stat.st_rdev)}:{os.minor(stat.st_rdev)}/dm/uuid", encoding="ascii") as file:
            return file.read(4) == "LVM-"
    except OSError:
        return False
