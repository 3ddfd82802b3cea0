# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""IPv4 addresses for a fleet: a range of them, and which clone gets which. Pure, like the planner.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import Collection, Iterable, Mapping

from ansible_collections.fleet.lxc.plugins.module_utils.config import Config
from ansible_collections.fleet.lxc.plugins.module_utils.errors import CONFLICT, INVALID, RESOURCES, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.names import abridged

OPTION = "ipv4"
_RANGE = re.compile(r"([0-9.]+)(?:\s*-\s*([0-9.]+))?\s*/\s*([0-9]{1,2})")
_SETTING = re.compile(r"lxc\.net\.(\d+)(?:\.(.+))?")
_WITHOUT_DEVICE = ("empty", "none")
_GATEWAYS = ("auto", "dev")  # which LXC finds by itself


@dataclass(frozen=True)
class Pool:
    """The options ipv4 and ipv4_gateway: from which address to which, in which network."""

    first: IPv4Address
    last: IPv4Address
    network: IPv4Network
    gateway: str = ""

    def __contains__(self, address: object) -> bool:
        return isinstance(address, IPv4Address) and self.first <= address <= self.last

    def __len__(self) -> int:
        return int(self.last) - int(self.first) + 1

    def __str__(self) -> str:
        return f"{self.first}-{self.last}/{self.network.prefixlen}" if len(self) > 1 else f"{self.first}/{self.network.prefixlen}"


@dataclass(frozen=True)
class Holder:
    """An address that is in use on this host, and whose it is; without a name it is the host's own."""

    address: IPv4Address
    lxcpath: str = ""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.address} of {self.lxcpath}/{self.name}" if self.name else f"{self.address} of this host"


def address_of(text: str | None) -> IPv4Address | None:
    """The address of ``10.0.2.11/23 10.0.3.255`` and the like; None for what is none."""
    try:
        return IPv4Address((text or "").partition(" ")[0].partition("/")[0])
    except AddressValueError:
        return None


def parse(text: str, gateway: str | None) -> Pool | None:
    """The options ipv4 and ipv4_gateway; None for an empty range, which takes addresses back.

    :raises FleetError: INVALID.
    """
    if not text.strip():
        if gateway:
            raise FleetError(f"ipv4_gateway {gateway} stands without ipv4", mend="Set ipv4, too.", kind=INVALID)
        return None
    match = _RANGE.fullmatch(text.strip())
    first, last = (address_of(match.group(1)), address_of(match.group(2) or match.group(1))) if match else (None, None)
    if first is None or last is None or int(match.group(3)) > 32:
        raise FleetError(f"ipv4 {text!r} is no range of addresses", mend="Write FIRST-LAST/PREFIX, such as 10.0.2.11-10.0.3.54/23.", kind=INVALID)
    if last < first:
        raise FleetError(f"ipv4 {text} ends before it begins", kind=INVALID)
    pool = Pool(first, last, IPv4Network((first, int(match.group(3))), strict=False), (gateway or "").strip())
    if last not in pool.network:
        raise FleetError(f"ipv4 {text} is not within one network", why=f"{last} is outside of {pool.network}", mend="Correct the prefix length.", kind=INVALID)
    if pool.network.prefixlen < 31:
        for what, address in (("network", pool.network.network_address), ("broadcast", pool.network.broadcast_address)):
            if address in pool:
                raise FleetError(f"ipv4 {text} holds {address}", why=f"that is the {what} address of {pool.network}", mend="Leave it out.", kind=INVALID)
    for what in ("is_multicast", "is_loopback", "is_unspecified"):
        if getattr(first, what) or getattr(last, what):
            raise FleetError(f"ipv4 {text} holds addresses that no interface can have", why=what[3:], kind=INVALID)
    _check_gateway(pool)
    return pool


def _check_gateway(pool: Pool) -> None:
    if not pool.gateway or pool.gateway in _GATEWAYS:
        return
    gateway = address_of(pool.gateway)
    if gateway is None or str(gateway) != pool.gateway:
        raise FleetError(f"ipv4_gateway {pool.gateway!r} is no address", mend="Write an address, auto or dev.", kind=INVALID)
    if gateway not in pool.network:
        raise FleetError(f"ipv4_gateway {gateway} is outside of {pool.network}", why=f"that is the network of ipv4 {pool}", kind=INVALID)
    if gateway in pool:
        raise FleetError(f"ipv4_gateway {gateway} is within ipv4 {pool}", why="a clone would get its address", mend="Leave it out of the range.", kind=INVALID)
    if pool.network.prefixlen < 31 and gateway in (pool.network.network_address, pool.network.broadcast_address):
        raise FleetError(f"ipv4_gateway {gateway} is the network or broadcast address of {pool.network}", kind=INVALID)


def interfaces(config: Config) -> dict[int, dict[str, list[str]]]:
    """The interfaces of a configuration: {number: {setting: values}}.

    :param config: with its includes.
    """
    found: dict[int, dict[str, list[str]]] = {}
    for key, value in config.items():
        if not key.startswith("lxc.net"):
            continue
        match = _SETTING.fullmatch(key)
        if key == "lxc.net" and not value:
            found.clear()
        elif match and match.group(2) is None and not value:
            found.pop(int(match.group(1)), None)
        elif match and match.group(2):
            settings = found.setdefault(int(match.group(1)), {})
            settings[match.group(2)] = [*settings.get(match.group(2), ()), value] if value else []
    return found


