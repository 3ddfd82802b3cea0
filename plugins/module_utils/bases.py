# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One call of lxc_base, from options to results: the canonical base created, adopted, sealed, unsealed, removed.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, Mapping

from ansible_collections.fleet.lxc.plugins.module_utils import cgroups, names, readiness
from ansible_collections.fleet.lxc.plugins.module_utils.base_apply import BaseApplier
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
    BasePlanner,
)
from ansible_collections.fleet.lxc.plugins.module_utils.command import Runner
from ansible_collections.fleet.lxc.plugins.module_utils.config import Config
from ansible_collections.fleet.lxc.plugins.module_utils.container import ABSENT, COMPLETE, RUNNING, STOPPED, UNFINISHED, Container, Provenance
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FAILED, INVALID, MISSING, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.host import LxcHost, default_lxcpath, require_root
from ansible_collections.fleet.lxc.plugins.module_utils.keys import check_options, fill
from ansible_collections.fleet.lxc.plugins.module_utils.locks import base_lock, hold, lxcpath_lock, settled
from ansible_collections.fleet.lxc.plugins.module_utils.storage.registry import Registry, check_storage
from ansible_collections.fleet.lxc.plugins.module_utils.waiting import Wait, await_ready, log_of
from ansible_collections.fleet.lxc.plugins.module_utils.wanted import BASE_LEAST, check_numbers, check_wait, wanted_storage

_MAKERS = ("template", "rootfs_archive", "adopt")


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
        self.config = {key: [fill(value, self.name, None) for value in values] for key, values in check_options(options["config"] or {}).items()}
        self.storage = wanted_storage(options["storage"])
        self._check_options()
        if options["state"] != "absent":
            cgroups.check([self.config])

    def _check_options(self) -> None:
        options = self.options
        chosen = [maker for maker in _MAKERS if options[maker]]
        if len(chosen) > 1:
            raise FleetError(f"{' and '.join(chosen)} exclude each other", container=self.name, kind=INVALID)
        if options["template_options"] and not options["template"]:
            raise FleetError("template_options need a template", container=self.name, kind=INVALID)
        check_storage(self.registry.drivers[options["backing_store"]], self.storage)
        check_numbers(options, BASE_LEAST)
        check_wait(options)
        archive = options["rootfs_archive"]
        if archive and not os.path.isfile(archive):
            raise FleetError(f"rootfs_archive {archive} is not a file on this host", container=self.name, mend="Copy it there first.", kind=MISSING)

    def run(self, check_mode: bool) -> dict[str, Any]:
        """Do what the options ask; in check mode say what would be done.

        :raises FleetError: with nothing half done: a base is whole, or the next run sweeps it.
        """
        self.host.check(writing=True)
        planner = BasePlanner(self.host, self.name, self.options, self.config, self.storage)
        locks = [lxcpath_lock(self.host.lxcpath), base_lock(self.host.lxcpath, self.name, exclusive=True)]
        plan = planner.plan() if check_mode else settled(planner.plan, locks, self.options["lock_timeout"])
        warnings, scrubbed = planner.warnings, []
        self._try_configuration(plan)
        if plan.changed and not check_mode:
            with hold(locks, timeout=self.options["lock_timeout"]) as held, self.runner.keeping(held):
                plan = planner.plan()
                applier = BaseApplier(self.host, self.name, self.options, self.config, self.storage)
                try:
                    applier.apply(plan)
                except OSError as error:
                    raise FleetError("failed", container=self.name, why=str(error), kind=FAILED) from error
                warnings += applier.warnings
                scrubbed = applier.scrubbed
        found = self._foreseen(plan) if check_mode else self.host.read(self.name)
        ready = self._wait(found) if not check_mode and self.options["state"] == "started" else ([], [])
        return {
            "changed": plan.changed,
            "actions": list(plan.steps),
            "base": {**self._record(found, plan), "ipv4": ready[0], "ipv6": ready[1]},
            "scrubbed": scrubbed,
            "diff": self._diff(plan),
            "warnings": list(dict.fromkeys(warnings)),
        }

    def _wait(self, found: Container) -> tuple[list[str], list[str]]:
        """Wait for a started base as the options say; returns its addresses.

        :raises FleetError: FAILED or TIMEOUT.
        """
        if not found.pid:
            why = log_of(self.host.lxcpath, self.name, found.config)
            raise FleetError("stopped again right after its start", container=self.name, why=why, kind=FAILED)
        wait = Wait(self.options["wait_for"], self.options["wait_command"], self.options["wait_timeout"])
        for failure in await_ready(self.host, wait, {self.name: found.pid}, {self.name: found.config}).values():
            raise failure
        return readiness.addresses(found.pid)

    def _try_configuration(self, plan: BasePlan) -> None:
        """:raises FleetError: INVALID for keys or values that LXC would not load."""
        if self.config and (CREATE in plan.steps or CONFIGURE in plan.steps):
            tried = plan.config or Config(f"{key} = {value}" for key, values in self.config.items() for value in values)
            complaint = self.host.complaint(tried)
            if complaint:
                raise FleetError("LXC would not load its configuration", container=self.name, why=complaint, mend="Correct the option config.", kind=INVALID)

    def _foreseen(self, plan: BasePlan) -> Container | None:
        """The base as the steps would leave it; a new generation has no name yet."""
        found, steps = plan.found, plan.steps
        if REMOVE in steps or steps in ((SWEEP,), (STOP, SWEEP)):
            return None
        if CREATE in steps:
            rootfs = self.registry.drivers[self.options["backing_store"]].home(self.name, self.host.lxcpath, self.storage)
            found = Container(self.name, self.host.lxcpath, COMPLETE, rootfs=rootfs)
        record = found.provenance if found and FORGET not in steps else None
        if CREATE in steps or ADOPT in steps:
            origin = "created" if CREATE in steps else "adopted"
            record = Provenance("", self.name, self.host.lxcpath, origin, str(found.rootfs), self.options["family"] or self.name)
        if record and (SEAL in steps or UNSEAL in steps):
            record = replace(record, sealed=SEAL in steps, generation=None, fingerprint=None)
        state = STOPPED if STOP in steps else RUNNING if START in steps else found.state if found else ABSENT
        return replace(found, provenance=record, state=state) if found else None

    def _record(self, found: Container | None, plan: BasePlan) -> dict[str, Any]:
        record = found.provenance if found else None
        return {
            "name": self.name,
            "lxcpath": self.host.lxcpath,
            "state": found.state if found else ABSENT,
            "origin": record.origin if record else None,
            "sealed": bool(record and record.sealed),
            "family": record.family if record else None,
            "generation": record.generation if record else None,
            "version": record.base_version if record else None,
            "fingerprint": record.fingerprint if record else None,
            "backing_store": found.rootfs.store if found and found.rootfs else None,
            "rootfs": str(found.rootfs) if found and found.rootfs else None,
            "dependents": sorted({f"{d.lxcpath}/{d.name}" for d in plan.dependents}),
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
            for key in sorted({*plan.inherited, *(found.provenance.inherited if found.provenance else {})}):
                before += [f"  {key} = {value}".rstrip() + "\n" for value in found.config.own(key, self.host.includes)]
                after += [f"  {key} = {value}".rstrip() + "\n" for value in plan.config.own(key, self.host.includes)]
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
