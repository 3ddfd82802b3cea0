# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One call of lxc_clone, from options to results: observe, plan, apply, wait.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import functools
import os
import re
import uuid
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Iterable, Mapping, Sequence

from ansible_collections.fleet.lxc.plugins.module_utils import cgroups, mounts
from ansible_collections.fleet.lxc.plugins.module_utils import plan as planner
from ansible_collections.fleet.lxc.plugins.module_utils import readiness
from ansible_collections.fleet.lxc.plugins.module_utils.apply import Applier, Done, Settings
from ansible_collections.fleet.lxc.plugins.module_utils.command import Runner
from ansible_collections.fleet.lxc.plugins.module_utils.config import Config, hwaddrs, without_hwaddr
from ansible_collections.fleet.lxc.plugins.module_utils.container import ABSENT, FOREIGN, RUNNING, STOPPED, UNFINISHED, Container, Rootfs
from ansible_collections.fleet.lxc.plugins.module_utils.diff import render
from ansible_collections.fleet.lxc.plugins.module_utils.errors import BUSY, FAILED, INVALID, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.host import LxcHost, Observed, default_lxcpath, require_root
from ansible_collections.fleet.lxc.plugins.module_utils.identity import MacAddresses
from ansible_collections.fleet.lxc.plugins.module_utils.locks import base_lock, hold, hold_if_free, lxcpath_lock, settled
from ansible_collections.fleet.lxc.plugins.module_utils.names import abridged
from ansible_collections.fleet.lxc.plugins.module_utils.neighbours import Neighbours
from ansible_collections.fleet.lxc.plugins.module_utils.plan import Item, Make, Plan, Wanted, WantedClone
from ansible_collections.fleet.lxc.plugins.module_utils.records import VERSION, now
from ansible_collections.fleet.lxc.plugins.module_utils.seal import check_source, check_unchanged, check_unused, obstacle
from ansible_collections.fleet.lxc.plugins.module_utils.storage.driver import StorageDriver
from ansible_collections.fleet.lxc.plugins.module_utils.storage.registry import Choice, Registry, Request
from ansible_collections.fleet.lxc.plugins.module_utils.waiting import Wait, await_ready, log_of
from ansible_collections.fleet.lxc.plugins.module_utils.wanted import wanted_clones, wanted_identity, wanted_ipv4, wanted_storage

_NUMBERS = re.compile(r"[\d.]+")
_PAST = {"create": "created", "start": "started", "stop": "stopped", "remove": "removed"}


@dataclass
class Seen:
    """One observation with the plan that follows from it."""

    observed: Observed
    plan: Plan
    source: Container | None
    choice: Choice | None
    warnings: list[str]


