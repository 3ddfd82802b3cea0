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
``prepare``
    does once what N clones need once.
``clone``
    makes one. The clone's directory exists and is claimed; a failure leaves debris that ``discard`` removes. What lies outside of
    that directory bears the clone's id from the very command that makes it.
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
from dataclasses import dataclass
from typing import Any, Collection, ClassVar, Iterator, Mapping, Sequence

from ansible_collections.fleet.lxc.plugins.module_utils import mounts
from ansible_collections.fleet.lxc.plugins.module_utils.capabilities import Capabilities
from ansible_collections.fleet.lxc.plugins.module_utils.command import Runner
from ansible_collections.fleet.lxc.plugins.module_utils.container import Rootfs
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FAILED, INVALID, RESOURCES, FleetError

SNAPSHOT, COPY = "snapshot", "copy"
_FICLONE = 0x40049409


@dataclass(frozen=True)
class Storage:
    """The option ``storage``; sizes in bytes, None where the driver chooses."""

    size: int | None = None
    fstype: str | None = None
    vg: str | None = None
    thinpool: str | None = None
    cow_size: int | None = None
    zfs_dataset: str | None = None


@dataclass(frozen=True)
class Order:
    """Clones of one source, as a driver is asked for them.

    :param reader: the driver of the source's store.
    """

    source: Rootfs
    method: str
    lxcpath: str
    reader: StorageDriver
    storage: Storage = Storage()


class StorageDriver(ABC):
    """One backing store. ``store`` is LXC's type prefix."""

    store: ClassVar[str]
    capabilities: ClassVar[Capabilities]
    outside: ClassVar[bool] = False  # its root filesystems lie outside of the container's directory, and bear the container's id
    takes: ClassVar[frozenset[str]] = frozenset()  # the options of Storage that mean something to it

    def __init__(self, runner: Runner):
        self.runner = runner

    def refresh(self) -> None:
        """Forget what was observed: another observation begins."""

    def check(self, rootfs: Rootfs) -> None:
        """:raises FleetError: UNSUPPORTED for a root filesystem of this store that is not to be touched."""

    @abstractmethod
    def home(self, name: str, lxcpath: str, storage: Storage) -> Rootfs:
        """Where the root filesystem of a new container goes."""

    def place(self, order: Order, name: str) -> Rootfs:
        """Where a clone's root filesystem goes."""
        return self.home(name, order.lxcpath, order.storage)

    def problems(self, order: Order, targets: Sequence[Rootfs], swept: Collection[Rootfs] = ()) -> list[FleetError]:
        """What would be in the way of clones; empty when nothing is.

        :param targets: the places that ``place`` gave.
        :param swept: those where an unfinished clone lies, which goes first.
        """
        return []

    def no_place(self, rootfs: Rootfs, storage: Storage, swept: bool = False) -> FleetError | None:
        """Why :meth:`create` would fail here.

        :param swept: what an unfinished container of that name has there goes first.
        """
        return None

    @abstractmethod
    def create(self, rootfs: Rootfs, directory: str, storage: Storage, mark: str) -> None:
        """Make an empty root filesystem.

        :param directory: the container's, which exists.
        :param mark: the container's id.
        :raises FleetError: FAILED.
        """

    def prepare(self, order: Order, targets: Mapping[str, Rootfs]) -> None:
        """Do once what all these clones need.

        :param targets: their places, by the clones' ids.
        :raises FleetError: FAILED.
        """

    @abstractmethod
    def clone(self, order: Order, target: Rootfs, directory: str, mark: str) -> None:
        """Make a clone's root filesystem at the place that ``place`` gave.

        :param directory: the clone's, which exists.
        :param mark: the clone's id.
        :raises FleetError: FAILED.
        """

    def instant(self, order: Order) -> bool:
        """Whether a clone is made without a command or a copy, so that threads would gain nothing."""
        return False

    def counted(self, order: Order) -> bool:
        """Whether LXC itself keeps account of such clones (``lxc_rdepends``, ``lxc_snapshots``)."""
        return False

    def mark(self, rootfs: Rootfs, mark: str) -> None:
        """Give an adopted container's root filesystem our mark."""

    def unmark(self, rootfs: Rootfs) -> None:
        """Undo :meth:`mark`."""

    def seal(self, rootfs: Rootfs, generation: str) -> None:
        """Protect a base's root filesystem by the store's own means, where it has some."""

    def unseal(self, rootfs: Rootfs) -> None:
        """Undo :meth:`seal`.

        :raises FleetError: BUSY while others depend on what the seal made.
        """

    def layers(self, rootfs: Rootfs) -> list[str] | None:
        """The directories whose union the guest sees, the writable one first; None when only a mount shows it."""
        return [rootfs.path]

    @contextlib.contextmanager
    def rootfs_view(self, rootfs: Rootfs, point: str, writable: bool = False, devices: bool = False) -> Iterator[str]:
        """Yield a path at which the whole root filesystem is seen.

        :param point: an existing directory that may be mounted upon; call this in :func:`mounts.in_private_mounts`.
        :param devices: programs will run in it, so its device nodes and set-uid bits must work.
        """
        yield rootfs.path

    def size(self, rootfs: Rootfs) -> int | None:
        """Bytes that the root filesystem can hold, for stores that are sized ahead."""
        return None

    def block_filesystem(self, rootfs: Rootfs) -> tuple[int, str] | None:
        """Bytes and filesystem ('' for one that we do not know) of the device or file around it; None where there is none.

        :raises FleetError: when it cannot be read.
        """
        return None

    def granule(self, rootfs: Rootfs) -> int:
        """Bytes that a size is a multiple of."""
        return 1

    def grow(self, rootfs: Rootfs, size: int, point: str) -> None:
        """Give a root filesystem more room, whether it is in use or not.

        :param point: an existing directory to mount upon in a mount namespace of our own.
        """
        raise FleetError(f"{rootfs} has no size of its own that could grow", mend="Leave storage.size out.", kind=INVALID)

    def headroom(self, rootfs: Rootfs) -> dict[str, Any]:
        """How much room is left where a root filesystem lies."""
        path = rootfs.path if os.path.exists(rootfs.path) else "/"
        stat = os.statvfs(path)
        return {"store": self.store, "available": stat.f_bavail * stat.f_frsize}

    def remark(self, rootfs: Rootfs) -> str:
        """What the operator should know of a root filesystem that is whole still."""
        return ""

    @abstractmethod
    def damage(self, rootfs: Rootfs) -> str:
        """What is missing of a root filesystem that was complete; '' when it is whole."""

    def away(self, rootfs: Rootfs) -> FleetError | None:
        """Why a root filesystem may exist and cannot be seen; None where it can, or is gone for good."""
        return None

    def obstacle(self, rootfs: Rootfs, mark: str | None, going: Collection[str] = ()) -> FleetError | None:
        """Why :meth:`discard` would not remove a root filesystem; asked before anything is stopped or changed.

        :param going: the paths of root filesystems that are removed before it.
        """
        return self.away(rootfs)

    def surroundings(self, rootfs: Rootfs) -> list[str]:
        """The directories around a root filesystem that an unprivileged container's root owns, as liblxc has it."""
        return []

    def lower_of(self, rootfs: Rootfs) -> list[str]:
        """The directories or devices without which this root filesystem is lost."""
        return []

    def minds_writes(self, rootfs: Rootfs) -> bool:
        """Whether a root filesystem that stands on another minds when that one is written to."""
        return not self.capabilities.source_writable_with_clones

    def runs_on(self, rootfs: Rootfs, roots: Sequence[mounts.Root] | None = None) -> int | None:
        """The pid of a process whose root directory is this root filesystem, under whatever name it was started.

        :param roots: what :func:`mounts.roots` found, where many are asked about.
        """
        try:
            own = os.stat(rootfs.path)
        except OSError:
            return None
        for pid, stat, _mount in mounts.roots() if roots is None else roots:
            if (stat.st_dev, stat.st_ino) == (own.st_dev, own.st_ino):
                return pid
        return None

    def signs(self, rootfs: Rootfs) -> list[str]:
        """Facts that differ once the root filesystem was changed; beside those within the guest."""
        stat = os.stat(rootfs.path)
        return [f"{stat.st_ino} {stat.st_ctime_ns} {stat.st_size}"]

    @abstractmethod
    def discard(self, rootfs: Rootfs, mark: str | None = None) -> None:
        """Remove a root filesystem, complete or not; the container's directory is the caller's.

        :param mark: the container's id; what does not bear it stays, for it is another's. None takes what is there.
        It is called when a fresh look found no :meth:`obstacle`.

        :raises FleetError: BUSY where nothing was removed, FAILED.
        """

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
    """Bytes on disk of a tree, hard links counted once and what is mounted in it left out."""
    total, seen, pending, mounted = 0, set(), [path], set(mounts.below(path))
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
            if entry.is_dir(follow_symlinks=False) and entry.path not in mounted:
                pending.append(entry.path)
    return total


