# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The planner: what is there, what is wanted, and the list of steps between. Pure: it reads and writes nothing.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Callable, Collection, Iterable, Mapping

from ansible_collections.fleet.lxc.plugins.module_utils import config as configuration
from ansible_collections.fleet.lxc.plugins.module_utils.addresses import Assigner
from ansible_collections.fleet.lxc.plugins.module_utils.config import Config, Includes
from ansible_collections.fleet.lxc.plugins.module_utils.container import (
    ABSENT,
    BROKEN,
    COMPLETE,
    FOREIGN,
    FROZEN,
    RUNNING,
    STOPPED,
    UNFINISHED,
    Container,
    Provenance,
    Rootfs,
)
from ansible_collections.fleet.lxc.plugins.module_utils.errors import BUSY, CONFLICT, INVALID, RESOURCES, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.merge import Addressing, Keyed, WantedClone, assigner_of, with_options

# Steps, in the order in which a call takes them.
SWEEP, REMOVE, CREATE, GROW, CONFIGURE = "sweep", "remove", "create", "grow", "configure"
UNFREEZE, STOP, START, FREEZE = "unfreeze", "stop", "start", "freeze"

# The state table: (what it is, what is wanted) -> the steps. What is not named is already so.
POWER: dict[tuple[str, str], tuple[str, ...]] = {
    (STOPPED, "started"): (START,),
    (STOPPED, "frozen"): (START, FREEZE),
    (STOPPED, "restarted"): (START,),
    (RUNNING, "stopped"): (STOP,),
    (RUNNING, "frozen"): (FREEZE,),
    (RUNNING, "restarted"): (STOP, START),
    (RUNNING, "absent"): (STOP,),
    (FROZEN, "started"): (UNFREEZE,),
    (FROZEN, "stopped"): (UNFREEZE, STOP),
    (FROZEN, "restarted"): (UNFREEZE, STOP, START),
    (FROZEN, "absent"): (UNFREEZE, STOP),
}
_STATE_AFTER = {START: RUNNING, STOP: STOPPED, UNFREEZE: RUNNING, FREEZE: FROZEN, CREATE: STOPPED, REMOVE: ABSENT, SWEEP: ABSENT}
_POWER_STEPS = {UNFREEZE, STOP, START, FREEZE}


@dataclass(frozen=True)
class Wanted:
    """What one call asks for."""

    clones: tuple[WantedClone, ...]
    state: str
    lxcpath: str
    source: Container | None = None
    family: str | None = None  # of which removed clones must be; None: of any
    foreign: bool = False
    cascade: bool = False
    size: int | None = None
    method: str = "auto"
    backing_store: str | None = None
    goes_on: bool = False  # what is refused is left out, and does not stop the others
    includes: Includes = field(default_factory=Includes)  # handed over, for it reads files
    ipv4: Addressing | None = None

    @property
    def makes(self) -> bool:
        return self.state != "absent" and self.source is not None


@dataclass(frozen=True)
class Make:
    """How new clones are made: what the planner need not know, it is handed."""

    method: str
    place: Callable[[str], Rootfs]
    new_id: Callable[[], str]
    mac: Callable[[str, int, "str | None"], "str | None"]
    time: str
    version: str
    expanded: Config | None = None  # the source's configuration with its includes
    bare: tuple[int, ...] = ()  # its interfaces without a MAC address


@dataclass(frozen=True)
class Creation:
    """All that makes one clone."""

    rootfs: Rootfs
    config: Config
    files: Mapping[str, str]
    provenance: Provenance
    seed: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Item:
    """One container's part of a plan."""

    name: str
    steps: tuple[str, ...] = ()
    container: Container | None = None
    creation: Creation | None = None
    configured: Config | None = None
    record: Provenance | None = None  # that goes with it
    state: str = STOPPED  # after the steps
    restart_required: bool = False
    warnings: tuple[str, ...] = ()
    refusal: FleetError | None = None  # why nothing is done

    @property
    def changed(self) -> bool:
        return bool(self.steps)


