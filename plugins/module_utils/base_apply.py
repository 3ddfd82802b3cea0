# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A base's plan carried out: made, adopted, sealed, unsealed, removed.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from dataclasses import replace
from typing import Any, Mapping

from ansible_collections.fleet.lxc.plugins.module_utils import dpkg, mounts
from ansible_collections.fleet.lxc.plugins.module_utils.apply import Applier, Settings
from ansible_collections.fleet.lxc.plugins.module_utils.base_plan import (
    ADOPT,
    CONFIGURE,
    CREATE,
    FORGET,
    REMOVE,
    SEAL,
    START,
    STOP,
    SWEEP,
    TUNE,
    UNSEAL,
    BasePlan,
    in_guest,
    no_dpkg,
)
from ansible_collections.fleet.lxc.plugins.module_utils.config import GUARD, Config, with_keys
from ansible_collections.fleet.lxc.plugins.module_utils.container import INTENT, PROVENANCE, STOPPED, Container, Provenance, Rootfs
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.guest import GuestRoot
from ansible_collections.fleet.lxc.plugins.module_utils.host import LxcHost, names_of
from ansible_collections.fleet.lxc.plugins.module_utils.identity import ALL, scrub
from ansible_collections.fleet.lxc.plugins.module_utils.records import VERSION, claim, complete, now, reconfigure, write_atomically
from ansible_collections.fleet.lxc.plugins.module_utils.seal import REFUSED, check_unused, fingerprint, guard_script, with_guard
from ansible_collections.fleet.lxc.plugins.module_utils.storage.driver import Storage, StorageDriver


class BaseApplier:
    """Takes the steps of a base's plan.

    :param options: the module's.
    :param config: its option ``config``, checked.
    """

    def __init__(self, host: LxcHost, name: str, options: Mapping[str, Any], config: Mapping[str, list[str]], storage: Storage):
        self.host, self.name, self.options, self.config, self.storage = host, name, options, config, storage
        self.runner, self.registry = host.runner, host.registry
        self.warnings: list[str] = []
        self.scrubbed: list[str] = []

    def apply(self, plan: BasePlan) -> None:
        applier = Applier(self.host, Settings(workers=2))
        doing = {
            SWEEP: lambda: applier.sweep(plan.found),
            CREATE: self._create,
            ADOPT: lambda: self._adopt(plan.found),
            STOP: lambda: self._stop(plan.found),
            START: lambda: self._start(plan.found),
            CONFIGURE: lambda: self._write_config(plan),
            TUNE: lambda: self._tune(plan),
            SEAL: lambda: self._seal(plan),
            UNSEAL: self._unseal,
            FORGET: lambda: self._forget(plan),
            REMOVE: lambda: self._remove(applier, plan),
        }
        # The configuration is written before the seal is set, so that a guard's line is never lost.
        for step in sorted(plan.steps, key=lambda step: step in (SEAL, UNSEAL, START)):
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
            config, inherited = with_keys(config, self.config, {}, self.host.includes)
            write_atomically(f"{directory}/config", str(config))
            record = replace(record, config_digest=config.digest(), inherited=inherited)
            write_atomically(f"{directory}/{INTENT}", record.dumps())
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
                        self.warnings.append(no_dpkg(self.name))

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
        self.host.stop(self.name, self.options["stop_timeout"], self.options["force_stop"])

    def _start(self, found: Container | None) -> None:
        if found and found.state == "frozen":
            self.host.unfreeze(self.name)
        else:
            self.host.start(self.name, self.options["timeout"])

    def _write_config(self, plan: BasePlan) -> None:
        found = self.host.read(self.name)
        record = replace(found.provenance, inherited=dict(plan.inherited), config_digest=plan.config.digest())
        reconfigure(found.directory, found.provenance, plan.config, record)

    def _tune(self, plan: BasePlan) -> None:
        found = replace(plan.found, state=STOPPED, pid=None) if STOP in plan.steps else plan.found
        if found.provenance and found.provenance.sealed:
            # What seals it by the store's means is in the way. Cut off here, the changed fingerprint tells.
            self.registry.driver(found.rootfs).unseal(found.rootfs)
        in_guest(self.host, found, lambda guest: dpkg.set_unsafe_io(guest, self.options["dpkg_unsafe_io"]), writable=True)

    def _seal(self, plan: BasePlan) -> None:
        base = self.host.read(self.name)
        driver = self.registry.driver(base.rootfs)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{base.directory}/{REFUSED}")
        write_atomically(f"{base.directory}/{GUARD}", guard_script(base), 0o755)
        config = with_guard(base.config, base.directory, True)
        if config != base.config:
            write_atomically(f"{base.directory}/config", str(config))
        # Whoever starts it from here on meets the guard; who was faster is seen.
        check_unused(base, driver, "is not sealed")
        if self.options["scrub"]:
            self._scrub(base, plan.dependents)
        generation = uuid.uuid4().hex[:12]
        driver.seal(base.rootfs, generation)
        record = replace(
            base.provenance,
            sealed=True,
            generation=generation,
            base_version=self.options["version"],
            fingerprint=fingerprint(base, driver),
            config_digest=config.digest(),
        )
        write_atomically(f"{base.directory}/{PROVENANCE}", record.dumps())

    def _scrub(self, base: Container, dependents: tuple[Container, ...]) -> None:
        """Rid a base of what its clones must not share. Done over, it finds nothing."""
        if dependents:
            self.warnings.append(f"{self.name} was not scrubbed: {names_of(dependents)} stand on it")
            return
        if base.provenance.sealed:
            self.registry.driver(base.rootfs).unseal(base.rootfs)

        def warn(text: str) -> None:
            self.warnings.append(f"{self.name}: {text}")

        self.scrubbed = in_guest(self.host, base, lambda guest: scrub(guest, ALL.scrubbed, warn), writable=True)

    def _unseal(self) -> None:
        base = self.host.read(self.name)
        self.registry.driver(base.rootfs).unseal(base.rootfs)
        config = with_guard(base.config, base.directory, False)
        self._without_guard(base, config)
        record = replace(base.provenance, sealed=False, generation=None, base_version=None, fingerprint=None, config_digest=config.digest())
        write_atomically(f"{base.directory}/{PROVENANCE}", record.dumps())

    @staticmethod
    def _without_guard(base: Container, config: Config | None) -> None:
        if config is not None and config != base.config:
            write_atomically(f"{base.directory}/config", str(config))
        for name in (GUARD, REFUSED):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{base.directory}/{name}")

    def _forget(self, plan: BasePlan) -> None:
        base = plan.found
        if base.rootfs and base.provenance.sealed:
            self.registry.driver(base.rootfs).unseal(base.rootfs)
        self._without_guard(base, plan.config)
        if base.rootfs:
            self.registry.driver(base.rootfs).unmark(base.rootfs)
        os.unlink(f"{base.directory}/{PROVENANCE}")

    def _remove(self, applier: Applier, plan: BasePlan) -> None:
        for dependent in plan.dependents:
            applier.remove(dependent)
        applier.remove(plan.found)
