# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A filesystem within a device or a file: made, recognised, mounted beside its copies, grown. What loop and LVM share.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from typing import Iterator

from ansible_collections.fleet.lxc.plugins.module_utils import mounts
from ansible_collections.fleet.lxc.plugins.module_utils.command import Runner
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FAILED, INVALID, RESOURCES, UNSUPPORTED, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.records import syncfs
from ansible_collections.fleet.lxc.plugins.module_utils.storage.driver import Order

_MIB = 1 << 20
DEFAULT_SIZE = 1 << 30  # LXC's own
DEFAULT_TYPE = "ext4"
# XFS and btrfs do not mount twice under one UUID.
_NEW_UUID = {"xfs": ["xfs_admin", "-U", "generate"], "btrfs": ["btrfstune", "-f", "-u"]}
_GROW = {"ext4": ["resize2fs", "{device}"], "xfs": ["xfs_growfs", "{point}"], "btrfs": ["btrfs", "filesystem", "resize", "max", "{point}"]}
_LEAST_BTRFS = 256 << 20  # the kernel resizes to no less (btrfs_ioctl_resize)
_BESIDE = {"xfs": "nouuid"}  # to be mounted beside an origin that has the same UUID still
_NO_REPLAY = (os.strerror(errno.EROFS), os.strerror(errno.EIO))  # ext4 and XFS, btrfs


def filesystem_in(path: str) -> str:
    """The filesystem in a device or file, told by its magic number; '' when it is none that we know.

    :raises FleetError: RESOURCES when it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(0x10048)
    except OSError as error:
        raise FleetError(f"cannot read {path}", why=str(error), mend="The kernel says more (dmesg).", kind=RESOURCES) from error
    if head[:4] == b"XFSB":
        return "xfs"
    if head[0x10040:0x10048] == b"_BHRfS_M":
        return "btrfs"
    return "ext4" if head[0x438:0x43A] == b"\x53\xef" else ""


def measures(order: Order) -> tuple[int, str]:
    """Size and filesystem of a full copy: as asked, else those of the source, else what holds it."""
    storage, source = order.storage, order.reader.block_filesystem(order.source)
    size, fstype = source or (0, "")
    size = storage.size or size or max(DEFAULT_SIZE, order.reader.used(order.source) * 5 // 4)
    return size, storage.fstype or fstype or DEFAULT_TYPE


def too_small(size: int, used: int) -> FleetError:
    return FleetError(f"storage.size {size} is less than the {used} bytes that the source holds", mend="Raise it.", kind=INVALID)


def make(runner: Runner, device: str, fstype: str | None) -> None:
    """Make a filesystem in a device or file; what was there is gone."""
    fstype = fstype or DEFAULT_TYPE
    runner.run([f"mkfs.{fstype}", "-q", "-F" if fstype == "ext4" else "-f", device])


def require(runner: Runner, fstype: str | None) -> None:
    """:raises FleetError: RESOURCES when the tool that makes this filesystem is missing."""
    runner.require(f"mkfs.{fstype or DEFAULT_TYPE}")


def require_renewal(runner: Runner, device: str) -> None:
    """:raises FleetError: RESOURCES when the tool that gives this device's filesystem a new UUID is missing."""
    renewal = _NEW_UUID.get(filesystem_in(device))
    if renewal:
        runner.require(renewal[0])


def renewal_cost(device: str) -> int:
    """Bytes that a copy of this device's filesystem no longer shares with it once it has a UUID of its own.

    xfs_admin writes the whole log anew, which bears the UUID; it is 64 MiB at least. btrfs and ext4 cost next to nothing.

    :raises FleetError: RESOURCES when it cannot be read.
    """
    if filesystem_in(device) != "xfs":
        return 0
    with open(device, "rb") as file:
        head = file.read(100)
    (block,), (logstart,), (logblocks,) = struct.unpack_from(">I", head, 4), struct.unpack_from(">Q", head, 48), struct.unpack_from(">I", head, 96)
    return block * logblocks + _MIB if logstart else _MIB  # and a superblock in each allocation group


def renew(runner: Runner, device: str) -> None:
    """Give a copied filesystem a UUID of its own, where it needs one to be mounted beside its origin."""
    renewal = _NEW_UUID.get(filesystem_in(device))
    if renewal:
        runner.run([*renewal, device])