@dataclass(frozen=True)
class Plan:
    items: tuple[Item, ...]

    @property
    def changed(self) -> bool:
        return any(item.changed for item in self.items)

    def having(self, step: str) -> list[Item]:
        return [item for item in self.items if step in item.steps]


def plan(wanted: Wanted, containers: Mapping[str, Container], dependents: Mapping[str, list[Container]], make: Make | None) -> Plan:
    """The steps from what is there to what is wanted.

    :param containers: what was observed below the wanted lxcpath.
    :param dependents: the storage dependents of each.
    :param make: needed when a clone is to be made.
    :raises FleetError: CONFLICT, BROKEN or BUSY, unless the others go on; nothing has been touched then.
    """
    refusals: dict[str, FleetError] = {}
    items: list[Item] = []
    assigner = assigner_of(wanted.ipv4, wanted.lxcpath, wanted.clones, containers, wanted.source, _family(wanted.source)) if wanted.makes else None
    for clone in wanted.clones:
        name = clone.name.name
        try:
            if wanted.state == "absent":
                items.append(_absent(name, containers.get(name), wanted))
            else:
                items.append(_present(clone, containers.get(name), wanted, make, assigner))
        except FleetError as refusal:
            refusal.container = refusal.container or name
            refusals[name] = refusal
    if wanted.state == "absent" and (wanted.goes_on or not refusals):
        items = _with_dependents(items, dependents, wanted, refusals)
    if refusals and not wanted.goes_on:
        raise _together(list(refusals.values()))
    if refusals:
        order = {clone.name.name: position for position, clone in enumerate(wanted.clones)}
        refused = [_refused(name, containers.get(name), refusal) for name, refusal in refusals.items()]
        items = refused + items if wanted.state == "absent" else sorted(refused + items, key=lambda item: order[item.name])
    return Plan(tuple(items))


def _refused(name: str, found: Container | None, refusal: FleetError) -> Item:
    return Item(name, container=found, state=found.state if found else ABSENT, refusal=refusal)


def _together(refusals: list[FleetError]) -> FleetError:
    first, others = refusals[0], sorted({str(refusal.container) for refusal in refusals[1:]})
    if not others:
        return first
    shown = ", ".join(others[:10]) + (" …" if len(others) > 10 else "")
    return FleetError(first.what, container=first.container, why=first.why, mend=f"{first.mend} Refused likewise: {shown}.".strip(), kind=first.kind)


def _family(source: Container) -> str:
    return source.provenance.family if source.provenance else source.name


def _present(clone: WantedClone, found: Container | None, wanted: Wanted, make: Make | None, assigner: Assigner | None) -> Item:
    name, source = clone.name.name, wanted.source
    if found is None or found.kind == UNFINISHED:
        steps = _sweep(found) if found else ()
        steps += (CREATE, *POWER.get((STOPPED, wanted.state), ()))
        return Item(name, steps, found, _creation(clone, wanted, source, make, assigner), state=_after(steps, STOPPED))
    family = _family(source)
    if found.kind == FOREIGN or found.is_base or found.provenance.family != family:
        raise FleetError(_what_it_is(found, family), container=name, mend="Choose another name, or remove it by hand if it is not needed.", kind=CONFLICT)
    if found.away:
        raise out_of_reach(found)
    if found.kind == BROKEN:
        raise FleetError(
            "is broken", container=name, why=found.damage, mend=f"Restore that, or remove it (lxc_clone name={name} state=absent) and run again.", kind="broken"
        )
    configured, record = _drift(clone, found, wanted, assigner)
    steps = (GROW,) if _grows(found, wanted.size) else ()
    steps += (CONFIGURE,) if configured else ()
    steps += POWER.get((found.state, wanted.state), ())
    after = _after(steps, found.state)
    restart = bool(configured) and after != STOPPED and START not in steps
    return Item(name, steps, found, None, configured, record, after, restart, tuple(_remarks(found, wanted, bool(configured))))


