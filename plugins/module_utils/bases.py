# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One call of lxc_base: the canonical base created, adopted, sealed, unsealed, removed.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from dataclasses import dataclass, replace
from typing import Any, Callable, Mapping, TypeVar

from ansible_collections.fleet.lxc.plugins.module_utils import config as configuration
from ansible_collections.fleet.lxc.plugins.module_utils import dpkg, mounts, names
from ansible_collections.fleet.lxc.plugins.module_utils import plan as planner
from ansible_collections.fleet.lxc.plugins.module_utils.apply import Applier, Settings, claim, complete, with_guard, write_atomically, write_guard
from ansible_collections.fleet.lxc.plugins.module_utils.seal import REFUSED, check_unused, fingerprint, guard_script
from ansible_collections.fleet.lxc.plugins.module_utils.command import Runner
from ansible_collections.fleet.lxc.plugins.module_utils.config import GUARD, Config
from ansible_collections.fleet.lxc.plugins.module_utils.container import (
    ABSENT,
    BROKEN,
    FOREIGN,
    PROVENANCE,
    STOPPED,
    UNFINISHED,
    Container,
    Provenance,
    Rootfs,
)
from ansible_collections.fleet.lxc.plugins.module_utils.errors import BUSY, CONFLICT, INVALID, MISSING, RESOURCES, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.fleet import VERSION, now, require_root
from ansible_collections.fleet.lxc.plugins.module_utils.guest import GuestRoot
from ansible_collections.fleet.lxc.plugins.module_utils.host import LxcHost, default_lxcpath, names_of
from ansible_collections.fleet.lxc.plugins.module_utils.locks import base_lock, hold, lxcpath_lock
from ansible_collections.fleet.lxc.plugins.module_utils.storage.driver import StorageDriver
from ansible_collections.fleet.lxc.plugins.module_utils.storage.registry import Registry, check_storage
from ansible_collections.fleet.lxc.plugins.module_utils.wanted import wanted_storage

CREATE, ADOPT, SWEEP, STOP, CONFIGURE, TUNE, SEAL, UNSEAL = "create", "adopt", "sweep", "stop", "configure", "tune", "seal", "unseal"
FORGET, REMOVE = "forget", "remove"
T = TypeVar("T")
_MAKERS = ("template", "rootfs_archive", "adopt")


@dataclass(frozen=True)
class BasePlan:
    """The steps that bring one base to its wanted state."""

    steps: tuple[str, ...]
    found: Container | None
    config: Config | None = None
    dependents: tuple[Container, ...] = ()
    fingerprint: str | None = None

    @property
    def changed(self) -> bool:
        return bool(self.steps)