def copy_tree(runner: Runner, source: str, target: str) -> None:
    """Copy a tree whole: owners, modes, times, xattrs, ACLs, hard links, holes, devices. Blocks are shared where they can be.

    What is mounted in it is not of it: it is copied where nothing is.
    """
    mounted = [point for point in mounts.below(source) if point != os.path.realpath(source)]
    if mounted:

        def work() -> None:
            for point in reversed(mounted):
                runner.run(["umount", "--lazy", point])
            copy_tree(runner, source, target)

        mounts.in_private_mounts(work)
    elif can_reflink(source, target):
        runner.run(["cp", "--archive", "--reflink=always", "--no-target-directory", source, target])
    else:
        runner.run(["rsync", "-aHAXS", "--numeric-ids", "--delete", source.rstrip("/") + "/", target.rstrip("/") + "/"])


def copy_across(order: Order, writer: StorageDriver, target: Rootfs, directory: str) -> None:
    """Copy the whole root filesystem of one store into an empty one of another.

    :param directory: the clone's, in which both can be mounted where nobody else sees it.
    """
    points = [f"{directory}/rootfs", f"{directory}/fleet.lxc.source"]
    for point in points:
        os.makedirs(point, exist_ok=True)

    def work() -> None:
        with order.reader.rootfs_view(order.source, points[1]) as read, writer.rootfs_view(target, points[0], writable=True) as write:
            copy_tree(writer.runner, read, write)

    try:
        mounts.in_private_mounts(work)
    finally:
        os.rmdir(points[1])


def remove_tree(path: str, last: str = "") -> None:
    """Remove a directory and all below it; no symlink is followed and no mount entered.

    :param last: a file in it that stays until all else is gone.
    :raises FleetError: RESOURCES while something is mounted there, FAILED otherwise.
    """
    mounted = mounts.below(path)
    if mounted:
        raise FleetError(f"{path} is not removed", why=f"something is mounted at {mounted[0]}", mend=f"Unmount it (umount {mounted[0]}).", kind=RESOURCES)
    try:
        if last:
            for entry in [entry for entry in os.scandir(path) if entry.name != last]:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)
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
