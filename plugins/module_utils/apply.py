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
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Callable, Iterable

from ansible_collections.fleet.lxc.plugins.module_utils import mounts
from ansible_collections.fleet.lxc.plugins.module_utils import plan as planner
from ansible_collections.fleet.lxc.plugins.module_utils.bookkeeping import keep_snapshots, owners_of, pairs, rdepends
from ansible_collections.fleet.lxc.plugins.module_utils.config import Config, mapped_root
from ansible_collections.fleet.lxc.plugins.module_utils.container import INTENT, PROVENANCE, Container, Rootfs
from ansible_collections.fleet.lxc.plugins.module_utils.errors import BUSY, CONFLICT, FAILED, RESOURCES, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.guest import GuestRoot
from ansible_collections.fleet.lxc.plugins.module_utils.host import LxcHost
from ansible_collections.fleet.lxc.plugins.module_utils.identity import Identity, Survey, renames, scrub, survey, write_seed
from ansible_collections.fleet.lxc.plugins.module_utils.plan import Creation, Item, Plan
from ansible_collections.fleet.lxc.plugins.module_utils.records import claim, reconfigure, syncfs, write_file
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
    identity: Identity = Identity()


@dataclass
class Done:
    """What became of a plan: the steps taken of each container, and what failed."""

    steps: dict[str, list[str]] = field(default_factory=dict)
    failures: dict[str, FleetError] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    identity: dict[str, list[str]] = field(default_factory=dict)  # what of each new clone was made its own


