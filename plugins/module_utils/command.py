# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only place that starts a process.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from typing import Any, Iterator, Mapping, Sequence

from ansible_collections.fleet.lxc.plugins.module_utils.errors import FAILED, RESOURCES, TIMEOUT, FleetError

PACKAGES = {
    "rsync": "rsync",
    "btrfs": "btrfs-progs",
    "mount": "mount",
    "tar": "tar",
    "cp": "coreutils",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "xfs_admin": "xfsprogs",
    "xfs_growfs": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "btrfstune": "btrfs-progs",
    "resize2fs": "e2fsprogs",
    "lvm": "lvm2",
    "lvs": "lvm2",
    "vgs": "lvm2",
    "pvs": "lvm2",
    "zfs": "zfsutils-linux",
    "zpool": "zfsutils-linux",
    "wipefs": "util-linux",
    "lxc-create": "lxc",
    "lxc-start": "lxc",
    "lxc-stop": "lxc",
    "lxc-ls": "lxc",
    "lxc-attach": "lxc",
}
_KEPT_OUTPUT, _LONGEST_LINE = 4096, 600
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Result:
    argv: tuple[str, ...]
    rc: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        """What the command said of its failure, in one line."""
        text = self.stderr.strip() or self.stdout.strip()
        return " | ".join(line.strip() for line in text.splitlines()[-6:]) or f"exit status {self.rc}, without a message"


class Running:
    """A command under way. Two descriptors to poll: ``end`` is readable when it has ended, ``output`` when it has said something."""

    def __init__(self, process: subprocess.Popen):
        self._process, self._tail, self.end = process, b"", -1
        self.output = process.stdout.fileno()
        os.set_blocking(self.output, False)
        try:
            self.end = os.pidfd_open(process.pid)
        except OSError:
            self.kill()
            raise

    def read(self) -> bool:
        """Take what it has said, of which the end is kept; False when nothing more will come."""
        try:
            said = os.read(self.output, 65536)
        except BlockingIOError:
            return True
        self._tail = (self._tail + said)[-_KEPT_OUTPUT:]
        return bool(said)

    @property
    def said(self) -> str:
        """The last lines of its output, errors among them, in one."""
        return one_line(self._tail.decode("utf-8", "replace"), 3)

    def finish(self) -> int:
        """Its exit status, once it has ended. What a failed one left in its process group is ended, too."""
        self.read()
        # What a successful one left may hold the pipe open: that is not waited for.
        self._close()
        if os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT).si_status:
            self._kill_group()  # while the number cannot be another's
        return self._process.wait()

    def kill(self) -> None:
        """End it with all that it started in its process group."""
        self._kill_group()
        self.read()
        self._close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)  # one in a frozen cgroup ends when that thaws

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _close(self) -> None:
        self._process.stdout.close()
        if self.end >= 0:
            os.close(self.end)
        self.end = -1


def one_line(text: str, last: int) -> str:
    """The last lines of a text in one, control characters left out."""
    lines = ["".join(character for character in line if character.isprintable()).strip() for line in text.splitlines()]
    return " | ".join([line for line in lines if line][-last:])[-_LONGEST_LINE:]


class Runner:
    """Runs commands: argv in, :class:`Result` out; C.UTF-8, a time limit, and no process left behind after it."""

    def __init__(self, timeout: float = 600.0):
        self.timeout = timeout
        self._kept: tuple[int, ...] = ()

    @contextlib.contextmanager
    def keeping(self, descriptors: Sequence[int]) -> Iterator[None]:
        """Let what is started hold our locks with us: should we be killed, they are free only when it has ended, too."""
        self._kept = tuple(descriptors)
        try:
            yield
        finally:
            self._kept = ()

    def which(self, tool: str) -> str | None:
        return shutil.which(tool, path=os.environ.get("PATH", "") + ":" + SYSTEM_PATH)

    def require(self, *tools: str) -> None:
        """:raises FleetError: RESOURCES, when a tool is not installed; names its package."""
        for tool in tools:
            if not self.which(tool):
                package = PACKAGES.get(tool, tool)
                raise FleetError(
                    f"the command {tool} is missing on this host",
                    mend=f"Install the package {package} (apt-get install {package}).",
                    kind=RESOURCES,
                )

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float | None = None,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        container: str | None = None,
        daemon: bool = False,
    ) -> Result:
        """Run a command and wait for it.

        :param timeout: seconds; default is the runner's.
        :param check: raise when the exit status is not 0.
        :param container: named in the error.
        :param daemon: it leaves a process behind, which must not keep our locks.
        :raises FleetError: FAILED or TIMEOUT.
        """
        limit = self.timeout if timeout is None else timeout
        process = self._popen(argv, env or {}, container, stderr=subprocess.PIPE, pass_fds=() if daemon else self._kept, text=True, errors="surrogateescape")
        try:
            stdout, stderr = process.communicate(timeout=limit)
        except BaseException as error:
            # An interrupt, too: what is undone then must not be written any more.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise FleetError(
                f"{argv[0]} took longer than {limit:g} s and was ended",
                container=container,
                mend="Raise the option timeout.",
                kind=TIMEOUT,
            ) from None
        result = Result(tuple(argv), process.returncode, stdout, stderr)
        if check and result.rc != 0:
            raise FleetError(f"{' '.join(argv[:8])} failed", container=container, why=result.said, kind=FAILED)
        return result

    def start(self, argv: Sequence[str], *, container: str | None = None) -> Running:
        """Begin a command whose end and output the caller polls for, as one of many. It holds none of our locks.

        :raises FleetError: FAILED.
        """
        return Running(self._popen(argv, {}, container, stderr=subprocess.STDOUT))

    def _popen(self, argv: Sequence[str], env: Mapping[str, str], container: str | None, **more: Any) -> subprocess.Popen:
        # LVM tells of each descriptor that it inherits, and locks are such.
        environment = dict(os.environ, LC_ALL="C.UTF-8", LVM_SUPPRESS_FD_WARNINGS="1", PATH=os.environ.get("PATH", "") + ":" + SYSTEM_PATH)
        environment.update(env)
        try:
            return subprocess.Popen(list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment, start_new_session=True, **more)
        except OSError as error:
            self.require(argv[0])
            raise FleetError(f"cannot run {argv[0]}", container=container, why=str(error), kind=FAILED) from error