def addresses_in(config: Config) -> list[IPv4Address]:
    """The IPv4 addresses that a configuration sets.

    :param config: with its includes.
    """
    texts = (text for settings in interfaces(config).values() for text in settings.get("ipv4.address", ()))
    return [address for address in map(address_of, texts) if address]


class Assigner:
    """Who gets which address of a pool: each what it has, or else the lowest that nobody has.

    :param lxcpath: where the clones are.
    :param assigned: what this collection gave the clones of the family, those of this call and others.
    :param set_by_hand: the addresses in the ``config`` and ``overrides`` of this call.
    :param holders: every other address in use on this host; needed only where somebody has to be given one.
    :param kin: the (lxcpath, name) of those whose addresses are stepped over. A range that holds another's is refused.
    """

    def __init__(
        self,
        pool: Pool,
        lxcpath: str,
        assigned: Mapping[str, IPv4Address],
        set_by_hand: Mapping[str, Iterable[IPv4Address]],
        holders: Iterable[Holder] = (),
        kin: Collection[tuple[str, str]] = (),
    ):
        self.pool, self.assigned = pool, dict(assigned)
        self.used: dict[IPv4Address, set[str]] = {}
        self.own: dict[str, list[IPv4Address]] = {}  # what they have, assigned or not
        self._next = int(pool.first)
        for name, addresses in set_by_hand.items():
            for address in addresses:
                self.used.setdefault(address, set()).add(name)
        for name, address in assigned.items():
            by_hand = self.used.setdefault(address, set()) - {name}
            if by_hand and name not in set_by_hand:
                raise FleetError(f"{address} is set by hand, and {name} has it by ipv4", container=min(by_hand), mend="Set another address.", kind=CONFLICT)
            self.used[address].add(name)
        within = [holder for holder in holders if holder.address in pool]
        others = [str(holder) for holder in within if (holder.lxcpath, holder.name) not in kin]
        if others:
            raise FleetError(
                f"ipv4 {pool} overlaps addresses that others have",
                why=abridged(list(dict.fromkeys(others))),
                mend="Choose a range that is free on this host.",
                kind=CONFLICT,
            )
        for holder in within:
            name = holder.name if holder.lxcpath == lxcpath else f"{holder.lxcpath}/{holder.name}"
            self.used.setdefault(holder.address, set()).add(name)
            self.own.setdefault(name, []).append(holder.address)

    def keys(self, name: str, config: Config, by_hand: Collection[str]) -> dict[str, list[str]]:
        """What gives a container its address.

        :param config: the container's, with its includes and all that other options set.
        :param by_hand: the keys that the task sets itself: who gets an address so needs none of ours.
        :raises FleetError: INVALID where it has no interface, RESOURCES where no address is left.
        """
        found = interfaces(config)
        usable = [number for number, settings in sorted(found.items()) if _has_device(settings)]
        if not usable:
            raise FleetError(
                "has no network interface that ipv4 could give an address",
                container=name,
                mend="Configure one (lxc.net.0.type and so on), or leave ipv4 out.",
                kind=INVALID,
            )
        prefix = f"lxc.net.{usable[0]}"
        if self.pool.gateway and "up" not in found[usable[0]].get("flags", ())[-1:]:
            raise FleetError(
                f"cannot have an ipv4_gateway: its {prefix}.flags is not up", container=name, mend=f"Set {prefix}.flags to up in config.", kind=INVALID
            )
        keys = {f"{prefix}.ipv4.gateway": [self.pool.gateway]} if self.pool.gateway else {}
        if f"{prefix}.ipv4.address" not in by_hand:
            keys[f"{prefix}.ipv4.address"] = [f"{self._take(name)}/{self.pool.network.prefixlen}"]
        return keys

    def _take(self, name: str) -> IPv4Address:
        had = self.assigned.get(name)
        for address in (had, *self.own.get(name, ())):
            if address in self.pool and (address == had or self.used[address] == {name}):
                return self._give(name, address)
        while self._next <= int(self.pool.last):
            address = IPv4Address(self._next)
            self._next += 1
            if address not in self.used:
                return self._give(name, address)
        raise FleetError(
            f"gets no address: none of ipv4 {self.pool} is free",
            container=name,
            why=f"all {len(self.pool)} are taken by clones of the family",
            mend="Widen the range, or remove clones that are not needed.",
            kind=RESOURCES,
        )

    def _give(self, name: str, address: IPv4Address) -> IPv4Address:
        self.assigned[name] = address
        self.used.setdefault(address, set()).add(name)
        return address


def _has_device(settings: Mapping[str, list[str]]) -> bool:
    return bool(settings.get("type")) and settings["type"][-1] not in _WITHOUT_DEVICE


def assigned_in(keys: Mapping[str, list[str]]) -> str | None:
    """The address, with its prefix length, among the keys of :meth:`Assigner.keys`."""
    return next((values[0] for key, values in keys.items() if key.endswith(".ipv4.address")), None)