class Applier:
    def __init__(self, host: LxcHost, settings: Settings, choice: Choice | None = None, source: Container | None = None):
        self.host, self.settings, self.choice, self.source = host, settings, choice, source
        self.owner: tuple[int, int] | None = None
        self.survey: Survey | None = None
        self.done = Done()

    def apply(self, plan: Plan) -> Done:
        """Take every step of a plan. Failures are collected; with ``on_error: stop`` nothing new is begun after one."""
        going = plan.having(planner.REMOVE) + plan.having(planner.SWEEP)
        owners = {item.name: owners_of(item.container) for item in going}
        up = [item for item in going if planner.STOP in _before_it_goes(item)]
        self._each(up, lambda item: self._power(item, _before_it_goes(item)), self.settings.stops_at_once)
        # Removals keep the plan's order: dependents come before what they stand on.
        gone = self._each(plan.having(planner.REMOVE), self._remove, 1)
        gone += self._each(plan.having(planner.SWEEP), self._sweep)
        lost: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for item in gone:
            for owner in dict.fromkeys(owners[item.name]):
                lost.setdefault(owner, []).append((self.host.lxcpath, item.name))
        for owner, removed in lost.items():
            self._count(owner, removed=removed)
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

    def _each(self, items: Iterable[Item], work: Callable[[Item], None], workers: int | None = None, begun: bool = False) -> list[Item]:
        """Work on items in a bounded pool; returns those that went well.

        :param begun: what was begun with them is finished, though another failed meanwhile.
        """

        def one(item: Item) -> bool:
            if item.name in self.done.failures or (self.done.failures and self.settings.on_error == "stop" and not begun):
                return False
            try:
                work(item)
                return True
            except FleetError as error:
                error.container = error.container or item.name
                self.done.failures[item.name] = error
            except OSError as error:
                self.done.failures[item.name] = _failed(item.name, error)
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
        # A clone's own configuration may add to what its source has; their includes are the same.
        expanded = self.source.config.expanded()
        hooked = bool(self._hooks(expanded)) or any(self._hooks(item.creation.config) for item in items)
        self.owner = mapped_root(expanded)
        layers = self.choice.order.reader.layers(self.choice.order.source)
        # What a hook or a mounted clone holds is looked at in each clone.
        if layers is not None and not hooked:
            with GuestRoot(layers) as guest:
                self.survey = survey(guest, self.settings.identity)
        claimed = self._each(items, lambda item: claim(f"{self.host.lxcpath}/{item.name}", item.creation.provenance), 1)
        try:
            driver.prepare(self.choice.order, {item.creation.provenance.id: item.creation.rootfs for item in claimed})
        except FleetError as error:
            self.done.failures.update({item.name: error for item in claimed})
        # Making directories gains nothing from threads; commands do.
        alone = not driver.capabilities.parallel or (driver.instant(self.choice.order) and not hooked)
        made = self._each(claimed, lambda item: self._make(item, hooked), 1 if alone else None)
        driver.refresh()
        made = self._each(made, self._check, 1, begun=True)
        whole = {item.name for item in made}
        for item in claimed:
            if item.name not in whole:
                self._undo(item)
        if made:
            try:
                self._complete(made)
            except (FleetError, OSError) as error:
                for item in made:
                    if planner.CREATE not in self.done.steps.get(item.name, ()):
                        self.done.failures[item.name] = error if isinstance(error, FleetError) else _failed(item.name, error)
                        self._undo(item)

    def _complete(self, made: list[Item]) -> None:
        """Write down that these are whole, once all of them has reached the disk."""
        if self.choice.driver.counted(self.choice.order):
            for owner in pairs(rdepends(self.source)):
                keep_snapshots("/".join(owner), added=[(self.host.lxcpath, item.name) for item in made])
        directory = os.open(self.host.lxcpath, os.O_RDONLY | os.O_DIRECTORY)
        try:
            syncfs(directory)
            for item in made:
                os.rename(f"{item.name}/{INTENT}", f"{item.name}/{PROVENANCE}", src_dir_fd=directory, dst_dir_fd=directory)
                self._took(item, planner.CREATE)
            syncfs(directory)
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
            write_file(f"{directory}/lxc_rdepends", rdepends(self.source), 0o644)
        layers = driver.layers(creation.rootfs)
        if hooked or layers is None:
            mounts.in_private_mounts(lambda: self._inside_mount(name, creation, directory, hooked))
        else:
            self._identify(name, creation, layers)

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
            for value in self._hooks(config):
                arguments = "" if version == "1" else f" '{name}' 'lxc' 'clone'"
                self.host.runner.run(["sh", "-c", f"exec {value}{arguments}"], env=environment, container=name, daemon=True)
            self._identify(name, creation, [root])

    def _hooks(self, config: Config) -> list[str]:
        """The clone hooks that are run: not LXC's own that would do over what is done here."""
        return [hook for hook in config.get_all("lxc.hook.clone") if not (self.settings.identity.hostname and renames(hook))]

    def _identify(self, name: str, creation: Creation, layers: list[str]) -> None:
        """Make a clone itself; what cannot be done is told, and is no failure."""
        wanted, found = self.settings.identity, self.survey

        def warn(text: str) -> None:
            self.done.warnings.append(f"{name}: {text}")

        done = []
        files = found.renamed(name, self.source.name) if found else {}
        if not found or files or creation.seed is not None or not found.scrubbed:
            with GuestRoot(layers) as guest:
                if found is None:
                    found = survey(guest, wanted)
                    files = found.renamed(name, self.source.name)
                for path, text in files.items():
                    guest.replace(path, text)
                done += ["hostname"] if files else []
                done += [] if found.scrubbed else scrub(guest, wanted.scrubbed, warn)
                if creation.seed is not None and write_seed(guest, name, creation.provenance.id, creation.seed, warn):
                    done.append("cloud_init_seed")
        for problem in found.problems:
            warn(problem)
        if done:
            self.done.identity[name] = done

    def _count(self, owner: tuple[str, str], removed: list[tuple[str, str]]) -> None:
        # The containers are gone; that LXC counts them still is worth a word and no failure.
        try:
            keep_snapshots("/".join(owner), removed=removed)
        except (FleetError, OSError) as error:
            self.done.warnings.append(f"{owner[1]}: LXC's list of its clones was not brought up to date: {error}")

    # Removal

    def _sweep(self, item: Item) -> None:
        self.sweep(item.container)
        self._took(item, planner.SWEEP)

    def sweep(self, container: Container) -> None:
        """Remove what an unfinished container left.

        :raises FleetError: BUSY while something is mounted in it.
        """
        record = container.provenance
        self.discard(container.directory, Rootfs.parse(record.rootfs) if record else None, record.id if record else None)

    def discard(self, directory: str, rootfs: Rootfs | None, mark: str | None = None) -> None:
        """Remove what a claim holds, complete or not.

        :param mark: the container's id, without which storage outside of the directory is not touched.
        :raises FleetError: BUSY while something is mounted in it, or its storage would not be removed; RESOURCES while that is out of reach.
        """
        _refuse_mounted(directory)
        driver = self.host.registry.driver(rootfs) if rootfs else None
        # What lies elsewhere without a mark is another's, whatever a record or a copied configuration says.
        if driver and (driver.outside or rootfs.path.startswith(f"{directory}/")):
            driver.refresh()
            problem = driver.obstacle(rootfs, mark)
            if problem:
                raise problem
            driver.discard(rootfs, mark)
        # Without its intent, what is left after a cut would be nobody's.
        remove_tree(directory, last=INTENT)

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
        try:
            self.discard(container.directory, rootfs, mark)
        except FleetError as error:
            if error.kind in (BUSY, RESOURCES) and container.provenance:
                # Nothing was removed, so it is not unfinished: the next run would make it anew.
                os.rename(f"{container.directory}/{INTENT}", f"{container.directory}/{PROVENANCE}")
            raise

    # What exists

    def _grow(self, item: Item) -> None:
        rootfs = item.container.rootfs
        self.host.registry.driver(rootfs).grow(rootfs, self.settings.size, f"{item.container.directory}/rootfs")
        self._took(item, planner.GROW)

    def _configure(self, item: Item) -> None:
        record = replace(item.record, outdated=self.host.life(item.container.pid) if item.restart_required else None)
        reconfigure(item.container.directory, item.container.provenance, item.configured, record)
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


def _failed(name: str, error: OSError) -> FleetError:
    return FleetError("failed", container=name, why=str(error), kind=FAILED)


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
