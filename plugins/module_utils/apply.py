# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A plan carried out: claims, clones, records, power, with a bounded pool and nothing half done.

A clone is made in this order, so that whatever happens the next run knows what is whose:

1. its directory (exclusive mkdir: the claim) and the intent record in it;
2. root filesystem, configuration, files, LXC's bookkeeping;
3. when all clones of the call are made, one syncfs; each intent is renamed to its provenance; one more syncfs.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Callable, Iterable

from ansible_collections.fleet.lxc.plugins.module_utils import mounts
from ansible_collections.fleet.lxc.plugins.module_utils import plan as planner
from ansible_collections.fleet.lxc.plugins.module_utils.config import GUARD, Config, mapped_root, split_line
from ansible_collections.fleet.lxc.plugins.module_utils.container import INTENT, PROVENANCE, Container, Provenance, Rootfs
from ansible_collections.fleet.lxc.plugins.module_utils.errors import BUSY, CONFLICT, FAILED, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.guest import GuestRoot
from ansible_collections.fleet.lxc.plugins.module_utils.host import LxcHost
from ansible_collections.fleet.lxc.plugins.module_utils.plan import Creation, Item, Plan
from ansible_collections.fleet.lxc.plugins.module_utils.storage.driver import remove_tree
from ansible_collections.fleet.lxc.plugins.module_utils.storage.registry import Choice

_POWER = {planner.START, planner.STOP, planner.UNFREEZE, planner.FREEZE}


@dataclass
class Settings:
    workers: int
    # A stop is waiting for the guest, not work.
    stops_at_once: int = 32
    on_error: str = "stop"
    stop_timeout: float = 30
    force_stop: bool = False
    timeout: float = 600
    size: int | None = None  # bytes that a root filesystem grows to


