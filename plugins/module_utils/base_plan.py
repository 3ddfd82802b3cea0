# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The planner of a base: what is there, what is wanted, and the steps between. It reads the host and writes nothing.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Callable, Mapping, Sequence, TypeVar

from ansible_collections.fleet.lxc.plugins.module_utils import dpkg, mounts
from ansible_collections.fleet.lxc.plugins.module_utils import plan as planner
from ansible_collections.fleet.lxc.plugins.module_utils.config import GUARD, Config, with_keys
from ansible_collections.fleet.lxc.plugins.module_utils.container import BROKEN, FOREIGN, RUNNING, STOPPED, UNFINISHED, Container
from ansible_collections.fleet.lxc.plugins.module_utils.errors import BUSY, CONFLICT, MISSING, RESOURCES, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.guest import GuestRoot
from ansible_collections.fleet.lxc.plugins.module_utils.host import LxcHost, names_of
from ansible_collections.fleet.lxc.plugins.module_utils.seal import check_unused, fingerprint, obstacle, with_guard
from ansible_collections.fleet.lxc.plugins.module_utils.storage.driver import Storage

CREATE, ADOPT, SWEEP, STOP, CONFIGURE, TUNE, SEAL, UNSEAL = "create", "adopt", "sweep", "stop", "configure", "tune", "seal", "unseal"
START = planner.START
FORGET, REMOVE = "forget", "remove"
T = TypeVar("T")


@dataclass(frozen=True)
class BasePlan:
    """The steps that bring one base to its wanted state."""

    steps: tuple[str, ...]
    found: Container | None
    config: Config | None = None
    dependents: tuple[Container, ...] = ()
    inherited: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        return bool(self.steps)


def in_guest(host: LxcHost, found: Container, work: Callable[[GuestRoot], T], writable: bool = False) -> T:
    """Run a function on a base's whole root filesystem, which a running one has mounted already."""
    driver = host.registry.driver(found.rootfs)

    def run() -> T:
        if found.pid:
            with GuestRoot([f"/proc/{found.pid}/root"]) as guest:
                return work(guest)
        with driver.rootfs_view(found.rootfs, f"{found.directory}/rootfs", writable) as root, GuestRoot([root]) as guest:
            return work(guest)

    return mounts.in_private_mounts(run)


def no_dpkg(name: str) -> str:
    return f"{name} has no dpkg ({dpkg.DIRECTORY} is missing), so dpkg_unsafe_io does nothing"