def out_of_reach(container: Container) -> FleetError:
    """The refusal for a container whose storage cannot be seen, and may exist."""
    return FleetError("is out of reach", container=container.name, why=container.damage, mend=container.away, kind=RESOURCES)


def _remarks(found: Container, wanted: Wanted, configured: bool) -> Iterable[str]:
    """What the operator should know of a clone that exists."""
    record = found.provenance
    if found.remark:
        yield found.remark
    if record.config_digest and found.config.digest() != record.config_digest:
        yield "its config was edited since it was last written here; " + (
            "what this task sets is put right" if configured else "no key of this task is concerned"
        )
    if record.method and wanted.method not in ("auto", record.method):
        yield f"it was made with method {record.method} and stays so, whatever method says now"
    if found.rootfs and wanted.backing_store not in (None, found.rootfs.store):
        yield f"it is on {found.rootfs.store} and stays there, whatever backing_store says now"


def _sweep(found: Container) -> tuple[str, ...]:
    # One that a power cut left may have been started with the host.
    return (*POWER.get((found.state, "absent"), ()), SWEEP)


def _creation(clone: WantedClone, wanted: Wanted, source: Container, make: Make, assigner: Assigner | None) -> Creation:
    name = clone.name.name
    directory = f"{wanted.lxcpath}/{name}"
    rootfs = make.place(name)
    config, files = configuration.derive(source.config, source.directory, name, directory, str(rootfs), make.mac, make.expanded, make.bare)
    config, keyed = with_options(clone, config, Keyed(), wanted.ipv4, assigner, wanted.includes)
    record = source.provenance
    provenance = Provenance(
        id=make.new_id(),
        name=name,
        lxcpath=wanted.lxcpath,
        origin="cloned",
        rootfs=str(rootfs),
        family=_family(source),
        source=source.name,
        source_lxcpath=source.lxcpath,
        set=clone.name.set,
        generation=record.generation if record else None,
        method=make.method,
        config_digest=config.digest(),
        **vars(keyed),
        version=make.version,
        time=make.time,
    )
    return Creation(rootfs, config, files, provenance, clone.seed)


def _grows(found: Container, size: int | None) -> bool:
    if size is None:
        return False
    if found.size is None:
        raise FleetError(
            "has no size of its own", container=found.name, why=f"its root filesystem is {found.rootfs}", mend="Leave storage.size out.", kind=INVALID
        )
    wanted = found.rounded(size)
    if wanted < found.size:
        raise FleetError(
            f"has {found.size} bytes and is not made smaller, to {wanted}", container=found.name, mend="Raise storage.size, or leave it out.", kind=INVALID
        )
    return wanted > found.size


def _drift(clone: WantedClone, found: Container, wanted: Wanted, assigner: Assigner | None) -> tuple[Config | None, Provenance | None]:
    """The configuration that the clone should have, when it has another, and the record that goes with it."""
    record = found.provenance
    before = Keyed(record.inherited, record.by_option, record.assigned)
    try:
        config, keyed = with_options(clone, found.config, before, wanted.ipv4, assigner, wanted.includes)
    except FleetError as error:
        mend = error.mend or "Mend its configuration file."
        raise FleetError(error.what, container=found.name, why=error.why, mend=mend, kind=error.kind) from error
    if config.get("lxc.uts.name") != found.name:
        config = Config(config.lines)
        config.set("lxc.uts.name", [found.name], wanted.includes)
    if (config, keyed) == (found.config, before):
        return None, None
    return config, replace(record, **vars(keyed), config_digest=config.digest())