@dataclass
class Done:
    """What became of a plan: the steps taken of each container, and what failed."""

    steps: dict[str, list[str]] = field(default_factory=dict)
    failures: dict[str, FleetError] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class Applier:
    def __init__(self, host: LxcHost, settings: Settings, choice: Choice | None = None, source: Container | None = None):
        self.host, self.settings, self.choice, self.source = host, settings, choice, source
        self.owner: tuple[int, int] | None = None
        self.done = Done()

    def apply(self, plan: Plan) -> Done:
        """Take every step of a plan. Failures are collected; with ``on_error: stop`` nothing new is begun after one."""
        going = plan.having(planner.REMOVE) + plan.having(planner.SWEEP)
        owners = {item.name: _owners(item.container) for item in going}
        up = [item for item in going if planner.STOP in _before_it_goes(item)]
        self._each(up, lambda item: self._power(item, _before_it_goes(item)), self.settings.stops_at_once)
        # Removals keep the plan's order: dependents come before what they stand on.
        gone = self._each(plan.having(planner.REMOVE), self._remove, 1)
        gone += self._each(plan.having(planner.SWEEP), self._sweep)
        lost: dict[tuple[str, str], int] = {}
        for item in gone:
            for owner in dict.fromkeys(owners[item.name]):
                lost[owner] = lost.get(owner, 0) + 1
        for owner, count in lost.items():
            keep_snapshots("/".join(owner), removed=count)
        creations = plan.having(planner.CREATE)
        if creations:
            self._create(creations)
        self._each(plan.having(planner.GROW), self._grow, 1)
        self._each(plan.having(planner.CONFIGURE), self._configure, 1)
        going_down, together, alone = [], [], []
        for item in plan.items:
            later = item.steps[len(_before_it_goes(item)) :]
            if _POWER & set(later):
                rootfs = item.creation.rootfs if item.creation else item.container.rootfs
                if planner.START not in later:
                    going_down.append(item)
                elif self.host.registry.driver(rootfs).capabilities.parallel_start:
                    together.append(item)
                else:
                    alone.append(item)
        for items, workers in ((going_down, self.settings.stops_at_once), (together, None), (alone, 1)):
            self._each(items, lambda item: self._power(item, item.steps[len(_before_it_goes(item)) :]), workers)
        return self.done

    def _each(self, items: Iterable[Item], work: Callable[[Item], None], workers: int | None = None) -> list[Item]:
        """Work on items in a bounded pool; returns those that went well."""

        def one(item: Item) -> bool:
            if item.name in self.done.failures or (self.done.failures and self.settings.on_error == "stop"):
                return False
            try:
                work(item)
                return True
            except FleetError as error:
                self.done.failures[item.name] = error
            except OSError as error:
                self.done.failures[item.name] = FleetError("failed", container=item.name, why=str(error), kind=FAILED)
            return False

        items = list(items)
        workers = min(workers or self.settings.workers, len(items))
        if workers <= 1:
            return [item for item in items if one(item)]
        with ThreadPoolExecutor(workers) as pool:
            return [item for item, well in zip(items, pool.map(one, items)) if well]

    def _took(self, item: Item, *steps: str) -> None:
        self.done.steps.setdefault(item.name, []).extend(steps)

    # Creation

    def _create(self, items: list[Item]) -> None:
        driver = self.choice.driver
        # Making directories gains nothing from threads; commands do.
        plain = driver.store == "overlay" and self.choice.order.reader.store == "dir"
        # A clone's own configuration may add to what its source has; their includes are the same.
        expanded = self.source.config.expanded()
        hooked = bool(expanded.get_all("lxc.hook.clone")) or any(item.creation.config.get_all("lxc.hook.clone") for item in items)
        self.owner = mapped_root(expanded)
        claimed = self._each(items, lambda item: claim(f"{self.host.lxcpath}/{item.name}", item.creation.provenance), 1)
        try:
            driver.prepare(self.choice.order, [item.creation.rootfs for item in claimed])
        except FleetError as error:
            self.done.failures.update({item.name: error for item in claimed})
        made = self._each(claimed, lambda item: self._make(item, hooked), 1 if (plain and not hooked) or not driver.capabilities.parallel else None)
        driver.refresh()
        made = self._each(made, self._check, 1)
        whole = {item.name for item in made}
        for item in claimed:
            if item.name not in whole:
                self._undo(item)
        if not made:
            return
        self._record_dependency([item.name for item in made])
        directory = os.open(self.host.lxcpath, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _syncfs(directory)
            for item in made:
                os.rename(f"{item.name}/{INTENT}", f"{item.name}/{PROVENANCE}", src_dir_fd=directory, dst_dir_fd=directory)
                self._took(item, planner.CREATE)
            _syncfs(directory)
        finally:
            os.close(directory)

    def _make(self, item: Item, hooked: bool) -> None:
        try:
            self._fill(item.name, item.creation, f"{self.host.lxcpath}/{item.name}", hooked)
        except BaseException:
            self._undo(item)
            raise

    def _check(self, item: Item) -> None:
        """What the store's command said is not believed: the root filesystem must be there."""
        damage = self.choice.driver.damage(item.creation.rootfs)
        if damage:
            raise FleetError("was not made", container=item.name, why=damage, kind=FAILED)

    def _undo(self, item: Item) -> None:
        # What cannot be undone now keeps its intent, and the next run sweeps it.
        with contextlib.suppress(FleetError, OSError):
            self.discard(f"{self.host.lxcpath}/{item.name}", item.creation.rootfs, item.creation.provenance.id)

    def _fill(self, name: str, creation: Creation, directory: str, hooked: bool) -> None:
        driver = self.choice.driver
        driver.clone(self.choice.order, creation.rootfs, directory, creation.provenance.id)
        if self.owner:
            # An unprivileged container's root must reach, and overlay write, what lies around its root filesystem.
            for path in (directory, *driver.surroundings(creation.rootfs)):
                os.chown(path, *self.owner)
        for old, new in creation.files.items():
            # What lies in the root filesystem came along with that.
            if not os.path.lexists(new):
                os.makedirs(os.path.dirname(new), exist_ok=True)
                shutil.copy(old, new)
        write_file(f"{directory}/config", str(creation.config), 0o640)
        if driver.counted(self.choice.order):
            write_file(f"{directory}/lxc_rdepends", _rdepends(self.source), 0o644)
        layers = driver.layers(creation.rootfs)
        if hooked or layers is None:
            mounts.in_private_mounts(lambda: self._inside_mount(name, creation, directory, hooked))
        else:
            self._name_guest(name, layers)

    def _inside_mount(self, name: str, creation: Creation, directory: str, hooked: bool) -> None:
        config = creation.config.expanded() if hooked else creation.config
        with self.choice.driver.rootfs_view(creation.rootfs, f"{directory}/rootfs", writable=True, devices=hooked) as root:
            version = config.get("lxc.hook.version") or "0"
            environment = {
                "LXC_SRC_NAME": self.source.name,
                "LXC_NAME": name,
                "LXC_CONFIG_FILE": f"{directory}/config",
                "LXC_ROOTFS_MOUNT": root,
                "LXC_ROOTFS_PATH": str(creation.rootfs),
            }
            if version == "1":
                environment.update(LXC_HOOK_TYPE="clone", LXC_HOOK_SECTION="lxc")
            for value in config.get_all("lxc.hook.clone"):
                arguments = "" if version == "1" else f" '{name}' 'lxc' 'clone'"
                self.host.runner.run(["sh", "-c", f"exec {value}{arguments}"], env=environment, container=name, daemon=True)
            self._name_guest(name, [root])

    def _name_guest(self, name: str, layers: list[str]) -> None:
        with GuestRoot(layers) as guest:
            try:
                guest.replace("etc/hostname", name.encode() + b"\n")
            except FleetError as error:
                self.done.warnings.append(f"{name}: /etc/hostname was left as it is: {error}")

    def _record_dependency(self, names: list[str]) -> None:
        """LXC's own counter of clones: lxc-destroy refuses a container that has one."""
        if not self.choice.driver.counted(self.choice.order):
            return
        for lxcpath, name in _pairs(_rdepends(self.source)):
            keep_snapshots(f"{lxcpath}/{name}", [(self.host.lxcpath, clone) for clone in names])

    # Removal

    def _sweep(self, item: Item) -> None:
        record = item.container.provenance
        self.discard(item.container.directory, Rootfs.parse(record.rootfs) if record else None, record.id if record else None)
        self._took(item, planner.SWEEP)

    def discard(self, directory: str, rootfs: Rootfs | None, mark: str | None = None) -> None:
        """Remove what a claim holds, complete or not.

        :param mark: the container's id, without which storage outside of the directory is not touched.
        :raises FleetError: BUSY while something is mounted in it.
        """
        _refuse_mounted(directory)
        driver = self.host.registry.driver(rootfs) if rootfs else None
        # What lies elsewhere without a mark is another's, whatever a record or a copied configuration says.
        if driver and (driver.outside or rootfs.path.startswith(f"{directory}/")):
            driver.discard(rootfs, mark)
        remove_tree(directory)

    def _remove(self, item: Item) -> None:
        self.remove(item.container)
        self._took(item, planner.REMOVE)

    def remove(self, container: Container) -> None:
        """Remove a container, its storage included. From the first moment on it counts as unfinished.

        :raises FleetError: BUSY when LXC snapshots or mounts are in it.
        """
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if os.listdir(f"{container.directory}/snaps"):
                raise FleetError(
                    "has snapshots of lxc-snapshot and is not removed",
                    container=container.name,
                    mend=f"Remove them with lxc-snapshot -n {container.name} -d.",
                    kind=BUSY,
                )
        rootfs, mark = container.rootfs, None
        _refuse_mounted(container.directory)
        if container.provenance:
            mark = container.provenance.id
            # Only what we made ourselves: a rootfs line that was edited may name another's storage.
            rootfs = Rootfs.parse(container.provenance.rootfs)
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{container.directory}/{PROVENANCE}", f"{container.directory}/{INTENT}")
        elif rootfs and not rootfs.path.startswith(container.directory + "/"):
            raise FleetError(
                "is not removed: its root filesystem lies elsewhere",
                container=container.name,
                why=str(rootfs),
                mend=f"Use lxc-destroy -n {container.name}.",
                kind=CONFLICT,
            )
        self.discard(container.directory, rootfs, mark)

    # What exists

    def _grow(self, item: Item) -> None:
        rootfs = item.container.rootfs
        self.host.registry.driver(rootfs).grow(rootfs, self.settings.size, f"{item.container.directory}/rootfs")
        self._took(item, planner.GROW)

    def _configure(self, item: Item) -> None:
        record = item.container.provenance
        known = {**record.inherited, **item.record.inherited}
        if known != record.inherited:
            # Cut off from here on, what the keys had before is not forgotten.
            write_atomically(f"{item.container.directory}/{PROVENANCE}", replace(record, inherited=known).dumps())
        write_atomically(f"{item.container.directory}/config", str(item.configured))
        record = replace(item.record, outdated=self.host.life(item.container.pid) if item.restart_required else None)
        write_atomically(f"{item.container.directory}/{PROVENANCE}", record.dumps())
        self._took(item, planner.CONFIGURE)

    def _power(self, item: Item, steps: tuple[str, ...]) -> None:
        for step in steps:
            if step == planner.START:
                self.host.start(item.name, self.settings.timeout)
            elif step == planner.STOP:
                self.host.stop(item.name, self.settings.stop_timeout, self.settings.force_stop)
            elif step == planner.FREEZE:
                self.host.freeze(item.name)
            elif step == planner.UNFREEZE:
                self.host.unfreeze(item.name)
            else:
                continue
            self._took(item, step)


def _before_it_goes(item: Item) -> tuple[str, ...]:
    """The steps before a container is removed or swept; none where it stays."""
    return next((item.steps[:index] for index, step in enumerate(item.steps) if step in (planner.REMOVE, planner.SWEEP)), ())


def _refuse_mounted(directory: str) -> None:
    mounted = mounts.below(directory)
    if mounted:
        raise FleetError(
            "is not removed",
            container=os.path.basename(directory),
            why=f"something is mounted at {mounted[0]}",
            mend=f"Unmount it (umount {mounted[0]}).",
            kind=BUSY,
        )


def claim(directory: str, intent: Provenance) -> None:
    """Take a container's directory for ourselves and say in it what it will be.

    :raises FleetError: CONFLICT when another was faster.
    """
    try:
        os.mkdir(directory, 0o770)
        os.chmod(directory, 0o770)  # whatever the umask is, as liblxc does
    except FileExistsError as error:
        raise FleetError("appeared while this call ran", container=intent.name, mend="Run again.", kind=CONFLICT) from error
    write_file(f"{directory}/{INTENT}", intent.dumps(), 0o640)


def complete(directory: str) -> None:
    """Turn a container's intent into its provenance, once all of it has reached the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _syncfs(descriptor)
        os.rename(f"{directory}/{INTENT}", f"{directory}/{PROVENANCE}")
        _syncfs(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: str, text: str, mode: int) -> None:
    """Write a new file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        os.write(descriptor, text.encode("utf-8", "surrogateescape"))
    finally:
        os.close(descriptor)


def write_atomically(path: str, text: str, mode: int | None = None) -> None:
    """Replace a file in one moment, its owner and mode kept."""
    temporary = f"{path}.fleet.lxc.tmp"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    write_file(temporary, text, 0o640 if mode is None else mode)
    with contextlib.suppress(FileNotFoundError):
        old = os.stat(path)
        os.chown(temporary, old.st_uid, old.st_gid)
        mode = old.st_mode & 0o7777 if mode is None else mode
    if mode is not None:
        os.chmod(temporary, mode)
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(temporary, path)


def _syncfs(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
        raise FleetError("cannot write to the disk", why=os.strerror(ctypes.get_errno()), kind=FAILED)


# LXC's bookkeeping of clones: pairs of lines, lxcpath and name.


def _rdepends(source: Container) -> str:
    """``lxc_rdepends`` of a clone: what its source depends on, and the source."""
    inherited = ""
    if source.rootfs.store == "overlay":
        with contextlib.suppress(OSError):
            with open(f"{source.directory}/lxc_rdepends", encoding="utf-8") as file:
                inherited = file.read()
    return f"{inherited}{source.lxcpath}\n{source.name}\n"


def _pairs(text: str) -> list[tuple[str, str]]:
    lines = text.splitlines()
    return list(zip(lines[::2], lines[1::2]))


def keep_snapshots(directory: str, added: Iterable[tuple[str, str]] = (), removed: int = 0) -> None:
    """Bring a container's ``lxc_snapshots`` up to date: the clones that exist and those added.

    :param directory: the container that has clones.
    :param removed: how many clones went, for the bare counter of LXC before 1.1 (liblxc keeps a file as it is).
    """
    path, added, text = f"{directory}/lxc_snapshots", list(added), ""
    with contextlib.suppress(OSError):
        with open(path, encoding="utf-8") as file:
            text = file.read()
    if text.strip().isdigit():
        kept = f"{max(0, int(text) + len(added) - removed)}\n"
    else:
        pairs = dict.fromkeys([pair for pair in _pairs(text) if os.path.isdir("/".join(pair))] + added)
        kept = "".join(f"{lxcpath}\n{name}\n" for lxcpath, name in pairs)
    if kept.strip() in ("", "0"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    elif kept != text and os.path.isdir(directory):
        write_atomically(path, kept, 0o644)


def _owners(container: Container) -> list[tuple[str, str]]:
    """The containers in whose ``lxc_snapshots`` a container may stand."""
    owners: list[tuple[str, str]] = []
    with contextlib.suppress(OSError):
        with open(f"{container.directory}/lxc_rdepends", encoding="utf-8") as file:
            owners = _pairs(file.read())
    record = container.provenance
    if record and record.source:
        owners.append((record.source_lxcpath or container.lxcpath, record.source))
    return owners


def write_guard(path: str, script: str) -> None:
    write_atomically(path, script, 0o755)


def with_guard(config: Config, directory: str, wanted: bool) -> Config:
    """The configuration with the guard's hook, or without it."""
    line = ("lxc.hook.pre-start", f"{directory}/{GUARD}")
    if (line in config.items()) == wanted:
        return config
    changed = Config(one for one in config.lines if split_line(one) != line)
    if wanted:
        changed.set(line[0], [line[1], *changed.own(line[0])])
    return changed