class BaseCall:
    """The one call that makes, seals and removes a base."""

    def __init__(self, options: Mapping[str, Any]):
        require_root()
        self.options = dict(options)
        self.runner = Runner(options["timeout"])
        self.runner.require("lxc-create")
        self.registry = Registry(self.runner)
        self.options["lxcpath"] = self.options["lxcpath"] or default_lxcpath(self.runner)
        self.host = LxcHost(self.options["lxcpath"], self.runner, self.registry)
        self.name = names.validate(options["name"])
        self.config = {
            key: [configuration.fill(value, self.name, None) for value in values]
            for key, values in configuration.check_options(options["config"] or {}).items()
        }
        self.storage = wanted_storage(options["storage"])
        self.warnings: list[str] = []
        self._check_options()

    def _check_options(self) -> None:
        options = self.options
        chosen = [maker for maker in _MAKERS if options[maker]]
        if len(chosen) > 1:
            raise FleetError(f"{' and '.join(chosen)} exclude each other", container=self.name, kind=INVALID)
        if options["template_options"] and not options["template"]:
            raise FleetError("template_options need a template", container=self.name, kind=INVALID)
        check_storage(self.registry.drivers[options["backing_store"]], self.storage)
        if options["timeout"] < 1 or options["lock_timeout"] < 0:
            raise FleetError("timeout must be 1 or more, lock_timeout 0 or more", container=self.name, kind=INVALID)
        archive = options["rootfs_archive"]
        if archive and not os.path.isfile(archive):
            raise FleetError(f"rootfs_archive {archive} is not a file on this host", container=self.name, mend="Copy it there first.", kind=MISSING)

    def run(self, check_mode: bool) -> dict[str, Any]:
        """Do what the options ask; in check mode say what would be done.

        :raises FleetError: with nothing half done: a base is whole, or the next run sweeps it.
        """
        self.host.check(writing=True)
        plan = self._plan()
        if plan.changed and not check_mode:
            wanted = [lxcpath_lock(self.host.lxcpath), base_lock(self.host.lxcpath, self.name, exclusive=True)]
            with hold(wanted, timeout=self.options["lock_timeout"]) as locks, self.runner.keeping(locks):
                plan = self._plan()
                self._apply(plan)
        found = self.host.read(self.name) if not check_mode else plan.found
        return {
            "changed": plan.changed,
            "actions": list(plan.steps),
            "base": self._record(found, plan),
            "diff": self._diff(plan),
            "warnings": list(dict.fromkeys(self.warnings)),  # it is planned twice
        }

    # Planning

    def _plan(self) -> BasePlan:
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
        steps = ((SWEEP,) if found else ()) + (CREATE,) + ((SEAL,) if options["state"] == "sealed" else ())
        return BasePlan(steps, found)

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
            self.registry.driver(found.rootfs, self.name)
            steps.append(ADOPT)
        elif options["family"] and record.family != options["family"]:
            raise FleetError(
                f"is of the family {record.family}, not {options['family']}",
                container=self.name,
                mend="A base keeps its family; make another one.",
                kind=CONFLICT,
            )
        sealed = bool(record and record.sealed)
        config = self._configured(found, sealed)
        driver = self.registry.driver(found.rootfs, self.name)
        mark = fingerprint(found, driver) if sealed or (state == "sealed" and found.state == STOPPED) else None
        if state == "sealed" and (not sealed or mark != record.fingerprint):
            if sealed:
                self._refuse_dependents(dependents, "has changed since it was sealed and is not sealed anew")
            if found.state != STOPPED:
                self._must_stop(found, "is not sealed")
                steps.append(STOP)
            else:
                check_unused(found, driver, "is not sealed")
            steps.append(SEAL)
        elif state == "unsealed" and (sealed or self._half_sealed(found)):
            self._refuse_dependents(dependents, "is not unsealed")
            steps.append(UNSEAL)
        if config != found.config:
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
        return BasePlan(tuple(steps), found, config, dependents, mark)

    def _is_to_be_tuned(self, found: Container) -> bool:
        """Whether dpkg_unsafe_io asks for something else than what the guest has."""
        wanted = self.options["dpkg_unsafe_io"]
        if wanted is None:
            return False
        there = self._in_guest(found, dpkg.unsafe_io)
        if there is None:
            self._warn_of_no_dpkg()
        return there is not None and there != wanted

    def _warn_of_no_dpkg(self) -> None:
        self.warnings.append(f"{self.name} has no dpkg ({dpkg.DIRECTORY} is missing), so dpkg_unsafe_io does nothing")

    def _in_guest(self, found: Container, work: Callable[[GuestRoot], T], writable: bool = False) -> T:
        """Run a function on a base's whole root filesystem, which a running one has mounted already."""
        driver = self.registry.driver(found.rootfs)

        def run() -> T:
            if found.pid:
                with GuestRoot([f"/proc/{found.pid}/root"]) as guest:
                    return work(guest)
            with driver.rootfs_view(found.rootfs, f"{found.directory}/rootfs", writable) as root, GuestRoot([root]) as guest:
                return work(guest)

        return mounts.in_private_mounts(run)

    @staticmethod
    def _half_sealed(found: Container) -> bool:
        """Whether a seal was cut off before its record, or its undoing after it."""
        return os.path.lexists(f"{found.directory}/{GUARD}") or with_guard(found.config, found.directory, False) != found.config

    def _configured(self, found: Container, sealed: bool) -> Config:
        config = Config(found.config.lines)
        before = found.provenance.inherited if found.provenance else {}
        for key in before:
            if key not in self.config:
                config.set(key, before[key])
        for key, values in self.config.items():
            if config.get_all(key) != values:
                config.set(key, values)
        return with_guard(config, found.directory, True) if sealed and self.options["state"] != "unsealed" else config

    def _plan_absent(self, found: Container | None, dependents: tuple[Container, ...]) -> BasePlan:
        if found is None:
            return BasePlan((), None)
        if found.kind == UNFINISHED:
            return BasePlan((SWEEP,), found)
        if found.kind == FOREIGN:
            raise FleetError("was not made by fleet.lxc and is not removed", container=self.name, mend=f"Use lxc-destroy -n {self.name}.", kind=CONFLICT)
        keep = found.provenance.origin == "adopted" and not self.options["delete_adopted"]
        for dependent in dependents:
            refusal = planner.refuse_cascade(self.name, dependent, self.options["cascade"] and dependent.lxcpath == self.host.lxcpath)
            if refusal:
                self._refuse_dependents(dependents, "is not removed", refusal if self.options["cascade"] else None)
        if keep:
            return BasePlan((FORGET,), found, None, dependents)
        steps = []
        if found.state != STOPPED:
            self._must_stop(found, "is not removed")
            steps.append(STOP)
        elif found.rootfs and found.kind != BROKEN:
            check_unused(found, self.registry.driver(found.rootfs), "is not removed")
            self._refuse_unseen_dependents(found, dependents)
        return BasePlan((*steps, REMOVE), found, None, dependents)

    def _refuse_unseen_dependents(self, found: Container, dependents: tuple[Container, ...]) -> None:
        for pid, _stat, mount in mounts.roots():
            lowers = [value[9:] for value in mount.super_options.split(",") if value.startswith("lowerdir=")]
            if mount.fstype == "overlay" and any(found.rootfs.path in lower.split(":") for lower in lowers):
                if not any(d.state != STOPPED for d in dependents):
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

    # Applying

    def _apply(self, plan: BasePlan) -> None:
        applier = Applier(self.host, Settings(workers=2))
        doing = {
            SWEEP: lambda: self._sweep(applier, plan.found),
            CREATE: self._create,
            ADOPT: lambda: self._adopt(plan.found),
            STOP: lambda: self._stop(plan.found),
            CONFIGURE: lambda: self._write_config(plan),
            TUNE: lambda: self._tune(plan),
            SEAL: lambda: self._seal(plan),
            UNSEAL: self._unseal,
            FORGET: lambda: self._forget(plan.found),
            REMOVE: lambda: self._remove(applier, plan),
        }
        # The configuration is written before the seal is set, so that a guard's line is never lost.
        for step in sorted(plan.steps, key=lambda step: step in (SEAL, UNSEAL)):
            doing[step]()

    def _create(self) -> None:
        driver = self.registry.drivers[self.options["backing_store"]]
        directory = f"{self.host.lxcpath}/{self.name}"
        rootfs = driver.home(self.name, self.host.lxcpath, self.storage)
        record = Provenance(
            id=uuid.uuid4().hex,
            name=self.name,
            lxcpath=self.host.lxcpath,
            origin="created",
            rootfs=str(rootfs),
            family=self.options["family"] or self.name,
            version=VERSION,
            time=now(),
        )
        claim(directory, record)
        try:
            driver.create(rootfs, directory, self.storage, record.id)
            os.makedirs(f"{directory}/rootfs", exist_ok=True)
            mounts.in_private_mounts(lambda: self._furnish(driver, rootfs, f"{directory}/rootfs"))
            config = self._first_config(directory)
            config.set("lxc.rootfs.path", [str(rootfs)])
            config.set("lxc.uts.name", [self.name])
            inherited = {key: config.get_all(key) for key in self.config}
            for key, values in self.config.items():
                config.set(key, values)
            write_atomically(f"{directory}/config", str(config))
            record = replace(record, config_digest=config.digest(), inherited=inherited)
            write_atomically(f"{directory}/fleet.lxc.intent", record.dumps())
            complete(directory)
        except BaseException:
            with contextlib.suppress(FleetError, OSError):
                Applier(self.host, Settings(workers=1)).discard(directory, rootfs, record.id)
            raise

    def _furnish(self, driver: StorageDriver, rootfs: Rootfs, point: str) -> None:
        """Fill the new root filesystem, where nobody else sees it mounted."""
        with driver.rootfs_view(rootfs, point, writable=True, devices=True) as root:
            if self.options["template"]:
                self._by_template()
            else:
                self.runner.run(
                    ["tar", "--extract", "--file", self.options["rootfs_archive"], "--directory", root]
                    + ["--numeric-owner", "--same-owner", "--preserve-permissions", "--xattrs", "--xattrs-include=*", "--acls", "--sparse"],
                    container=self.name,
                )
            if self.options["dpkg_unsafe_io"]:
                with GuestRoot([root]) as guest:
                    if not dpkg.set_unsafe_io(guest, True):
                        self._warn_of_no_dpkg()

    def _by_template(self) -> None:
        """lxc-create finds its directory made and, where the store needs that, mounted: each store is served alike."""
        arguments: list[str] = []
        for key, value in (self.options["template_options"] or {}).items():
            if value is None or value is False:
                continue
            flag = f"--{key}" if len(key) > 1 else f"-{key}"
            arguments += [flag] if value is True else [flag, str(value)]
        argv = ["lxc-create", "-P", self.host.lxcpath, "-n", self.name, "-t", self.options["template"], "-B", "dir"]
        self.runner.run([*argv, "--", *arguments] if arguments else argv, container=self.name)

    def _first_config(self, directory: str) -> Config:
        """What lxc-create wrote, or for an archive what it would have begun with."""
        if os.path.exists(f"{directory}/config"):
            return Config.read(f"{directory}/config")
        default = self.runner.run(["lxc-config", "lxc.default_config"], check=False).stdout.strip()
        try:
            config = Config.read(default)
        except OSError:
            config = Config()
        common = "/usr/share/lxc/config/common.conf"
        if os.path.exists(common) and common not in config.get_all("lxc.include"):
            config.lines.insert(0, f"lxc.include = {common}")
        return config

    def _adopt(self, found: Container) -> None:
        record = Provenance(
            id=uuid.uuid4().hex,
            name=self.name,
            lxcpath=self.host.lxcpath,
            origin="adopted",
            rootfs=str(found.rootfs),
            family=self.options["family"] or self.name,
            config_digest=found.config.digest(),
            version=VERSION,
            time=now(),
        )
        self.registry.driver(found.rootfs).mark(found.rootfs, record.id)
        write_atomically(f"{found.directory}/{PROVENANCE}", record.dumps())

    def _stop(self, found: Container) -> None:
        if found.state == "frozen":
            self.host.unfreeze(self.name)
        self.host.stop(self.name, 60, force=False)

    def _write_config(self, plan: BasePlan) -> None:
        config, found = plan.config, self.host.read(self.name)
        before = found.provenance.inherited
        inherited = {key: before.get(key, plan.found.config.get_all(key)) for key in self.config}
        write_atomically(f"{found.directory}/config", str(config))
        record = replace(found.provenance, inherited=inherited, config_digest=config.digest())
        write_atomically(f"{found.directory}/{PROVENANCE}", record.dumps())

    def _tune(self, plan: BasePlan) -> None:
        found = replace(plan.found, state=STOPPED, pid=None) if STOP in plan.steps else plan.found
        if found.provenance and found.provenance.sealed:
            # What seals it by the store's means is in the way. Cut off here, the changed fingerprint tells.
            self.registry.driver(found.rootfs).unseal(found.rootfs)
        self._in_guest(found, lambda guest: dpkg.set_unsafe_io(guest, self.options["dpkg_unsafe_io"]), writable=True)

    def _seal(self, plan: BasePlan) -> None:
        base = self.host.read(self.name)
        driver = self.registry.driver(base.rootfs)
        check_unused(base, driver, "is not sealed")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{base.directory}/{REFUSED}")
        write_guard(f"{base.directory}/{GUARD}", guard_script(base))
        config = with_guard(base.config, base.directory, True)
        if config != base.config:
            write_atomically(f"{base.directory}/config", str(config))
        generation = uuid.uuid4().hex[:12]
        driver.seal(base.rootfs, generation)
        record = replace(base.provenance, sealed=True, generation=generation, fingerprint=fingerprint(base, driver), config_digest=config.digest())
        write_atomically(f"{base.directory}/{PROVENANCE}", record.dumps())

    def _unseal(self) -> None:
        base = self.host.read(self.name)
        self.registry.driver(base.rootfs).unseal(base.rootfs)
        record = replace(base.provenance, sealed=False, generation=None, fingerprint=None)
        self._without_guard(base, record)

    def _without_guard(self, base: Container, record: Provenance | None) -> None:
        config = with_guard(base.config, base.directory, False)
        if config != base.config:
            write_atomically(f"{base.directory}/config", str(config))
        if record:
            write_atomically(f"{base.directory}/{PROVENANCE}", replace(record, config_digest=config.digest()).dumps())
        for name in (GUARD, REFUSED):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{base.directory}/{name}")

    def _forget(self, base: Container) -> None:
        if base.rootfs and base.provenance.sealed:
            self.registry.driver(base.rootfs).unseal(base.rootfs)
        self._without_guard(base, None)
        os.unlink(f"{base.directory}/{PROVENANCE}")

    @staticmethod
    def _sweep(applier: Applier, found: Container) -> None:
        record = found.provenance
        applier.discard(found.directory, Rootfs.parse(record.rootfs) if record else None, record.id if record else None)

    def _remove(self, applier: Applier, plan: BasePlan) -> None:
        for dependent in plan.dependents:
            applier.remove(dependent)
        applier.remove(plan.found)

    # Results

    def _record(self, found: Container | None, plan: BasePlan) -> dict[str, Any]:
        record = found.provenance if found else None
        absent = found is None or (self.options["state"] == "absent" and REMOVE in plan.steps)
        return {
            "name": self.name,
            "lxcpath": self.host.lxcpath,
            "state": ABSENT if absent else found.state,
            "origin": record.origin if record else None,
            "sealed": bool(record and record.sealed),
            "family": record.family if record else None,
            "generation": record.generation if record else None,
            "fingerprint": record.fingerprint if record else None,
            "backing_store": found.rootfs.store if found and found.rootfs else None,
            "rootfs": str(found.rootfs) if found and found.rootfs else None,
            "dependents": sorted(f"{d.lxcpath}/{d.name}" for d in plan.dependents),
        }

    def _diff(self, plan: BasePlan) -> dict[str, str]:
        if not plan.changed:
            return {"before": "", "after": ""}
        found = plan.found
        before = [f"{self.name}: {_described(found)}\n"]
        after = [f"{self.name}: {'absent' if REMOVE in plan.steps else self.options['state']} ({', '.join(plan.steps)})\n"]
        after += [f"{dependent.name}: absent\n" for dependent in plan.dependents if REMOVE in plan.steps]
        before += [f"{dependent.name}: {dependent.state}\n" for dependent in plan.dependents if REMOVE in plan.steps]
        if found and plan.config and CONFIGURE in plan.steps:
            for key in sorted({*self.config, *(found.provenance.inherited if found.provenance else {})}):
                before += [f"  {key} = {value}\n" for value in found.config.get_all(key)]
                after += [f"  {key} = {value}\n" for value in plan.config.get_all(key)]
        if TUNE in plan.steps:
            wanted = self.options["dpkg_unsafe_io"]
            before.append(f"  dpkg_unsafe_io: {str(not wanted).lower()}\n")
            after.append(f"  dpkg_unsafe_io: {str(wanted).lower()}\n")
        return {"before": "".join(before), "after": "".join(after), "before_header": "base", "after_header": "base"}


def _described(found: Container | None) -> str:
    if found is None:
        return "absent"
    if found.kind == UNFINISHED:
        return "unfinished"
    return "sealed" if found.provenance and found.provenance.sealed else "unsealed" if found.provenance else "not ours"
