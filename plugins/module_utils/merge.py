# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The options of a task that set keys of a clone's configuration, and what its record keeps of them. Pure, like the planner.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Callable, Iterable, Mapping

from ansible_collections.fleet.lxc.plugins.module_utils import addresses
from ansible_collections.fleet.lxc.plugins.module_utils.addresses import Assigner, Holder, Pool
from ansible_collections.fleet.lxc.plugins.module_utils.config import Config, Includes, with_keys
from ansible_collections.fleet.lxc.plugins.module_utils.container import Container
from ansible_collections.fleet.lxc.plugins.module_utils.names import Name

_ADDRESS = ".ipv4.address"


@dataclass(frozen=True)
class WantedClone:
    """A clone and the keys that it is to have, by the option that sets them; None where the task does not speak of them."""

    name: Name
    config: Mapping[str, list[str]] | None = None
    autostart: Mapping[str, list[str]] | None = None
    seed: Mapping[str, object] | None = None  # cloud-init's


@dataclass(frozen=True)
class Addressing:
    """What the option ipv4 asks for."""

    pool: Pool | None  # None takes addresses back
    holders: Callable[[], Iterable[Holder]] = tuple  # the addresses in use on this host; handed over, for it looks


def assigner_of(
    ipv4: Addressing | None, lxcpath: str, clones: Iterable[WantedClone], containers: Mapping[str, Container], source: Container, family: str
) -> Assigner | None:
    """Who hands out the addresses of a call, if anybody does.

    :param containers: what was observed below the lxcpath.
    :raises FleetError: CONFLICT for a range that overlaps what others have.
    """
    if ipv4 is None or ipv4.pool is None:
        return None
    members = {name: found.provenance for name, found in containers.items() if found.provenance and found.provenance.family == family}
    assigned = {name: address for name, record in members.items() if (address := addresses.address_of(record.assigned))}
    by_hand = {clone.name.name: by for clone in clones if (by := by_hand_of(clone))}
    # Who keeps what he has is asked nothing.
    looks = any(assigned.get(clone.name.name) not in ipv4.pool for clone in clones)
    kin = {(lxcpath, name) for name in members} | {(source.lxcpath, source.name)}
    return Assigner(ipv4.pool, lxcpath, assigned, by_hand, ipv4.holders() if looks else (), kin)


def by_hand_of(clone: WantedClone) -> list[IPv4Address]:
    """The addresses that config and overrides set."""
    texts = [value for key, values in (clone.config or {}).items() if key.endswith(_ADDRESS) for value in values]
    return [address for address in map(addresses.address_of, texts) if address]


@dataclass(frozen=True)
class Keyed:
    """What a record holds of the keys that tasks set: see Provenance."""

    inherited: dict[str, list[str]] = field(default_factory=dict)
    by_option: dict[str, list[str]] = field(default_factory=dict)
    assigned: str | None = None


def with_options(
    clone: WantedClone, config: Config, before: Keyed, ipv4: Addressing | None, assigner: Assigner | None, includes: Includes
) -> tuple[Config, Keyed]:
    """A configuration with the keys that each option sets, and what the record says of them.

    :param before: what it said.
    """
    options: dict[str, Mapping[str, list[str]] | None] = {"autostart": clone.autostart, addresses.OPTION: None}
    assigned = before.assigned
    if ipv4:
        options[addresses.OPTION], assigned = {}, None
    if assigner:
        # Which interface is the first is known when all else is set.
        other, _keyed = _merged(config, {**options, addresses.OPTION: None}, clone.config, before, includes)
        options[addresses.OPTION] = assigner.keys(clone.name.name, includes.expanded(other), (clone.config or {}).keys())
        assigned = addresses.assigned_in(options[addresses.OPTION])
    changed, keyed = _merged(config, options, clone.config, before, includes)
    there = any(key.endswith(_ADDRESS) for key in keyed.by_option.get(addresses.OPTION, ()))
    return changed, replace(keyed, assigned=assigned if there else None)


def _merged(
    config: Config, options: Mapping[str, Mapping[str, list[str]] | None], by_config: Mapping[str, list[str]] | None, before: Keyed, includes: Includes
) -> tuple[Config, Keyed]:
    """A configuration with the keys of options, over which goes what config says; those of an option that the task does not speak of stay."""
    keys = {key: values for its in options.values() for key, values in (its or {}).items()}
    keys.update(by_config or {})
    option_of = {key: option for option, its in before.by_option.items() for key in its}
    silent = {option for option, its in {**options, "config": by_config}.items() if its is None}
    kept = {key for key in before.inherited if option_of.get(key, "config") in silent}
    config, inherited = with_keys(config, keys, before.inherited, includes, kept)
    by_option = {option: sorted(set(before.by_option.get(option, ()) if its is None else its) - set(by_config or ())) for option, its in options.items()}
    return config, Keyed(inherited, {option: its for option, its in by_option.items() if its})