@contextlib.contextmanager
def view(runner: Runner, device: str, point: str, writable: bool, devices: bool = False, loop: bool = False) -> Iterator[str]:
    """Mount a filesystem; unless asked for, its set-uid programs and device nodes have no power over the host.

    What was committed to a journal before a crash belongs to it, so the kernel replays that, for a read-only mount as well.
    """
    fstype = filesystem_in(device)
    options = "" if writable else _BESIDE.get(fstype, "")
    if fstype and stat.S_ISBLK(os.stat(device).st_mode):
        _mount_device(device, point, fstype, writable, devices, options)
    else:
        words = [*(["loop"] if loop else []), *([] if devices else ["nodev", "nosuid"]), *([options] if options else [])]
        _mount_file(runner, device, point, words, writable)
    try:
        # Open from the beginning, it learns of every write that failed since (syncfs(2)); of a full thin pool nothing else tells.
        directory = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield point
            if writable:
                syncfs(directory, f"Look at the room that is left where {device} is, and at what the kernel says (dmesg).")
        finally:
            os.close(directory)
    finally:
        mounts.unmount(point)


def _mount_device(device: str, point: str, fstype: str, writable: bool, devices: bool, options: str) -> None:
    try:
        mounts.mount(device, point, fstype, writable, devices, options)
    except FleetError as error:
        if writable or error.why not in _NO_REPLAY or not _is_read_only(device):
            raise
        raise FleetError(
            f"{device} was not unmounted cleanly",
            why="its journal must be replayed, and the device is read-only",
            mend="Unseal the base and seal it again (lxc_base state=unsealed, then state=sealed).",
            kind=FAILED,
        ) from error


def _is_read_only(device: str) -> bool:
    number = os.stat(device).st_rdev
    with open(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/ro", encoding="ascii") as file:
        return file.read().strip() == "1"


def _mount_file(runner: Runner, path: str, point: str, words: list[str], writable: bool) -> None:
    """Mount a file. A loop device that is read-only lets no journal be replayed: where that is needed, it is done before.

    Read-only ones one at a time: two loop devices over one file know nothing of each other.
    """

    def mount(mode: str) -> None:
        runner.run(["mount", "-o", ",".join([mode, *words]), path, point])

    if writable:
        mount("rw")
        return
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            mount("ro")
        except FleetError as error:
            try:
                mount("rw")
            except FleetError:
                raise error from None
            mounts.unmount(point)
            mount("ro")


def require_growth(runner: Runner, device: str, size: int) -> None:
    """What would be in the way of growing; to be asked before the device or file grows.

    :raises FleetError: UNSUPPORTED for a filesystem or size that we cannot grow to, RESOURCES when the tool is missing.
    """
    fstype = filesystem_in(device)
    if fstype not in _GROW:
        raise FleetError(f"the filesystem in {device} cannot be grown", why="it is neither ext4 nor XFS nor btrfs", kind=UNSUPPORTED)
    runner.require(_GROW[fstype][0])
    if fstype == "btrfs" and size < _LEAST_BTRFS:
        raise FleetError(
            f"the btrfs in {device} cannot be grown to {size} bytes",
            why="the kernel resizes btrfs to no less than 256 MiB",
            mend="Set storage.size to 256M or more.",
            kind=UNSUPPORTED,
        )


def grow(runner: Runner, device: str, point: str, in_use: bool, loop: bool = False) -> None:
    """Let a filesystem take all of its device.

    ext4 that nobody uses is grown where it lies. All else is mounted for that, in a namespace of our own: the kernel knows it for
    the filesystem that a container may have mounted already.

    :raises FleetError: FAILED.
    """
    fstype = filesystem_in(device)
    if fstype == "ext4" and not in_use:
        checked = runner.run(["e2fsck", "-f", "-p", device], check=False)
        if checked.rc > 1:  # 1: errors were corrected (e2fsck(8))
            raise FleetError(f"the filesystem in {device} is damaged and not grown", why=checked.said, mend=f"Run e2fsck -f {device}.", kind=FAILED)
        runner.run(["resize2fs", device])
        return

    def work() -> None:
        with view(runner, device, point, True, loop=loop):
            actual = next(mount.source for mount in reversed(mounts.table()) if mount.point == point)
            runner.run([part.format(device=actual, point=point) for part in _GROW[fstype]])

    mounts.in_private_mounts(work)
