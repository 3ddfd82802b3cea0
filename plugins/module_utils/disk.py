# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A block device, or a sparse file in its place, that storage for containers is to be made on: what it holds, who uses it.

What is not empty is refused; only :func:`clear` overwrites anything.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import stat as modes
from dataclasses import dataclass
from typing import NoReturn

from ansible_collections.fleet.lxc.plugins.module_utils import mounts
from ansible_collections.fleet.lxc.plugins.module_utils.command import Runner
from ansible_collections.fleet.lxc.plugins.module_utils.errors import CONFLICT, INVALID, MISSING, FleetError

_END = 1 << 20
_MODE = 0o600  # of a file that is made


@dataclass(frozen=True)
class Signature:
    """One thing that libblkid knows by its magic number."""

    type: str
    label: str
    uuid: str

    def __str__(self) -> str:
        return f"{self.type} (label {self.label})" if self.label else self.type


class Disk:
    """Where storage is to be made.

    :param device: a block device.
    :param file: a file instead, sparse and made where it is missing.
    :param size: that file's, in bytes.
    """

    def __init__(self, runner: Runner, device: str | None = None, file: str | None = None, size: int | None = None):
        self.runner, self.file, self.size = runner, file, size
        self.path = file or (os.path.realpath(device) if device else "")
        if bool(device) == bool(file) or bool(file) != bool(size):
            raise FleetError("give either a device, or a file with its size", kind=INVALID)
        if not (file or device).startswith("/"):
            raise FleetError(f"{file or device} is no absolute path", kind=INVALID)
        if device and not os.path.exists(device):
            raise FleetError(f"there is no device {device}", mend="See lsblk.", kind=MISSING)
        kind = os.lstat(self.path).st_mode if os.path.lexists(self.path) else None
        if kind and not (modes.S_ISREG(kind) if file else modes.S_ISBLK(kind)):
            raise FleetError(f"{self.path} is no {'regular file' if file else 'block device'}", kind=INVALID)

    def signatures(self) -> list[Signature]:
        """What lies on it; empty for a file that is yet to be made."""
        return signatures(self.runner, self.path)

    def is_there(self) -> bool:
        return os.path.exists(self.path)

    def holds(self, kind: str) -> Signature | None:
        """Its signature of a type when that is the only one."""
        found = self.signatures()
        return found[0] if found and {one.type for one in found} == {kind} else None

    def must_be_empty(self) -> None:
        """:raises FleetError: CONFLICT with what is on it and what uses it."""
        there = self.signatures()
        found = [f"it holds {', '.join(dict.fromkeys(map(str, there)))}"] if there else []
        found += self._users()
        if not found and self.is_there() and (_has_data(self.path) if self.file else _has_ends(self.path)):
            found.append("it holds data of an unknown kind")
        if found:
            self.refuse("; ".join(found))

    def find(self, kind: str, label: str) -> str | None:
        """The path that has a signature with a label: its own, or that of a partition."""
        there = [self.path, *self.partitions()] if self.is_there() else []
        return next((path for path in there if any((one.type, one.label) == (kind, label) for one in signatures(self.runner, path))), None)

    def was_just_made(self) -> bool:
        """Whether it is a file as :meth:`make_file` and :meth:`attach` leave it, after a cut: all of it a hole, and nobody uses it."""
        loops = self.loops()
        if len(loops) != 1 or not _shows_all(loops[0]):
            return False
        stat = os.stat(self.file)
        if (stat.st_uid, modes.S_IMODE(stat.st_mode)) != (0, _MODE) or stat.st_size < self.size or _has_data(self.file):
            return False
        try:
            Disk(self.runner, device=loops[0]).must_be_empty()
        except FleetError:
            return False
        return True

    def refuse(self, why: str) -> NoReturn:
        """:raises FleetError: CONFLICT, always."""
        members = [] if self.file else self._members()
        if self.file:
            mend = "Name another file, or remove this one (see losetup) if nothing in it is needed."
        elif members:
            # The answer to a pool that is not imported must not be that which destroys it.
            mend = f"Name another device. What is there can be brought back: {'; '.join(members)}."
        else:
            mend = (
                f"Name another device. If nothing on it is needed, end what uses it (see lsblk {self.path}) and clear it: "
                f"wipefs --all {self.path} && blkdiscard --zeroout {self.path} (its first and last MiB are what must read as zero)."
            )
        raise FleetError(f"{self.path} is not empty and is left as it is", why=why, mend=mend, kind=CONFLICT)

    def _members(self) -> list[str]:
        """How the pool or VG that it belongs to, or a partition of it, is brought back."""
        found = {(path, one) for path in [self.path, *self.partitions()] for one in signatures(self.runner, path)}
        pools = [f"zpool import -d {path} {one.label}" for path, one in found if one.type == "zfs_member"]
        groups = [f"vgchange -ay for the VG on {path} (pvs names it; pvremove {path} where there is none)" for path, one in found if one.type == "LVM2_member"]
        return sorted({*pools, *groups})

    def _users(self) -> list[str]:
        if self.file:
            return [f"it is attached as {loop}" for loop in self.loops()]
        sysfs = _sysfs(self.path)
        device = os.path.basename(sysfs)
        points = [mount.point for mount in mounts.table() if mount.device == device or os.path.realpath(mount.source) == self.path]
        users = [f"it is mounted at {point}" for point in points]
        for path in self.partitions():
            held = ", ".join(dict.fromkeys(map(str, signatures(self.runner, path))))
            users.append(f"it has the partition {os.path.basename(path)}" + (f" with {held}" if held else ""))
        users += [f"{os.path.basename(path)} stands on it" for path in sorted(glob.glob(f"{sysfs}/holders/*"))]
        with open("/proc/swaps", encoding="utf-8") as file:
            users += ["it is swap space" for line in file if os.path.realpath(line.split()[0]) == self.path]
        if not users:
            try:
                # The kernel's own claims are exclusive, and known here whatever mount namespace they were made in.
                os.close(os.open(self.path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                users.append("it is in use")
        return users

    def loops(self) -> list[str]:
        """The loop devices that stand on the file."""
        return loops_on(self.file) if self.file and self.is_there() else []

    def places(self) -> set[str]:
        """The paths by which storage that lies on all of it knows it: its own, and the loop devices that show the whole file."""
        return {self.path, *(loop for loop in self.loops() if _shows_all(loop))}

    def partitions(self) -> list[str]:
        """The partitions of a device."""
        return [] if self.file else [_path_of(os.path.dirname(path)) for path in sorted(glob.glob(f"{_sysfs(self.path)}/*/partition"))]

    def make_file(self) -> None:
        """Make the file, all of it a hole."""
        os.makedirs(os.path.dirname(self.file), exist_ok=True)
        with open(os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, _MODE), "wb") as file:
            file.truncate(max(self.size, os.fstat(file.fileno()).st_size))

    def attach(self) -> str:
        """The block device: the file's loop device, made when there is none."""
        if not self.file:
            return self.path
        loops = self.loops()
        if loops:
            return loops[0]
        if not os.path.exists("/dev/loop-control"):
            self.runner.run(["modprobe", "loop"], check=False)
        return self.runner.run(["losetup", "--find", "--show", self.file]).stdout.strip()

    def detach(self) -> None:
        for loop in self.loops():
            self.runner.run(["losetup", "--detach", loop])


def signatures(runner: Runner, path: str) -> list[Signature]:
    """What libblkid recognises on a device or in a file; reads only."""
    if not os.path.exists(path):
        return []
    said = runner.run(["wipefs", "--no-act", "--json", path]).stdout
    rows = json.loads(said)["signatures"] if said.strip() else []
    return [Signature(row["type"], row["label"] or "", row["uuid"] or "") for row in rows]


def clear(runner: Runner, path: str) -> None:
    """Leave a device as a blank one looks to :meth:`Disk.must_be_empty`, when what lay on it is gone."""
    runner.run(["wipefs", "--all", path])
    # The kernel refuses it while anything uses the device.
    with open(os.open(path, os.O_WRONLY | os.O_EXCL | os.O_CLOEXEC), "wb") as file:
        size = file.seek(0, os.SEEK_END)
        for place in _ends(size):
            file.seek(place)
            file.write(bytes(min(_END, size)))
        file.flush()
        os.fsync(file.fileno())


def is_block_device(path: str) -> bool:
    return os.path.exists(path) and modes.S_ISBLK(os.stat(path).st_mode)


def disk_of_zfs(partition: str) -> str | None:
    """The disk whose partitions ZFS made when it was given all of it: 1 for itself, 9 in reserve, and no other."""
    there = os.path.realpath(_sysfs(partition)) if is_block_device(partition) else ""
    if not os.path.exists(f"{there}/partition"):
        return None
    numbers = {_read(path) for path in glob.glob(f"{os.path.dirname(there)}/*/partition")}
    named = re.search(r"^PARTNAME=zfs-[0-9a-f]{16}$", _read(f"{there}/uevent"), re.M)
    return _path_of(os.path.dirname(there)) if named and numbers <= {"1", "9"} else None


def _ends(size: int) -> set[int]:
    """Where the first and the last MiB begin; what lies on a device has its description in one of them."""
    return {0, max(0, size - _END)}


def _sysfs(device: str) -> str:
    number = os.stat(device).st_rdev
    return f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"


def _path_of(sysfs: str) -> str:
    return "/dev/" + os.path.basename(sysfs).replace("!", "/")


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read().rstrip("\n")


def _shows_all(loop: str) -> bool:
    return {_read(f"/sys/block/{os.path.basename(loop)}/loop/{what}") for what in ("offset", "sizelimit")} == {"0"}


def goes_when_unmounted(device: str) -> bool:
    """Whether it is a loop device that a mount made for itself."""
    flag = f"/sys/block/{os.path.basename(device)}/loop/autoclear"
    return os.path.exists(flag) and _read(flag) == "1"


def loop_devices() -> dict[str, str]:
    """{loop device: the file that it stands on}."""
    found = {}
    for path in sorted(glob.glob("/sys/block/loop*/loop/backing_file")):
        try:
            found[f"/dev/{path.split('/')[3]}"] = _read(path)
        except OSError:
            continue
    return found


def loops_on(path: str) -> list[str]:
    """The loop devices that stand on a file, under whatever name."""
    return [loop for loop, file in loop_devices().items() if _same(file, path)]


def _same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _has_data(path: str) -> bool:
    """Whether a file is more than one hole (lseek(2), SEEK_DATA)."""
    with open(path, "rb") as file:
        try:
            os.lseek(file.fileno(), 0, os.SEEK_DATA)
        except OSError as error:
            return error.errno != errno.ENXIO
    return True


def _has_ends(device: str) -> bool:
    """Whether there is anything in the first and the last MiB of a device."""
    with open(device, "rb") as file:
        for place in _ends(file.seek(0, os.SEEK_END)):
            file.seek(place)
            if any(file.read(_END)):
                return True
    return False
