# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One lxcpath of this host: observed in one pass; its containers started, stopped, frozen.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import tempfile
import time
from dataclasses import dataclass, field, replace
from typing import Iterable, Iterator

from ansible_collections.fleet.lxc.plugins.module_utils import mounts
from ansible_collections.fleet.lxc.plugins.module_utils.command import Runner
from ansible_collections.fleet.lxc.plugins.module_utils.config import Config, Includes, check_legacy, read_text, rootfs_value, split_line
from ansible_collections.fleet.lxc.plugins.module_utils.container import (
    BROKEN,
    COMPLETE,
    FOREIGN,
    FROZEN,
    INTENT,
    PROVENANCE,
    RUNNING,
    STOPPED,
    UNFINISHED,
    Container,
    Provenance,
    Rootfs,
)
from ansible_collections.fleet.lxc.plugins.module_utils.errors import BROKEN as DAMAGED
from ansible_collections.fleet.lxc.plugins.module_utils.errors import BUSY, FAILED, INVALID, RESOURCES, TIMEOUT, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.names import abridged
from ansible_collections.fleet.lxc.plugins.module_utils.storage.registry import Registry, normalise

START_LOG = "fleet.lxc.start.log"
_MONITOR = "[lxc monitor] "
_INIT_LISTENS_BY = 3  # seconds


@dataclass
class Observed:
    """What one pass over an lxcpath found."""

    lxcpath: str
    containers: dict[str, Container] = field(default_factory=dict)
    # Storage dependents: the containers whose root filesystem is lost without that of the key.
    dependents: dict[str, list[Container]] = field(default_factory=dict)

    def get(self, name: str) -> Container | None:
        return self.containers.get(name)


def require_root() -> None:
    """:raises FleetError: RESOURCES for anybody but root."""
    if os.geteuid() != 0:
        raise FleetError("containers are made by root", why=f"this runs as uid {os.geteuid()}", mend="Set become: true.", kind=RESOURCES)


def default_lxcpath(runner: Runner) -> str:
    """LXC's own lxcpath, as ``lxc-config`` tells it."""
    return runner.run(["lxc-config", "lxc.lxcpath"]).stdout.strip()