class BasePlanner:
    """Plans for one base of a host.

    :param options: the module's.
    :param config: its option ``config``, checked.
    :param storage: its option ``storage``, parsed.
    """

    def __init__(self, host: LxcHost, name: str, options: Mapping[str, Any], config: Mapping[str, list[str]], storage: Storage):
        self.host, self.name, self.options, self.config, self.storage = host, name, options, config, storage
        self.runner, self.registry = host.runner, host.registry
        self.warnings: list[str] = []

    def plan(self) -> BasePlan:
        state = self.options["state"]
        observed = self.host.observe()
        found = observed.get(self.name)
        if found and found.is_clone and found.kind != UNFINISHED:
            raise FleetError(f"is a clone of {found.provenance.source}, not a base", container=self.name, mend="Choose another name.", kind=CONFLICT)
        dependents = tuple(observed.dependents.get(self.name, [])) + tuple(self.host.dependents_elsewhere(found) if found else ())
        if state == "absent":
            return self._plan_absent(found, dependents)
        if found is None or found.kind == UNFINISHED:
            return self._plan_creation(found)
        if found.away:
            raise planner.out_of_reach(found)
        if found.kind == BROKEN:
            raise FleetError(
                "is broken", container=self.name, why=found.damage, mend=f"Restore that, or remove it (lxc_base name={self.name} state=absent).", kind="broken"
            )
        return self._plan_existing(found, dependents)

    def _plan_creation(self, found: Container | None) -> BasePlan:
        options = self.options
        if options["adopt"]:
            raise FleetError("is not there to be adopted", container=self.name, why=f"{self.host.lxcpath} has no such container", kind=MISSING)
        if not options["template"] and not options["rootfs_archive"]:
            raise FleetError(
                "does not exist", container=self.name, mend="Set template or rootfs_archive to make it, or adopt: true for an existing one.", kind=MISSING
            )
        if options["backing_store"] == "btrfs":
            self.runner.require("btrfs")
            mount = mounts.holding(self.host.lxcpath)
            if mount and mount.fstype != "btrfs":
                raise FleetError(
                    f"{self.host.lxcpath} lies on {mount.fstype}, not on btrfs", container=self.name, mend="Use an lxcpath on btrfs.", kind=RESOURCES
                )
        if options["rootfs_archive"]:
            self.runner.require("tar")
        driver = self.registry.drivers[options["backing_store"]]
        problem = driver.no_place(driver.home(self.name, self.host.lxcpath, self.storage), self.storage, swept=found is not None)
        if problem:
            problem.container = self.name
            raise problem
        last = {"sealed": (SEAL,), "started": (START,)}.get(options["state"], ())
        return BasePlan((*self._sweep(found), CREATE, *last), found)

    def _sweep(self, found: Container | None) -> tuple[str, ...]:
        if found is None:
            return ()
        if found.state == STOPPED:
            return (SWEEP,)
        # One that a power cut left may have been started with the host.
        self._must_stop(found, "is unfinished and is not swept")
        return (STOP, SWEEP)

    def _plan_existing(self, found: Container, dependents: tuple[Container, ...]) -> BasePlan:
        options, state, record = self.options, self.options["state"], found.provenance
        steps: list[str] = []
        if found.kind == FOREIGN:
            if not options["adopt"]:
                raise FleetError(
                    "exists and is no base of fleet.lxc", container=self.name, mend="Set adopt: true to make it one, or choose another name.", kind=CONFLICT
                )
            if found.rootfs is None:
                raise FleetError("has no root filesystem that could be a base", container=self.name, why=found.damage, kind=CONFLICT)
            other = self.host.known_elsewhere(self.name)
            if other:
                raise FleetError(
                    f"is known already, below {other}, which is this very directory", container=self.name, mend=f"Set lxcpath: {other}.", kind=CONFLICT
                )
            self.registry.driver(found.rootfs, self.name)
            steps.append(ADOPT)
        elif options["family"] and record.family != options["family"]:
            raise FleetError(
                f"is of the family {record.family}, not {options['family']}",
                container=self.name,
                mend="A base keeps its family; make another one.",
                kind=CONFLICT,
            )
        else:
            self._remark(found)
        sealed = bool(record and record.sealed)
        config, inherited = self._configured(found, sealed)
        driver = self.registry.driver(found.rootfs, self.name)
        mark = fingerprint(found, driver) if sealed or (state == "sealed" and found.state == STOPPED) else None
        renamed = sealed and options["version"] not in (None, record.base_version)
        if state == "sealed" and (not sealed or mark != record.fingerprint or renamed):
            if sealed:
                self._refuse_dependents(dependents, f"{'has another version' if renamed else 'has changed since it was sealed'} and is not sealed anew")
            if found.state != STOPPED:
                self._must_stop(found, "is not sealed")
                steps.append(STOP)
            else:
                check_unused(found, driver, "is not sealed")
            steps.append(SEAL)
        elif state == "unsealed" and (sealed or self._half_sealed(found)):
            self._refuse_dependents(dependents, "is not unsealed")
            steps.append(UNSEAL)
        if config != found.config or (record and inherited != record.inherited):
            if sealed and SEAL not in steps and UNSEAL not in steps and dependents:
                self._refuse_dependents(dependents, "is sealed and its config is not changed")
            steps.append(CONFIGURE)
        if self._is_to_be_tuned(found):
            if sealed and UNSEAL not in steps:
                self._refuse_dependents(dependents, "is sealed and its files are not changed")
                check_unused(found, driver, "is sealed and its files are not changed")
                steps += [SEAL] if SEAL not in steps else []
            last = [steps.pop()] if steps and steps[-1] in (SEAL, UNSEAL) else []
            steps += [TUNE, *last]
        if state == "started" and found.state != RUNNING:
            self._refuse_start(found, sealed, dependents)
            steps.append(START)
        return BasePlan(tuple(steps), found, config, dependents, inherited)

    def _remark(self, found: Container) -> None:
        """What this task asks for and a base that exists does not become."""
        store, size = self.options["backing_store"], self.storage.size
        if store not in ("dir", found.rootfs.store):
            self.warnings.append(f"{self.name} is on {found.rootfs.store} and stays there, whatever backing_store says now")
        elif size and found.size and found.rounded(size) != found.size:
            self.warnings.append(f"{self.name} has {found.size >> 20} MiB and keeps them, whatever storage.size says now; its clones can have more")

    def _refuse_start(self, found: Container, sealed: bool, dependents: tuple[Container, ...]) -> None:
        if sealed:
            raise FleetError(
                "is sealed and is not started", container=self.name, mend=f"Unseal it first (lxc_base name={self.name} state=unsealed).", kind=BUSY
            )
        standing = [one for one in dependents if self.registry.driver(one.rootfs).minds_writes(one.rootfs)]
        self._refuse_dependents(tuple(standing), "is not started")
        if found.state == STOPPED:
            check_unused(found, self.registry.driver(found.rootfs), "is not started")

    def _is_to_be_tuned(self, found: Container) -> bool:
        """Whether dpkg_unsafe_io asks for something else than what the guest has."""
        wanted = self.options["dpkg_unsafe_io"]
        if wanted is None:
            return False
        there = in_guest(self.host, found, dpkg.unsafe_io)
        if there is None:
            self.warnings.append(no_dpkg(self.name))
        return there is not None and there != wanted

    @staticmethod
    def _half_sealed(found: Container) -> bool:
        """Whether a seal was cut off before its record, or its undoing after it."""
        return os.path.lexists(f"{found.directory}/{GUARD}") or with_guard(found.config, found.directory, False) != found.config

    def _configured(self, found: Container, sealed: bool) -> tuple[Config, Mapping[str, list[str]]]:
        before = found.provenance.inherited if found.provenance else {}
        kept = before if self.options["config"] is None else ()
        config, inherited = with_keys(found.config, self.config, before, self.host.includes, kept)
        return with_guard(config, found.directory, True) if sealed and self.options["state"] != "unsealed" else config, inherited

    def _plan_absent(self, found: Container | None, dependents: tuple[Container, ...]) -> BasePlan:
        if found is None:
            return BasePlan((), None)
        if found.kind == UNFINISHED:
            return BasePlan(self._sweep(found), found)
        if found.kind == FOREIGN:
            raise FleetError("was not made by fleet.lxc and is not removed", container=self.name, mend=f"Use lxc-destroy -n {self.name}.", kind=CONFLICT)
        keep = found.provenance.origin == "adopted" and not self.options["delete_adopted"]
        for dependent in dependents:
            refusal = planner.refuse_cascade(self.name, dependent, self.options["cascade"] and dependent.lxcpath == self.host.lxcpath)
            if refusal:
                self._refuse_dependents(dependents, "is not removed", refusal if self.options["cascade"] else None)
        if keep:
            return BasePlan((FORGET,), found, self._forgotten(found), dependents)
        driver = self.registry.drivers.get(found.rootfs.store) if found.rootfs else None
        if found.provenance.origin == "adopted" and driver and not driver.outside and not found.rootfs.path.startswith(f"{found.directory}/"):
            raise FleetError(
                "is not removed: its root filesystem lies elsewhere",
                container=self.name,
                why=str(found.rootfs),
                mend="Leave delete_adopted out, which removes our marks only, and remove the rest by hand.",
                kind=CONFLICT,
            )
        self._refuse_obstacles(found, dependents)
        steps = []
        if found.state != STOPPED:
            self._must_stop(found, "is not removed")
            steps.append(STOP)
        elif found.rootfs and found.kind != BROKEN:
            roots = list(mounts.roots())
            check_unused(found, self.registry.driver(found.rootfs), "is not removed", roots)
            if all(dependent.state == STOPPED for dependent in dependents):
                self._refuse_unseen_dependents(found, roots)
        return BasePlan((*steps, REMOVE), found, None, dependents)

    def _refuse_obstacles(self, found: Container, dependents: tuple[Container, ...]) -> None:
        """Before anything is stopped: what its store would refuse then."""
        going = [one.rootfs.path for one in dependents if one.rootfs]
        for container in (*dependents, found):
            problem = obstacle(container, self.registry, going)
            if problem:
                raise problem

    def _forgotten(self, found: Container) -> Config | None:
        """The configuration as it would be without us."""
        if found.config is None:
            return None
        config, _inherited = with_keys(found.config, {}, found.provenance.inherited, self.host.includes)
        return with_guard(config, found.directory, False)

    def _refuse_unseen_dependents(self, found: Container, roots: Sequence[mounts.Root]) -> None:
        for pid, _stat, mount in roots:
            lowers = [value[9:] for value in mount.super_options.split(",") if value.startswith("lowerdir=")]
            if mount.fstype == "overlay" and any(found.rootfs.path in lower.split(":") for lower in lowers) and mounts.is_ours(pid, found.rootfs.path):
                raise FleetError(
                    "is not removed: a running overlay stands on it", container=self.name, why=f"process {pid} runs there", mend="Stop it first.", kind=BUSY
                )

    def _refuse_dependents(self, dependents: tuple[Container, ...], what: str, refusal: FleetError | None = None) -> None:
        if refusal:
            raise refusal
        if dependents:
            raise FleetError(
                f"{what} while {len(dependents)} containers depend on its storage",
                container=self.name,
                why=names_of(dependents),
                mend="Remove those first"
                + (", or set cascade: true." if self.options["state"] == "absent" else "; for an upgrade make another base of the same family."),
                kind=BUSY,
            )

    def _must_stop(self, found: Container, what: str) -> None:
        if not self.options["stop"]:
            raise FleetError(f"{what} while it is {found.state}", container=self.name, mend="Set stop: true to have it stopped.", kind=BUSY)