def _absent(name: str, found: Container | None, wanted: Wanted) -> Item:
    if found is None:
        return Item(name, state=ABSENT)
    if found.kind == UNFINISHED:
        return Item(name, _sweep(found), found, state=ABSENT)
    if found.is_base:
        raise FleetError("is a base, which lxc_clone does not remove", container=name, mend=f"Use lxc_base name={name} state=absent.", kind=CONFLICT)
    if found.kind == FOREIGN and not wanted.foreign:
        raise FleetError(
            "was not made by fleet.lxc and is not removed",
            container=name,
            mend=f"Name it alone and set foreign: true, or use lxc-destroy -n {name}.",
            kind=CONFLICT,
        )
    if wanted.family and found.provenance and found.provenance.family != wanted.family:
        raise FleetError(_what_it_is(found, wanted.family), container=name, mend="Leave source out to remove a clone of any family.", kind=CONFLICT)
    return Item(name, (*POWER.get((found.state, "absent"), ()), REMOVE), found, state=ABSENT)


def _with_dependents(items: list[Item], dependents: Mapping[str, list[Container]], wanted: Wanted, refusals: dict[str, FleetError]) -> list[Item]:
    """Removals put in an order in which nothing loses what it stands on; dependents joined in where cascade allows.

    :param refusals: gets those that may not go.
    """
    removals = {item.name: item for item in items}
    ordered: dict[str, Item] = {}

    def goes(item: Item) -> bool:
        if item.name in ordered or item.name in refusals:
            return item.name in ordered
        # What another lxcpath holds is known by its whole path, never by a name that may stand here too.
        for other in dependents.get(item.name, ()) if item.changed else ():
            here = other.lxcpath == wanted.lxcpath
            first = removals.get(other.name) if here else None
            if first is None:
                refusal = refuse_cascade(item.name, other, wanted.cascade and here)
                first = None if refusal else Item(other.name, (REMOVE,), other, state=ABSENT)
            else:
                refusal = None
            if first and not goes(first):
                refusal = FleetError(f"is not removed: {other.name} stands on it and is not removed", container=item.name, kind=BUSY)
            if refusal:
                refusals[item.name] = refusal
                return False
        ordered[item.name] = item
        return True

    for item in items:
        goes(item)
    return list(ordered.values())


def refuse_cascade(name: str, dependent: Container, cascade: bool) -> FleetError | None:
    """Why a container may not go because of one that stands on its storage; None when that one may go first."""
    where = f"{dependent.lxcpath}/{dependent.name}"
    if not cascade:
        return FleetError(
            f"is not removed: {where} depends on its storage", container=name, mend="Remove the dependents first, or set cascade: true.", kind=BUSY
        )
    if not dependent.is_clone:
        return FleetError(
            f"is not removed: {where} depends on its storage and was not made by fleet.lxc", container=name, mend="Remove that one by hand first.", kind=BUSY
        )
    if dependent.state != STOPPED:
        return FleetError(f"is not removed: {where} depends on its storage and is {dependent.state}", container=name, mend="Stop that one first.", kind=BUSY)
    return None


def _after(steps: tuple[str, ...], state: str) -> str:
    for step in steps:
        state = _STATE_AFTER.get(step, state)
    return state


def _what_it_is(found: Container, family: str) -> str:
    if found.kind == FOREIGN:
        return f"exists and is not a clone of the family {family}: it has no valid record of fleet.lxc"
    if found.is_base:
        return f"exists and is a base, not a clone of the family {family}"
    return f"exists and is a clone of the family {found.provenance.family}, not of {family}"


def outcome(item: Item, taken: Collection[str] | None = None) -> Container | None:
    """The container that an item leaves behind, for a planner that is asked again and for the report.

    :param taken: the steps that were taken, where not all were.
    """
    taken = item.steps if taken is None else taken
    found = item.container
    if found and found.kind == UNFINISHED and SWEEP in taken or REMOVE in taken:
        found = None
    if CREATE in taken:
        made = item.creation
        found = Container(item.name, made.provenance.lxcpath, COMPLETE, STOPPED, None, made.config, made.rootfs, made.provenance)
    if found is None:
        return None
    if CONFIGURE in taken:
        found = replace(found, config=item.configured, provenance=item.record)
    return replace(found, state=_after(tuple(step for step in item.steps if step in taken and step in _POWER_STEPS), found.state))
