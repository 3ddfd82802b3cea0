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
from ansible_collections.fleet.lxc.plugins.module_utils.errors import UNSUPPORTED, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.storage.btrfs import BtrfsDriver
from ansible_collections.fleet.lxc.plugins.module_utils.storage.directory import DirectoryDriver
from ansible_collections.fleet.lxc.plugins.module_utils.storage.driver import COPY, SNAPSHOT, StorageDriver
from ansible_collections.fleet.lxc.plugins.module_utils.storage.loop import LoopDriver
from ansible_collections.fleet.lxc.plugins.module_utils.storage.overlay import OverlayDriver

DRIVERS: dict[str, type[StorageDriver]] = {
    driver.store: driver
    for driver in (
        DirectoryDriver,
        OverlayDriver,
        BtrfsDriver,
        LoopDriver,
    )
}


@dataclass(frozen=True)
class Choice:
    """How clones of one source are made below one lxcpath."""

    method: str
    driver: StorageDriver
    reader: StorageDriver


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
        return driver

    def choose(self, source: Rootfs, name: str, lxcpath: str, method: str, backing_store: str | None, count: int) -> Choice:
        """The driver and method for clones, every problem that can be known ahead excluded.

        :param method: auto, snapshot or copy.
        :param backing_store: a store's name, or None for what fits.
        :raises FleetError: UNSUPPORTED or RESOURCES, with what works instead.
        """
        reader = self.driver(source, name)
        if method == SNAPSHOT:
            return self._passing(source, lxcpath, SNAPSHOT, self._snapshot_driver(reader, name, backing_store), reader, count)
        if method == COPY:
            return self._passing(source, lxcpath, COPY, self._copy_driver(reader, lxcpath, backing_store), reader, count)
        try:
            return self._passing(source, lxcpath, SNAPSHOT, self._snapshot_driver(reader, name, backing_store), reader, count)
        except FleetError as error:
            driver = self._copy_driver(reader, lxcpath, backing_store)
            if driver.store in (reader.store, "dir") and reader.layers(source) in ([source.path], None) and driver.reflinks(source, lxcpath):
                return self._passing(source, lxcpath, COPY, driver, reader, count)
            raise FleetError(
                f"method: auto finds neither a snapshot nor a reflink copy of {name}",
                why=str(error),
                mend="Set method: copy for full copies.",
                kind=UNSUPPORTED,
            ) from error

    @staticmethod
    def _passing(source: Rootfs, lxcpath: str, method: str, driver: StorageDriver, reader: StorageDriver, count: int) -> Choice:
        for problem in driver.problems(source, lxcpath, method, reader, count):
            raise problem
        return Choice(method, driver, reader)

    def _snapshot_driver(self, reader: StorageDriver, name: str, backing_store: str | None) -> StorageDriver:
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

    def _copy_driver(self, reader: StorageDriver, lxcpath: str, backing_store: str | None) -> StorageDriver:
        if backing_store == "overlay":
            raise FleetError("a full copy cannot be on overlay", mend="Use method: snapshot, or another backing_store.", kind=UNSUPPORTED)
        if backing_store:
            return self.drivers[backing_store]
        if reader.store == "btrfs":
            mount = mounts.holding(lxcpath)
            return self.drivers["btrfs" if mount and mount.fstype == "btrfs" else "dir"]
        return self.drivers["dir" if reader.store == "overlay" else reader.store]


def normalise(rootfs: Rootfs) -> Rootfs:
    """A path without a type, as liblxc would see it: a directory is dir, a file is loop."""
    if rootfs.store:
        return rootfs
    return Rootfs("dir" if os.path.isdir(rootfs.path) else "loop" if os.path.isfile(rootfs.path) else "", rootfs.path)