class LxcHost:
    """The containers below one lxcpath."""

    def __init__(self, lxcpath: str, runner: Runner, registry: Registry):
        self.lxcpath, self.runner, self.registry = lxcpath, runner, registry
        self.includes = Includes()

    def check(self, writing: bool) -> None:
        """:raises FleetError: when the lxcpath cannot be used."""
        path = self.lxcpath
        if not path.startswith("/") or os.path.normpath(path) != path:
            raise FleetError(f"lxcpath {path!r} is not a clean absolute path", mend=f"Write {os.path.normpath('/' + path)!r}.", kind=INVALID)
        if any(character.isspace() for character in path):
            raise FleetError(f"lxcpath {path!r} has white space in it", why="LXC's configuration cannot hold it", kind=INVALID)
        if not os.path.exists(path):
            raise FleetError(f"lxcpath {path} does not exist", mend="Create it, or install LXC (role fleet.lxc.host).", kind=INVALID)
        if not os.path.isdir(path):
            raise FleetError(f"lxcpath {path} is not a directory", kind=INVALID)
        mount = mounts.holding(path)
        if writing and mount and mount.read_only:
            raise FleetError(f"lxcpath {path} is on a read-only filesystem", mend=f"Remount {mount.point} writable.", kind=RESOURCES)

    def observe(self) -> Observed:
        """Read every container below the lxcpath once."""
        self.registry.refresh()
        self.includes = Includes()
        states = self.states()
        observed = Observed(self.lxcpath)
        with os.scandir(self.lxcpath) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
        for name in names:
            observed.containers[name] = self._entry(name, *states.get(name, (STOPPED, None)))
        owners: dict[str, set[str]] = {}
        standing: dict[str, list[Container]] = {}
        for container in observed.containers.values():
            # What a broken one once had counts, too; and a copied directory names the path of its original.
            recorded = Rootfs.parse(container.provenance.rootfs) if container.provenance else None
            for rootfs in (container.rootfs, recorded):
                if rootfs:
                    owners.setdefault(rootfs.path, set()).add(container.name)
            for lower in self._lower_of(container):
                standing.setdefault(lower, []).append(container)
        for lower, dependents in standing.items():
            for owner in owners.get(lower, set()) | owners.get(os.path.realpath(lower), set()):
                observed.dependents.setdefault(owner, []).extend(one for one in dependents if one.name != owner)
        return observed

    def _lower_of(self, container: Container) -> list[str]:
        """What a container's root filesystem stands on, as far as its store can tell: one that cannot keeps nobody from the others."""
        driver = self.registry.drivers.get(container.rootfs.store) if container.rootfs and not container.away else None
        with contextlib.suppress(FleetError):
            return driver.lower_of(container.rootfs) if driver else []
        return []

    def read(self, name: str) -> Container | None:
        """One container, read on its own; None when there is none."""
        if not os.path.isdir(f"{self.lxcpath}/{name}"):
            return None
        self.registry.refresh()
        self.includes = Includes()
        return self._entry(name, *self.states().get(name, (STOPPED, None)))

    def expanded(self, container: Container) -> Config:
        """A container's configuration with its includes.

        :raises FleetError: BROKEN when LXC does not load it.
        """
        check_legacy(container.config, container.name)
        try:
            expanded = self.includes.expanded(container.config)
        except FleetError as error:
            raise FleetError(error.what, container=container.name, why=error.why, kind=DAMAGED) from error
        check_legacy(expanded, container.name)
        complaint = self._complaint(self.lxcpath, container.name)
        if complaint:
            raise FleetError("its configuration is not one that LXC loads", container=container.name, why=complaint, kind=DAMAGED)
        return expanded

    def complaint(self, config: Config) -> str:
        """Why LXC would not load a configuration, '' when it would; asked of LXC itself, with a copy outside of any lxcpath."""
        try:
            with tempfile.TemporaryDirectory(prefix="fleet.lxc.") as lxcpath:
                os.mkdir(f"{lxcpath}/probe")
                with open(f"{lxcpath}/probe/config", "w", encoding="utf-8", errors="surrogateescape") as file:
                    # A log file would be made by loading the line alone.
                    file.write(str(Config(line for line in config.lines if (split_line(line) or ("",))[0] != "lxc.log.file")))
                return self._complaint(lxcpath, "probe")
        except OSError as error:
            raise FleetError("cannot try a configuration in the directory for temporary files", why=str(error), kind=RESOURCES) from error

    def _complaint(self, lxcpath: str, name: str) -> str:
        loaded = self.runner.run(["lxc-info", "-P", lxcpath, "-n", name, "-c", "lxc.uts.name", "-l", "ERROR", "-o", "/dev/stderr"], check=False)
        if not loaded.rc:
            return ""
        why = _errors_in(loaded.stderr.splitlines()) or loaded.said
        return re.sub(r'Failed to parse config file "[^"]*" at line', "LXC cannot read the line", why)

    def _entry(self, name: str, state: str, pid: int | None) -> Container:
        """What bears a name below the lxcpath. LXC follows a symlink to a directory elsewhere; we see it, and never take it for ours."""
        path = f"{self.lxcpath}/{name}"
        if not os.path.isdir(path):
            return Container(name, self.lxcpath, FOREIGN, damage="it is no directory")
        container = self._read(name, state, pid)
        return replace(container, kind=FOREIGN, provenance=None) if os.path.islink(path) else container

    def _read(self, name: str, state: str, pid: int | None) -> Container:
        directory = f"{self.lxcpath}/{name}"
        record, intent = self._record(f"{directory}/{PROVENANCE}"), None
        if record is None:
            intent = self._record(f"{directory}/{INTENT}")
            if intent is None:
                # Another run may have renamed the one to the other just now.
                record = self._record(f"{directory}/{PROVENANCE}")
        config, rootfs, damage = None, None, ""
        try:
            config = Config.read(f"{directory}/config")
            rootfs = normalise(Rootfs.parse(rootfs_value(config, name, self.includes)))
        except FileNotFoundError:
            damage = "its configuration file is missing"
        except OSError as error:
            damage = str(error)
        except FleetError as error:
            damage = error.why or error.what
        container = Container(name, self.lxcpath, FOREIGN, state, pid, config, rootfs, None, damage)
        if record is None and intent is None:
            return replace(container, kind=UNFINISHED) if self._bare(directory) else container
        if isinstance(intent, str):
            return replace(container, kind=UNFINISHED)
        ours = record or intent
        if not isinstance(ours, Provenance) or (ours.name, ours.lxcpath) != (name, self.lxcpath):
            return container
        if record is None:
            return replace(container, kind=UNFINISHED, provenance=intent)
        container = replace(container, kind=BROKEN, provenance=record)
        if damage:
            return replace(container, damage=damage)
        try:
            away = self.registry.driver(rootfs).away(rootfs)
            if not away:
                damage = self._damage(rootfs, record)
                return replace(container, damage=damage) if damage else self._whole(container)
        except FleetError as error:
            # One store without its tools or its kernel module keeps nobody from the others.
            away = error
        return replace(container, damage=away.what, away=away.mend or "Mend that.")

    def _whole(self, container: Container) -> Container:
        driver, rootfs = self.registry.driver(container.rootfs), container.rootfs
        size = driver.size(rootfs)
        return replace(container, kind=COMPLETE, remark=driver.remark(rootfs), size=size, granule=driver.granule(rootfs) if size else 1)

    def known_elsewhere(self, name: str) -> str | None:
        """The lxcpath below which the record in a container's directory knows it, where that is this very one under another name."""
        record = self._record(f"{self.lxcpath}/{name}/{PROVENANCE}")
        if not isinstance(record, Provenance) or record.name != name or record.lxcpath == self.lxcpath:
            return None
        with contextlib.suppress(OSError):
            if os.path.samefile(record.lxcpath, self.lxcpath):
                return record.lxcpath
        return None

    def dependents_elsewhere(self, container: Container) -> list[Container]:
        """Storage dependents below other lxcpaths. LXC's bookkeeping says where to look, storage says what is so."""
        found = []
        try:
            with open(f"{container.directory}/lxc_snapshots", encoding="utf-8") as file:
                lines = file.read().splitlines()
        except OSError:
            return found
        for lxcpath, name in zip(lines[::2], lines[1::2]):
            if "/" in name or lxcpath == self.lxcpath or (os.path.exists(lxcpath) and os.path.samefile(lxcpath, self.lxcpath)):
                continue
            other = LxcHost(lxcpath, self.runner, self.registry).read(name)
            if other and container.rootfs and container.rootfs.path in self._lower_of(other):
                found.append(other)
        return found

    @staticmethod
    def _record(path: str) -> Provenance | str | None:
        """The record in a file; '' for an empty or zeroed or cut one, which a power cut leaves; None for no file or another's."""
        try:
            text = read_text(path, "replace")
        except OSError:
            return None
        return Provenance.loads(text) or (None if text.rstrip().endswith("}") else "")

    @staticmethod
    def _bare(directory: str) -> bool:
        """An empty directory: a claim that was cut off before its intent, or nobody's."""
        try:
            return not os.listdir(directory)
        except OSError:
            return False

    def _damage(self, rootfs: Rootfs, record: Provenance) -> str:
        if rootfs != normalise(Rootfs.parse(record.rootfs)):
            return f"its lxc.rootfs.path was changed from {record.rootfs} to {rootfs}"
        return self.registry.driver(rootfs).damage(rootfs)

    def states(self) -> dict[str, tuple[str, int | None]]:
        """{name: (running or frozen, pid of its init)} of the containers that are up; no process when none is."""
        if not self._anything_active():
            return {}
        active = self.runner.run(["lxc-ls", "-P", self.lxcpath, "-1", "--active"]).stdout.split()
        if not active:
            return {}
        frozen = set(self.runner.run(["lxc-ls", "-P", self.lxcpath, "-1", "--frozen"]).stdout.split())
        pids = self._init_pids(set(active))
        return {name: (FROZEN if name in frozen else RUNNING, pids.get(name)) for name in active}

    def _anything_active(self) -> bool:
        """Whether a command socket of an LXC monitor is open that may belong here (long paths are hashed by liblxc)."""
        ours = f"@{self.lxcpath.lstrip('/')}/"
        with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                path = line.split(None, 7)[-1].rstrip("\n")
                if path.endswith("/command") and (path.startswith((f"@{self.lxcpath}/", ours, "@lxc/"))):
                    return True
        return False

    def _init_pids(self, names: set[str]) -> dict[str, int]:
        """The init of each container: the child of its monitor."""
        pids = {name: children[0] for _monitor, name, children in self._monitors() if name in names and children}
        for name in names - set(pids):
            answer = self.runner.run(["lxc-info", "-P", self.lxcpath, "-n", name, "-p", "-H"], check=False).stdout.strip()
            if answer.isdigit():
                pids[name] = int(answer)
        return pids

    def _monitors(self) -> Iterator[tuple[int, str, list[int]]]:
        """LXC's monitors of containers of this lxcpath, which their process titles name: (pid, container, children)."""
        prefix = f"{_MONITOR}{self.lxcpath} ".encode()
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    title = file.read(4096)
                if not title.startswith(prefix) or os.stat(f"/proc/{entry}").st_uid != os.geteuid():
                    continue
                if os.readlink(f"/proc/{entry}/ns/pid") != os.readlink("/proc/self/ns/pid"):
                    continue
                with open(f"/proc/{entry}/task/{entry}/children", encoding="ascii") as file:
                    children = [int(pid) for pid in file.read().split()]
            except OSError:
                continue
            yield int(entry), title[len(prefix) :].rstrip(b"\0 ").decode("utf-8", "replace"), children

    @staticmethod
    def life(pid: int | None) -> str | None:
        """What tells one run of a container from the next: boot, monitor (which has read the configuration), and when that began.

        :param pid: the container's init.
        """
        try:
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                boot = file.read().strip()
            monitor = _stat(pid)[1]
            return f"{boot} {monitor} {_stat(monitor)[19]}"
        except OSError:
            return None

    def start(self, name: str, timeout: float) -> None:
        """Start a container; back when LXC says that it runs.

        :raises FleetError: FAILED or TIMEOUT, with LXC's own errors; a container that came up too late is ended.
        """
        log = f"{self.lxcpath}/{name}/{START_LOG}"
        try:
            os.unlink(log)
        except FileNotFoundError:
            pass
        try:
            result = self.runner.run(["lxc-start", "-P", self.lxcpath, "-n", name, "-d", "-o", log, "-l", "ERROR"], timeout=timeout, check=False, daemon=True)
        except FleetError as error:
            self._end(name)
            raise FleetError("did not start in time", container=name, why=str(error), mend=f"See {log}, or raise the option timeout.", kind=TIMEOUT) from error
        if result.rc != 0:
            guard = os.path.join(self.lxcpath, name, "fleet.lxc.guard.refused")
            why = "it is a sealed base" if os.path.exists(guard) else _errors_of(log) or result.said
            raise FleetError("did not start", container=name, why=why, mend=f"See {log}, or run lxc-start -F -n {name} -P {self.lxcpath}.", kind=FAILED)

    def _end(self, name: str) -> None:
        """End a start that takes too long: lxc-start has daemonised by then, and one that hangs in a hook does not heed lxc-stop."""
        with contextlib.suppress(FleetError):
            self.runner.run(["lxc-stop", "-P", self.lxcpath, "-n", name, "-k"], timeout=5, check=False)
        for monitor, monitored, children in self._monitors():
            if monitored == name:
                for pid in (*children, monitor):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def stop(self, name: str, timeout: float, force: bool) -> None:
        """Shut a container down in good order; kill it only if that fails and ``force`` says so.

        An init that has just begun does not listen yet, and the kernel keeps from it what it does not listen for: the halt signal is
        sent a second time.

        :raises FleetError: BUSY when it did not stop.
        """
        common = ["lxc-stop", "-P", self.lxcpath, "-n", name]
        for seconds in (_INIT_LISTENS_BY, timeout - _INIT_LISTENS_BY) if timeout > _INIT_LISTENS_BY else (timeout,):
            self.runner.run([*common, "--nokill", "-t", str(int(seconds))], timeout=seconds + 30, check=False)
            if not self._is_up(name):
                return
        if not force:
            raise FleetError(
                f"did not shut down within {timeout:g} s",
                container=name,
                why="its init did not follow the halt signal",
                mend="Raise stop_timeout, or set force_stop: true to kill it.",
                kind=BUSY,
            )
        self.runner.run([*common, "-k"], container=name, check=False)
        deadline = time.monotonic() + 10
        while self._is_up(name):
            if time.monotonic() > deadline:
                raise FleetError("is still up after lxc-stop", container=name, kind=FAILED)
            time.sleep(0.02)

    def _is_up(self, name: str) -> bool:
        return self.runner.run(["lxc-info", "-P", self.lxcpath, "-n", name, "-s", "-H"], check=False).stdout.strip() not in ("", "STOPPED")

    def freeze(self, name: str) -> None:
        """Freeze a container.

        The freezer of cgroup v1 can stay in FREEZING for ever when a process forks at that moment, and lxc-freeze with it:
        thawing and freezing anew gets it out.

        :raises FleetError: TIMEOUT when that does not help either.
        """
        for attempts_left in (2, 1, 0):
            try:
                self.runner.run(["lxc-freeze", "-P", self.lxcpath, "-n", name], timeout=5, container=name)
                return
            except FleetError as error:
                if error.kind != TIMEOUT or not attempts_left:
                    raise
                self.runner.run(["lxc-unfreeze", "-P", self.lxcpath, "-n", name], timeout=5, check=False)

    def unfreeze(self, name: str) -> None:
        self.runner.run(["lxc-unfreeze", "-P", self.lxcpath, "-n", name], container=name)


def _stat(pid: int | str | None) -> list[str]:
    """The fields of /proc/PID/stat (proc(5)) from the third on: state, parent, …"""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()


def _errors_of(log: str) -> str:
    """The first ERROR lines of an LXC log file."""
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            return _errors_in(file)
    except OSError:
        return ""


def _errors_in(log: Iterable[str]) -> str:
    """The first ERROR lines of an LXC log, their columns cut off."""
    lines = [line for line in log if " ERROR " in line]
    return " | ".join(re.sub(r"^.* ERROR\s+\S+ - \S+ - ", "", line).strip() for line in lines[:3])


def names_of(containers: Iterable[Container]) -> str:
    """A list of containers for an error message: the first ones, and how many more."""
    return abridged(sorted(container.name for container in containers))