class CloneCall:
    """The one call that makes, starts, stops and removes clones."""

    def __init__(self, options: Mapping[str, Any]):
        require_root()
        self.options = dict(options)
        self.storage = wanted_storage(options["storage"])
        self.identity = wanted_identity(options["identity"])
        self.runner = Runner(options["timeout"])
        self.runner.require("lxc-start")
        self.registry = Registry(self.runner)
        own = self.options["lxcpath"] = self.options["lxcpath"] or default_lxcpath(self.runner)
        self.host = LxcHost(own, self.runner, self.registry)
        elsewhere = self.options["source_lxcpath"]
        self.source_host = self.host if not elsewhere or elsewhere == own else LxcHost(elsewhere, self.runner, self.registry)
        self.clones: tuple[WantedClone, ...] = wanted_clones(self.options)
        self.ipv4 = wanted_ipv4(self.options, self.clones)
        if self.options["state"] != "absent":
            cgroups.check((clone.config for clone in self.clones), "config")

    def run(self, check_mode: bool, diff: bool = True) -> dict[str, Any]:
        """Do what the options ask; in check mode say what would be done.

        :param diff: whether the result has the plan as a diff.

        :raises FleetError: before anything is touched. What fails later is in the result's ``failures``.
        """
        self.host.check(writing=True)
        if self.source_host is not self.host:
            self.source_host.check(writing=False)
        locks, timeout, done = self._locks(), self.options["lock_timeout"], Done()
        with nullcontext() if check_mode else hold_if_free(locks) as held:
            seen = self._look() if check_mode or held else settled(self._look, locks, timeout)
            self._try_configurations(seen.plan)
            if held and seen.plan.changed:
                done = self._apply(seen, held)
        if check_mode:
            done.steps = {item.name: list(item.steps) for item in seen.plan.items}
        elif seen.plan.changed and not held:
            with hold(locks, timeout) as held:
                seen = self._look()
                done = self._apply(seen, held)
        done.failures.update((item.name, item.refusal) for item in seen.plan.items if item.refusal)
        if not check_mode:
            addresses = self._wait(seen.plan, done)
        else:
            addresses = self._addresses({item.name: item.container.pid for item in seen.plan.items if item.container and item.container.pid})
        result = self._result(seen, done, addresses)
        return {**result, "diff": render(seen.plan)} if diff else result

    def _apply(self, seen: Seen, locks: tuple[int, ...]) -> Done:
        with self.runner.keeping(locks):
            return Applier(self.host, self._settings(), seen.choice, seen.source).apply(seen.plan)

    def _locks(self) -> list[Any]:
        locks = [lxcpath_lock(self.host.lxcpath)]
        if self.source_host is not self.host:
            locks.append(lxcpath_lock(self.source_host.lxcpath))
        if self.options["source"]:
            locks.append(base_lock(self.source_host.lxcpath, self.options["source"], exclusive=False))
        return locks

    def _settings(self) -> Settings:
        return Settings(
            workers=self.options["workers"] or min(8, 2 * (os.cpu_count() or 1)),
            stops_at_once=self.options["workers"] or 32,
            on_error=self.options["on_error"],
            stop_timeout=self.options["stop_timeout"],
            force_stop=self.options["force_stop"],
            timeout=self.options["timeout"],
            size=self.storage.size,
            identity=self.identity,
        )

    def _look(self) -> Seen:
        observed = self.host.observe()
        state, source_name = self.options["state"], self.options["source"]
        source = None
        if source_name:
            source = observed.get(source_name) if self.source_host is self.host else self.source_host.read(source_name)
        warnings: list[str] = []
        choice = make = None
        if state == "absent":
            for clone in self.clones:
                found = observed.get(clone.name.name)
                elsewhere = self.host.dependents_elsewhere(found) if found else []
                if elsewhere:
                    observed.dependents.setdefault(found.name, []).extend(elsewhere)
        else:
            missing = [clone for clone in self.clones if getattr(observed.get(clone.name.name), "kind", UNFINISHED) == UNFINISHED]
            if source is None or missing:
                unfinished = frozenset(clone.name.name for clone in missing if clone.name.name in observed.containers)
                choice, warnings = self._choose(source, source_name, tuple(clone.name.name for clone in missing), unfinished)
                expanded = self.source_host.expanded(source)
                make = Make(
                    method=choice.order.method,
                    place=functools.partial(choice.driver.place, choice.order),
                    new_id=lambda: uuid.uuid4().hex,
                    mac=MacAddresses(self.identity.hwaddr, self.host.lxcpath, lambda: self._neighbours(observed).macs(unfinished)),
                    time=now(),
                    version=VERSION,
                    expanded=expanded,
                    bare=without_hwaddr(expanded),
                )
        # A source that is gone, or mistyped, is a family's name still: it never widens a removal.
        family = source.provenance.family if source and source.provenance else source_name
        wanted = Wanted(
            self.clones,
            state,
            self.host.lxcpath,
            source,
            family,
            foreign=self.options["foreign"],
            cascade=self.options["cascade"],
            size=self.storage.size,
            method=self.options["method"],
            backing_store=self.options["backing_store"],
            goes_on=self.options["on_error"] == "continue",
            includes=self.host.includes,
            ipv4=self.ipv4 and replace(self.ipv4, holders=lambda: self._neighbours(observed).addresses()),
        )
        plan = planner.plan(wanted, observed.containers, observed.dependents, make)
        plan = self._refuse_obstacles(plan)
        self._refuse_in_use(plan)
        warnings += told((item.name, text) for item in plan.items for text in item.warnings)
        return Seen(observed, plan, source, choice, warnings)

    def _neighbours(self, observed: Observed) -> Neighbours:
        """Who else is on this host."""
        return Neighbours(observed, [self.source_host.lxcpath, default_lxcpath(self.runner)])

    def _refuse_obstacles(self, plan: Plan) -> Plan:
        """What a store would refuse to remove is refused before anything is stopped; or left out, where the others go on."""
        items, going = [], []
        for item in plan.items:
            goes = {planner.REMOVE, planner.SWEEP} & set(item.steps)
            problem = obstacle(item.container, self.registry, going) if goes else None
            if problem and self.options["on_error"] != "continue":
                raise problem
            if problem:
                item = Item(item.name, container=item.container, state=item.container.state, refusal=problem)
            elif goes and item.container.rootfs:
                going.append(item.container.rootfs.path)
            items.append(item)
        return Plan(tuple(items))

    def _refuse_in_use(self, plan: Plan) -> None:
        """What LXC takes for stopped may run under another name, or through another path of the lxcpath: it is neither removed nor started."""
        roots = None
        for item in plan.items:
            found = item.container
            touched = {planner.REMOVE, planner.SWEEP, planner.START} & set(item.steps)
            if touched and found and found.rootfs and found.state == STOPPED:
                roots = list(mounts.roots()) if roots is None else roots
                what = "started" if planner.START in touched else "removed"
                check_unused(found, self.registry.driver(found.rootfs, item.name), f"is not {what}", roots)

    def _choose(self, source: Container | None, name: str, clones: tuple[str, ...], unfinished: frozenset[str]) -> tuple[Choice, list[str]]:
        driver = self.registry.driver(source.rootfs, name) if source and source.rootfs else None
        check_source(source, name, self.source_host.lxcpath, driver)
        method, store = self.options["method"], self.options["backing_store"]
        choice = self.registry.choose(Request(source.rootfs, name, self.host.lxcpath, method, store, clones, unfinished, self.storage))
        below = [] if driver.capabilities.source_writable_with_clones else self._below(source, driver)
        if choice.driver.capabilities.source_writable_with_clones:
            if source.provenance and source.provenance.sealed:
                check_unchanged(source, driver)
            return choice, []
        return choice, [warning for base in below or [source] for warning in check_unchanged(base, self.registry.driver(base.rootfs))]

    def _below(self, source: Container, driver: StorageDriver) -> list[Container]:
        """The containers on whose root filesystems the source stands, and its clones will.

        :raises FleetError: BUSY while one of them runs.
        """
        bases = []
        for lower in driver.lower_of(source.rootfs):
            directory = os.path.dirname(lower)
            base = LxcHost(os.path.dirname(directory), self.runner, self.registry).read(os.path.basename(directory))
            if base is None or base.rootfs is None or base.rootfs.path != lower:
                base = Container(lower, source.lxcpath, FOREIGN, rootfs=Rootfs("dir", lower))  # no container's
            if base.state != STOPPED:
                raise FleetError(
                    f"is not cloned while {base.name} is {base.state}",
                    container=source.name,
                    why=f"it stands on the root filesystem of {base.name}",
                    mend=f"Stop that one first (lxc-stop -n {base.name}).",
                    kind=BUSY,
                )
            check_unused(base, self.registry.driver(base.rootfs), f"is the base of {source.name}, which is not cloned")
            bases.append(base)
        return bases

    def _try_configurations(self, plan: Plan) -> None:
        """Have LXC itself read what this task adds to configurations, all clones' in one.

        :raises FleetError: INVALID for the first clone whose configuration LXC would not load.
        """
        configurations: dict[tuple[str, ...], tuple[str, Config]] = {}
        for item in plan.items:
            config, record = (item.creation.config, item.creation.provenance) if item.creation else (item.configured, item.record)
            if config and record.inherited:
                lines = tuple(f"{key} = {value}" for key in record.inherited for value in config.own(key, self.host.includes))
                configurations.setdefault(lines, (item.name, config))
        if configurations:
            self._try(list(configurations.items()))

    def _try(self, configurations: list[tuple[tuple[str, ...], tuple[str, Config]]]) -> None:
        name, config = configurations[0][1]
        others = dict.fromkeys(line for lines, _first in configurations[1:] for line in lines if line not in configurations[0][0])
        complaint = self.host.complaint(Config([*config.lines, *others]))
        if complaint and len(configurations) == 1:
            raise FleetError(
                "LXC would not load its configuration", container=name, why=complaint, mend="Correct config, overrides or autostart.", kind=INVALID
            )
        if complaint:
            # It may be that they cannot stand together, and each can alone.
            half = len(configurations) // 2
            self._try(configurations[:half])
            self._try(configurations[half:])

    def _wait(self, plan: Plan, done: Done) -> dict[str, tuple[list[str], list[str]]]:
        """Wait as the options say; what is not ready in time is a failure. Returns the addresses of what runs."""
        up = [item for item in plan.items if item.state == RUNNING and item.name not in done.failures and set(item.steps) <= set(done.steps.get(item.name, ()))]
        if not up:
            return {}
        states = self.host.states()
        pids = {item.name: states[item.name][1] for item in up if item.name in states and states[item.name][1]}
        began = {item.name for item in up if planner.START in done.steps.get(item.name, ())}
        if self.options["wait_for"] != ["none"]:
            for item in up:
                if item.name not in pids and (item.name in began or not item.changed):
                    why = log_of(self.host.lxcpath, item.name, _config(item))
                    done.failures[item.name] = FleetError("stopped again right after its start", container=item.name, why=why, kind=FAILED)
        wait = Wait(self.options["wait_for"], self.options["wait_command"], self.options["wait_timeout"])
        done.failures.update(await_ready(self.host, wait, pids, {item.name: _config(item) for item in up}))
        return self._addresses(pids)

    @staticmethod
    def _addresses(pids: Mapping[str, int | None]) -> dict[str, tuple[list[str], list[str]]]:
        return {name: readiness.addresses(pid) for name, pid in pids.items() if pid}

    def _result(self, seen: Seen, done: Done, addresses: Mapping[str, tuple[list[str], list[str]]]) -> dict[str, Any]:
        generation = seen.source.provenance.generation if seen.source and seen.source.provenance else None
        clones = [self._record(item, seen, done, generation, addresses) for item in seen.plan.items]
        summary = {past: sum(step in done.steps.get(item.name, ()) for item in seen.plan.items) for step, past in _PAST.items()}
        summary["failed"] = len(done.failures)
        summary["unchanged"] = sum(not item.changed and item.name not in done.failures for item in seen.plan.items)
        detail = self.options["detail"]
        shown = [] if detail == "summary" else [c for c in clones if detail == "full" or c["changed"] or c["name"] in done.failures]
        return {
            "changed": any(done.steps.values()),
            "clones": shown,
            "summary": summary,
            "storage": self._headroom(seen),
            "warnings": seen.warnings + told(warning.partition(": ")[::2] for warning in done.warnings),
            "failures": done.failures,
            "left_out": [i.name for i in seen.plan.items if set(i.steps) - set(done.steps.get(i.name, ())) and i.name not in done.failures],
        }

    def _headroom(self, seen: Seen) -> dict[str, Any]:
        """How much room is left where these clones are."""
        places = [left.rootfs for left in map(planner.outcome, seen.plan.items) if left and left.rootfs] or [seen.source.rootfs if seen.source else None]
        if places[0] is None:
            return {}
        return self.registry.driver(places[0]).headroom(places[0])

    def _record(self, item: Item, seen: Seen, done: Done, generation: str | None, addresses: Mapping[str, tuple[list[str], list[str]]]) -> dict[str, Any]:
        actions = done.steps.get(item.name, [])
        left = planner.outcome(item, actions)
        record = left.provenance if left else None
        ipv4, ipv6 = addresses.get(item.name, ([], []))
        macs = hwaddrs(left.config) if left and left.config else []
        return {
            "name": item.name,
            "changed": bool(actions),
            "actions": actions,
            "state": "failed" if item.name in done.failures else left.state if left else ABSENT,
            "source": record.source if record else None,
            "family": record.family if record else None,
            "generation": record.generation if record else None,
            "stale": bool(record and generation and record.generation and record.generation != generation),
            "method": record.method if record else None,
            "backing_store": left.rootfs.store if left and left.rootfs else None,
            "rootfs": str(left.rootfs) if left and left.rootfs else None,
            "lxcpath": self.host.lxcpath,
            "ipv4": ipv4,
            "ipv6": ipv6,
            "hwaddr": macs[0] if macs else None,
            **({"identity": done.identity[item.name]} if item.name in done.identity else {}),
            **({"assigned": record.assigned} if record and record.assigned else {}),
            **({"restart_required": True} if self._runs_with_older(item, left, actions) else {}),
        }

    def _runs_with_older(self, item: Item, left: Container | None, actions: list[str]) -> bool:
        """Whether the container goes on running with an older configuration than it has."""
        if left is None or left.state == STOPPED or planner.START in actions:
            return False
        outdated = left.provenance.outdated if left.provenance else None
        return (item.restart_required and planner.CONFIGURE in actions) or (outdated is not None and outdated == self.host.life(item.container.pid))


def _config(item: Item) -> Config | None:
    left = planner.outcome(item)
    return left.config if left else None


def told(remarks: Iterable[Sequence[str]]) -> list[str]:
    """Warnings from (container, text): the same text is told once, however many containers it is of and whatever numbers are in it."""
    groups: dict[str, list[Sequence[str]]] = {}
    for name, text in remarks:
        groups.setdefault(_NUMBERS.sub("0", text.replace(name, "")), []).append((name, text))
    return [
        f"{name}: {text}" + (f" ({len(others)} more likewise: {abridged([other for other, _text in others])})" if others else "")
        for (name, text), *others in groups.values()
    ]
