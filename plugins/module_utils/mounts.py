# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The kernel's view of mounts: what lies on which filesystem, what runs on which root, and mounts nobody else sees.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import threading
import time
from dataclasses import dataclass
from typing import Callable, Iterator, Tuple, TypeVar

from ansible_collections.fleet.lxc.plugins.module_utils.errors import FAILED, RESOURCES, FleetError

T = TypeVar("T")
_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REC, _MS_SLAVE = 1, 2, 4, 0x4000, 1 << 19
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    device: str  # major:minor
    point: str
    fstype: str
    options: str
    super_options: str
    source: str = ""

    @property
    def read_only(self) -> bool:
        return "ro" in self.options.split(",") or "ro" in self.super_options.split(",")


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match.group(1), 8)), text)


def table(path: str = "/proc/thread-self/mountinfo") -> list[Mount]:
    """The mounts of a namespace, as proc(5) describes mountinfo; empty when its process is gone."""
    mounts = []
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                left, _dash, right = line.partition(" - ")
                words, rest = left.split(" "), right.split(" ")
                mounts.append(
                    Mount(words[2], _unescape(words[4]), rest[0], words[5], _unescape(rest[2].rstrip("\n")) if len(rest) > 2 else "", _unescape(rest[1]))
                )
    except OSError:
        pass
    return mounts


def holding(path: str, mounts: list[Mount] | None = None) -> Mount | None:
    """The mount on which an existing path lies."""
    path = os.path.realpath(path)
    best = None
    for mount in table() if mounts is None else mounts:
        if (path == mount.point or path.startswith(mount.point.rstrip("/") + "/")) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def below(path: str, mounts: list[Mount] | None = None) -> list[str]:
    """Mount points at or beneath a path."""
    path = os.path.realpath(path)
    return [m.point for m in (table() if mounts is None else mounts) if m.point == path or m.point.startswith(path + "/")]


Root = Tuple[int, os.stat_result, Mount]


def roots() -> Iterator[Root]:
    """The root directory of each mount namespace but ours: (a pid in it, its stat, its mount).

    This is how a container is found that was started from another lxcpath, or under another name.
    """
    seen = {_namespace("self")}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        namespace = _namespace(entry)
        if namespace is None or namespace in seen:
            continue
        try:
            stat = os.stat(f"/proc/{entry}/root")
        except OSError:
            continue
        seen.add(namespace)
        for mount in table(f"/proc/{entry}/mountinfo"):
            if mount.point == "/":
                yield int(entry), stat, mount
                break


def is_ours(pid: int, path: str) -> bool:
    """Whether a path that a mount of a container names is what we know by that path.

    Mount options are as whoever mounted wrote them, in the mount namespace of the container's monitor: in a nested host or a
    private namespace the same words can mean another directory. When in doubt it is ours.

    :param pid: a process of the container.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            parent = file.read().rpartition(")")[2].split()[1]
        return os.path.samestat(os.stat(f"/proc/{parent}/root{path}"), os.stat(path))
    except FileNotFoundError:
        return not os.path.exists(path) or _namespace(str(pid)) is None
    except OSError:
        return True


def _namespace(pid: str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return None


def in_private_mounts(work: Callable[[], T]) -> T:
    """Run a function in a thread with a mount namespace of its own.

    What it mounts is seen by itself and the commands that it runs, and vanishes with it, even when it is killed.
    (unshare(2): CLONE_NEWNS concerns the calling thread alone.)

    :raises FleetError: RESOURCES when the kernel does not let us.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(_CLONE_NEWNS) != 0 or libc.mount(None, b"/", None, _MS_REC | _MS_SLAVE, None) != 0:
                raise FleetError("cannot make a mount namespace", why=os.strerror(ctypes.get_errno()), mend="Run as root (become: true).", kind=RESOURCES)
            outcome.append(work())
        except BaseException as error:  # pylint: disable=broad-exception-caught
            failure.append(error)

    thread = threading.Thread(target=run, name="private-mounts")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def mount(source: str, point: str, fstype: str, writable: bool, devices: bool, options: str = "") -> None:
    """Mount a filesystem by mount(2): a fleet mounts one for each clone, and a process for each is most of what that takes.

    :param devices: its set-uid programs and device nodes have power over this host.
    :param options: what the filesystem itself is told.
    :raises FleetError: FAILED.
    """
    flags = (0 if writable else _MS_RDONLY) | (0 if devices else _MS_NOSUID | _MS_NODEV)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(os.fsencode(source), os.fsencode(point), fstype.encode(), ctypes.c_ulong(flags), options.encode()) != 0:
        raise FleetError(f"cannot mount {source} at {point}", why=os.strerror(ctypes.get_errno()), mend="The kernel says more (dmesg).", kind=FAILED)


def unmount(point: str) -> None:
    """Unmount what a private namespace mounted. A process that another thread starts has our open files until it is the program that
    it shall run; for that moment the kernel calls the mount busy.

    :raises FleetError: FAILED.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    limit = time.monotonic() + 5
    while libc.umount2(os.fsencode(point), 0) != 0:
        number = ctypes.get_errno()
        if number != errno.EBUSY or time.monotonic() > limit:
            raise FleetError(f"cannot unmount {point}", why=os.strerror(number), kind=FAILED)
        time.sleep(0.02)
