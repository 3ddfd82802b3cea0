# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who may touch which lxcpath and which base at once: flock on files that vanish from use with their process.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from dataclasses import dataclass, field
from typing import Callable, Iterable, Iterator, TypeVar

from ansible_collections.fleet.lxc.plugins.module_utils.errors import BUSY, PASSING, RESOURCES, FleetError

T = TypeVar("T")
DIRECTORY = "/run/fleet-lxc"  # not in /run/lock, where anybody may make a directory of that name before us


@dataclass(frozen=True, order=True)
class Lock:
    """``key`` names the lock's file; sorted by it, bases come after the lxcpath that they are in."""

    key: str
    exclusive: bool
    what: str = field(default="", compare=False)  # two paths may lead to one lxcpath


def lxcpath_lock(lxcpath: str) -> Lock:
    """The right to write below an lxcpath, whatever path leads to it."""
    stat = os.stat(lxcpath)
    return Lock(f"lxcpath-{stat.st_dev}-{stat.st_ino}", True, f"lxcpath {lxcpath}")


def base_lock(lxcpath: str, name: str, exclusive: bool) -> Lock:
    """The right to clone a base (shared) or to change it (exclusive)."""
    stat = os.stat(lxcpath)
    return Lock(f"lxcpath-{stat.st_dev}-{stat.st_ino}-base-{name}", exclusive, f"base {name}")


@contextlib.contextmanager
def hold(locks: Iterable[Lock], timeout: float) -> Iterator[tuple[int, ...]]:
    """Hold several locks, taken in sorted order.

    :param timeout: seconds for all of them together.
    :raises FleetError: BUSY, with the holder's pid.
    """
    directory = _directory()
    deadline = time.monotonic() + timeout
    with contextlib.ExitStack() as stack:
        held: list[int] = []
        for lock in sorted(set(locks)):
            descriptor = os.open(f"{directory}/{lock.key}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, descriptor)
            _take(descriptor, lock, deadline, timeout)
            held.append(descriptor)
        yield tuple(held)


@contextlib.contextmanager
def hold_if_free(locks: Iterable[Lock]) -> Iterator[tuple[int, ...] | None]:
    """Hold several locks if all of them are free at this moment; None otherwise."""
    with contextlib.ExitStack() as stack:
        held = None
        with contextlib.suppress(FleetError):
            held = stack.enter_context(hold(locks, timeout=0))
        yield held


def settled(look: Callable[[], T], locks: Iterable[Lock], timeout: float) -> T:
    """What a look at the host finds; what may look so only while another run works is looked at again under the locks.

    :raises FleetError: of the look, or BUSY when the locks cannot be had.
    """
    try:
        return look()
    except FleetError as error:
        if error.kind not in PASSING:
            raise
    with hold(locks, timeout):
        return look()


def _take(descriptor: int, lock: Lock, deadline: float, timeout: float) -> None:
    # flock(2) knows no time limit, and a signal for one would belong to the whole process: ask again, ever less often.
    pause = 0.005
    while True:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if lock.exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise FleetError(
                    f"{lock.what or lock.key} is in use by another run",
                    why=f"held by pid {_holder(descriptor)} for longer than {timeout:g} s",
                    mend="Wait for it, or raise lock_timeout.",
                    kind=BUSY,
                ) from None
            time.sleep(pause)
            pause = min(0.05, pause * 1.5)


def _holder(descriptor: int) -> str:
    """The pids that hold a file's flock, as /proc/locks tells; of a run that was killed, what it started and still works."""
    own = os.fstat(descriptor)
    with open("/proc/locks", encoding="ascii") as file:
        lines = [line.split() for line in file]
    pids = {words[4] for words in lines if "FLOCK" in words and "->" not in words and any(word.endswith(f":{own.st_ino}") for word in words)}
    alive = {pid for pid in pids if os.path.exists(f"/proc/{pid}")}
    return ", ".join(sorted(alive or _openers(own))) or "unknown"


def _openers(file: os.stat_result) -> set[str]:
    pids = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if any(os.path.samestat(os.stat(entry.path), file) for entry in os.scandir(f"/proc/{pid}/fd") if entry.name.isdigit()):
                pids.add(pid)
    return pids - {str(os.getpid())}


def _directory() -> str:
    directory = DIRECTORY if os.geteuid() == 0 else f"{os.environ.get('XDG_RUNTIME_DIR') or '/tmp'}/fleet-lxc-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        os.makedirs(directory, mode=0o700)
    stat = os.lstat(directory)
    if stat.st_uid != os.geteuid() or not os.path.isdir(directory) or os.path.islink(directory):
        raise FleetError(f"{directory} is not a directory of our own", mend="Remove it.", kind=RESOURCES)
    return directory
