# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The storage driver: everything that the collection knows of one backing store.

The life of a clone's root filesystem
-------------------------------------
``place``
    says where the clone's root filesystem will be. Nothing is made; the answer stands in the intent record.
``problems``
    says what would be in the way of N clones, before anything is touched.
``clone``
    makes one. The clone's directory exists and is claimed; a failure leaves debris that ``discard`` removes.
``layers`` or ``rootfs_view``
    let others write into it: directories that can be written beneath without a mount, or a mount nobody else sees.
``damage``
    says what is missing of one that was complete.
``discard``
    removes it, whole or half made; it is content when there is nothing.

A driver knows neither Ansible nor how many clones are made nor what a configuration file is. A new backing store is one file
beside this one and one line in registry.py.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from abc import ABC, abstractmethod
from typing import ClassVar, Iterator

from ansible_collections.fleet.lxc.plugins.module_utils import mounts
from ansible_collections.fleet.lxc.plugins.module_utils.capabilities import Capabilities
from ansible_collections.fleet.lxc.plugins.module_utils.command import Runner
from ansible_collections.fleet.lxc.plugins.module_utils.container import Rootfs
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FAILED, RESOURCES, FleetError

SNAPSHOT, COPY = "snapshot", "copy"
_FICLONE = 0x40049409


class StorageDriver(ABC):
    """One backing store. ``store`` is LXC's type prefix."""

    store: ClassVar[str]
    capabilities: ClassVar[Capabilities]

    def __init__(self, runner: Runner):
        self.runner = runner

    @abstractmethod
    def place(self, source: Rootfs, directory: str) -> Rootfs:
        """Where the root filesystem of a clone goes whose container directory is ``directory``."""

    def problems(self, source: Rootfs, lxcpath: str, method: str, reader: StorageDriver, count: int) -> list[FleetError]:
        """What would be in the way of ``count`` clones of a source below an lxcpath; empty when nothing is.

        :param reader: the driver of the source's store.
        """
        return []

    @abstractmethod
    def create(self, rootfs: Rootfs, size: int | None = None, fstype: str | None = None) -> None:
        """Make an empty root filesystem.

        :param size: bytes, for stores that are sized ahead.
        :param fstype: the filesystem to make, for stores that hold one.
        :raises FleetError: FAILED.
        """

    @abstractmethod
    def clone(self, source: Rootfs, target: Rootfs, method: str, reader: StorageDriver) -> None:
        """Make a clone's root filesystem at the place that ``place`` gave.

        :raises FleetError: FAILED.
        """

    def layers(self, rootfs: Rootfs) -> list[str] | None:
        """The directories whose union the guest sees, the writable one first; None when only a mount shows it."""
        return [rootfs.path]

    @contextlib.contextmanager
    def rootfs_view(self, rootfs: Rootfs, point: str, writable: bool = False) -> Iterator[str]:
        """Yield a path at which the whole root filesystem is seen.

        :param point: an existing directory that may be mounted upon; call this in :func:`mounts.in_private_mounts`.
        """
        yield rootfs.path

    @abstractmethod
    def damage(self, rootfs: Rootfs) -> str:
        """What is missing of a root filesystem that was complete; '' when it is whole."""

    def surroundings(self, rootfs: Rootfs) -> list[str]:
        """The directories around a root filesystem that an unprivileged container's root owns, as liblxc has it."""
        return []

    def lower_of(self, rootfs: Rootfs) -> list[str]:
        """The directories or devices without which this root filesystem is lost."""
        return []

    def runs_on(self, rootfs: Rootfs) -> int | None:
        """The pid of a process whose root directory is this root filesystem, under whatever name it was started."""
        try:
            own = os.stat(rootfs.path)
        except OSError:
            return None
        for pid, stat, _mount in mounts.roots():
            if (stat.st_dev, stat.st_ino) == (own.st_dev, own.st_ino):
                return pid
        return None

    def landmarks(self, rootfs: Rootfs) -> list[str]:
        """Paths whose device, inode and times show that the root filesystem was changed; beside those within the guest."""
        return [rootfs.path]

    @abstractmethod
    def discard(self, rootfs: Rootfs) -> None:
        """Remove a root filesystem, complete or not; the container's directory is the caller's."""

    def reflinks(self, source: Rootfs, lxcpath: str) -> bool:
        """Whether a copy of the source would share its blocks."""
        return self.capabilities.reflink and can_reflink(os.path.dirname(source.path), lxcpath)

    def used(self, rootfs: Rootfs) -> int:
        """Bytes on disk that a full copy of this root filesystem takes."""
        return tree_size(rootfs.path)


def can_reflink(one: str, other: str) -> bool:
    """Whether FICLONE works between two directories; asked with files that never get a name (open(2), O_TMPFILE)."""
    try:
        a = os.open(one, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError:
        return False
    try:
        b = os.open(other, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError:
        os.close(a)
        return False
    try:
        fcntl.ioctl(b, _FICLONE, a)
        return True
    except OSError:
        return False
    finally:
        os.close(a)
        os.close(b)


def tree_size(path: str) -> int:
    """Bytes on disk of a tree, hard links counted once."""
    total, seen, pending = 0, set(), [path]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except OSError:
            continue
        for entry in entries:
            try:
                stat = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                if (stat.st_dev, stat.st_ino) in seen:
                    continue
                seen.add((stat.st_dev, stat.st_ino))
            total += stat.st_blocks * 512
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
    return total


def copy_tree(runner: Runner, source: str, target: str) -> None:
    """Copy a tree whole: owners, modes, times, xattrs, ACLs, hard links, holes, devices. Blocks are shared where they can be."""
    if can_reflink(source, target):
        runner.run(["cp", "--archive", "--reflink=always", "--no-target-directory", source, target])
    else:
        runner.run(["rsync", "-aHAXS", "--numeric-ids", "--delete", source.rstrip("/") + "/", target.rstrip("/") + "/"])


def copy_across(reader: StorageDriver, source: Rootfs, writer: StorageDriver, target: Rootfs, directory: str) -> None:
    """Copy the whole root filesystem of one store into an empty one of another."""
    points = [f"{directory}/rootfs", f"{directory}/fleet.lxc.source"]
    for point in points:
        os.makedirs(point, exist_ok=True)

    def work() -> None:
        with reader.rootfs_view(source, points[1]) as read, writer.rootfs_view(target, points[0], writable=True) as write:
            copy_tree(writer.runner, read, write)

    try:
        mounts.in_private_mounts(work)
    finally:
        os.rmdir(points[1])


def remove_tree(path: str) -> None:
    """Remove a directory and all below it; no symlink is followed and no mount entered.

    :raises FleetError: RESOURCES while something is mounted there, FAILED otherwise.
    """
    mounted = mounts.below(path)
    if mounted:
        raise FleetError(f"{path} is not removed", why=f"something is mounted at {mounted[0]}", mend=f"Unmount it (umount {mounted[0]}).", kind=RESOURCES)
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise FleetError(f"cannot remove {path}", why=str(error), kind=FAILED) from error


def not_enough_space(lxcpath: str, needed: int, count: int) -> FleetError | None:
    """The refusal when a filesystem has not the room for ``count`` times ``needed`` bytes."""
    stat = os.statvfs(lxcpath)
    free = stat.f_bavail * stat.f_frsize
    if needed * count <= free:
        return None
    return FleetError(
        f"{count} full copies need {needed * count / 2**20:,.0f} MiB below {lxcpath}, where {free / 2**20:,.0f} MiB are free",
        mend="Make room, name fewer clones, or use method: snapshot.",
        kind=RESOURCES,
    )
