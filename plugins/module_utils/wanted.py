# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Module options into what the planner wants; every refusal that needs no look at the host is made here.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import re
from typing import Any, Mapping

from ansible_collections.fleet.lxc.plugins.module_utils import addresses, names
from ansible_collections.fleet.lxc.plugins.module_utils.errors import INVALID, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.identity import Identity
from ansible_collections.fleet.lxc.plugins.module_utils.keys import check_options, fill
from ansible_collections.fleet.lxc.plugins.module_utils.merge import Addressing, WantedClone, by_hand_of
from ansible_collections.fleet.lxc.plugins.module_utils.storage.driver import Storage

STORES = ["dir", "overlay", "btrfs", "loop", "lvm", "zfs"]
_STORAGE_NAME = {
    "vg": re.compile(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]*"),
    "thinpool": re.compile(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]*"),
    "zfs_dataset": re.compile(r"[A-Za-z][A-Za-z0-9_.:-]*(/[A-Za-z0-9_.:-]+)*"),
}
_SIZE = re.compile(r"(\d+)([KMGT]?)(IB)?")
_STORAGE: dict[str, Any] = {
    "size": {"type": "str"},
    "fstype": {"type": "str", "choices": ["ext4", "xfs", "btrfs"]},
    "vg": {"type": "str"},
    "thinpool": {"type": "str"},
    "zfs_dataset": {"type": "str"},
}

_SEED: dict[str, Any] = {"user_data": {"type": "raw", "no_log": True}, "network_config": {"type": "raw"}, "meta_data": {"type": "dict"}}

SHARED_ARGUMENTS: dict[str, Any] = {
    "lxcpath": {"type": "path"},
    "timeout": {"type": "int", "default": 600},
    "lock_timeout": {"type": "int", "default": 300},
    "stop_timeout": {"type": "int", "default": 30},
    "force_stop": {"type": "bool", "default": False},
}

CLONE_ARGUMENTS: dict[str, Any] = {
    **SHARED_ARGUMENTS,
    "source": {"type": "str"},
    "name": {"type": "list", "elements": "str", "required": True, "aliases": ["names"]},
    "method": {"type": "str", "choices": ["auto", "snapshot", "copy"], "default": "auto"},
    "backing_store": {"type": "str", "choices": STORES},
    "storage": {"type": "dict", "options": {**_STORAGE, "cow_size": {"type": "str"}}},
    "state": {"type": "str", "choices": ["present", "started", "stopped", "frozen", "restarted", "absent"], "default": "present"},
    "source_lxcpath": {"type": "path"},
    "config": {"type": "dict"},
    "overrides": {"type": "dict"},
    "identity": {
        "type": "dict",
        "options": {
            **{item: {"type": "bool", "default": True} for item in ("hostname", "machine_id", "ssh_host_keys", "random_seed", "dhcp", "cloud_init")},
            "hwaddr": {"type": "str", "choices": ["stable", "random", "keep"], "default": "stable"},
        },
    },
    "cloud_init": {"type": "dict", "options": _SEED},
    "autostart": {
        "type": "dict",
        "options": {
            "enabled": {"type": "bool"},
            "order": {"type": "int"},
            "delay": {"type": "int"},
            "groups": {"type": "list", "elements": "str"},
        },
    },
    "ipv4": {"type": "str"},
    "ipv4_gateway": {"type": "str"},
    "wait_for": {"type": "list", "elements": "str", "choices": ["none", "running", "network", "command"], "default": ["running"]},
    "wait_command": {"type": "str"},
    "wait_timeout": {"type": "int", "default": 60},
    "workers": {"type": "int"},
    "on_error": {"type": "str", "choices": ["stop", "continue"], "default": "stop"},
    "cascade": {"type": "bool", "default": False},
    "foreign": {"type": "bool", "default": False},
    "detail": {"type": "str", "choices": ["full", "changed", "summary"], "default": "full"},
}

BASE_ARGUMENTS: dict[str, Any] = {
    **SHARED_ARGUMENTS,
    "name": {"type": "str", "required": True},
    "template": {"type": "str"},
    "template_options": {"type": "dict"},
    "rootfs_archive": {"type": "path"},
    "adopt": {"type": "bool", "default": False},
    "family": {"type": "str"},
    "backing_store": {"type": "str", "choices": [store for store in STORES if store != "overlay"], "default": "dir"},
    "storage": {"type": "dict", "options": _STORAGE},
    "config": {"type": "dict"},
    "state": {"type": "str", "choices": ["present", "started", "sealed", "unsealed", "absent"], "default": "present"},
    "version": {"type": "str"},
    "scrub": {"type": "bool", "default": True},
    "wait_for": {"type": "list", "elements": "str", "choices": ["running", "network", "command"], "default": ["running"]},
    "wait_command": {"type": "str"},
    "wait_timeout": {"type": "int", "default": 60},
    "stop": {"type": "bool", "default": False},
    "dpkg_unsafe_io": {"type": "bool"},
    "delete_adopted": {"type": "bool", "default": False},
    "cascade": {"type": "bool", "default": False},
}


BASE_LEAST = {"timeout": 1, "lock_timeout": 0, "stop_timeout": 0, "wait_timeout": 0}
CLONE_LEAST = {**BASE_LEAST, "workers": 1}


def check_numbers(options: Mapping[str, Any], least: Mapping[str, int]) -> None:
    """:raises FleetError: INVALID for a number that is too small."""
    for option, limit in least.items():
        if options[option] is not None and options[option] < limit:
            raise FleetError(f"{option} must be {limit} or more, not {options[option]}", kind=INVALID)


def check_wait(options: Mapping[str, Any]) -> None:
    """:raises FleetError: INVALID for options of waiting that do not go together."""
    if "none" in options["wait_for"] and len(options["wait_for"]) > 1:
        raise FleetError("wait_for: none stands alone", kind=INVALID)
    if bool(options["wait_command"]) != ("command" in options["wait_for"]):
        given, missing = ("wait_command", "wait_for: command") if options["wait_command"] else ("wait_for: command", "wait_command")
        raise FleetError(f"{given} stands without {missing}", mend="Set both, or neither.", kind=INVALID)


def parse_size(option: str, text: str | None) -> int | None:
    """Bytes of ``512M``, ``2G`` and the like.

    :raises FleetError: INVALID.
    """
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip().upper())
    if not match or not int(match.group(1)):
        raise FleetError(f"{option} {text!r} is no size", mend="Write a number with K, M, G or T, such as 2G.", kind=INVALID)
    return int(match.group(1)) << (10 * " KMGT".index(match.group(2) or " "))


def wanted_storage(options: Mapping[str, Any] | None) -> Storage:
    """The option ``storage``.

    :raises FleetError: INVALID.
    """
    given = dict(options or {})
    for option in ("vg", "thinpool", "zfs_dataset"):
        if given.get(option) is not None and not _STORAGE_NAME[option].fullmatch(given[option]):
            raise FleetError(f"storage.{option} {given[option]!r} is no name", kind=INVALID)
    for option in ("size", "cow_size"):
        given[option] = parse_size(f"storage.{option}", given.get(option))
    return Storage(**given)


def wanted_identity(options: Mapping[str, Any] | None) -> Identity:
    """The option ``identity``."""
    return Identity(**(options or {}))


def wanted_clones(options: Mapping[str, Any]) -> tuple[WantedClone, ...]:
    """The clones that the options name, with each one's configuration.

    :raises FleetError: INVALID.
    """
    expanded = names.expand(options["name"])
    check_numbers(options, CLONE_LEAST)
    if options["state"] != "absent" and not options["source"]:
        raise FleetError(f"state {options['state']} needs a source", mend="Set the option source to the base's name.", kind=INVALID)
    if options["source"]:
        names.validate(options["source"])
    here = not options["source_lxcpath"] or options["source_lxcpath"] == options["lxcpath"]
    if here and any(name.name == options["source"] for name in expanded):
        raise FleetError("a clone cannot have the name of its source", container=options["source"], kind=INVALID)
    if options["foreign"] and (options["state"] != "absent" or len(options["name"]) != 1 or "[" in options["name"][0]):
        raise FleetError(
            "foreign: true removes one container that is named literally", mend="Use it with state: absent and one name without a range.", kind=INVALID
        )
    check_wait(options)
    common = None if options["config"] is None else check_options(options["config"])
    autostart = _autostart(options["autostart"])
    seed = _checked_seed(options["cloud_init"], "cloud_init")
    overrides = _overrides(options["overrides"] or {}, {name.name for name in expanded})
    clones = []
    for name in expanded:
        own = overrides.get(name.name, {})
        config = _merged(common, own.get("config"))
        clones.append(WantedClone(name, _filled(config, name), _filled(autostart, name), own.get("cloud_init", seed)))
    return tuple(clones)


def wanted_ipv4(options: Mapping[str, Any], clones: tuple[WantedClone, ...]) -> Addressing | None:
    """The options ipv4 and ipv4_gateway.

    :raises FleetError: INVALID.
    """
    pool = addresses.parse(options["ipv4"] or "", options["ipv4_gateway"])
    wanting = sum(not by_hand_of(clone) for clone in clones)
    if pool and options["state"] != "absent" and len(pool) < wanting:
        raise FleetError(f"ipv4 {pool} has {len(pool)} addresses for {wanting} clones", mend="Widen the range.", kind=INVALID)
    return None if options["ipv4"] is None else Addressing(pool)


def _merged(common: dict[str, list[str]] | None, override: dict[str, list[str]] | None) -> dict[str, list[str]] | None:
    return common if override is None else {**(common or {}), **override}


def _filled(keys: Mapping[str, list[str]] | None, name: names.Name) -> dict[str, list[str]] | None:
    return None if keys is None else {key: [fill(value, name.name, name.index) for value in values] for key, values in keys.items()}


def _overrides(overrides: Mapping[str, Any], known: set[str]) -> dict[str, dict[str, Any]]:
    """{clone: {option: its own}}, where one is given."""
    checked: dict[str, dict[str, Any]] = {}
    for name, override in overrides.items():
        if name not in known:
            raise FleetError(f"overrides name {name!r}, which this call does not make", mend="Add it to name, or drop it.", kind=INVALID)
        own = override if isinstance(override, Mapping) else {"": None}
        if set(own) - {"config", "cloud_init"} or not all(isinstance(value or {}, Mapping) for value in own.values()):
            raise FleetError("overrides hold a dict with the keys config and cloud_init, each a dict", container=name, kind=INVALID)
        checked[name] = {}
        if own.get("config") is not None:
            checked[name]["config"] = check_options(own["config"], f"overrides of {name}")
        if own.get("cloud_init") is not None:
            checked[name]["cloud_init"] = _checked_seed(own["cloud_init"], f"overrides of {name}")
    return checked


def _checked_seed(seed: Mapping[str, Any] | None, where: str) -> Mapping[str, Any] | None:
    """:raises FleetError: INVALID for what can be no seed of cloud-init."""
    if seed is None:
        return None
    texts, meta = {key: value for key, value in seed.items() if key != "meta_data"}, seed.get("meta_data")
    unknown = sorted(set(seed) - set(_SEED))
    if unknown or not isinstance(meta or {}, Mapping) or not all(value is None or isinstance(value, (str, Mapping)) for value in texts.values()):
        raise FleetError(
            f"{where} has a cloud_init that is no seed",
            why=f"it has {', '.join(unknown)}" if unknown else "meta_data is a dict, user_data and network_config are a text or a dict",
            mend=f"Use {', '.join(_SEED)}.",
            kind=INVALID,
        )
    return seed


def _autostart(autostart: Mapping[str, Any] | None) -> dict[str, list[str]] | None:
    if autostart is None:
        return None
    if all(value is None for value in autostart.values()):
        return {}
    keys = {"lxc.start.auto": ["0" if autostart["enabled"] is False else "1"]}
    for option in ("order", "delay"):
        if autostart[option] is not None:
            keys[f"lxc.start.{option}"] = [str(autostart[option])]
    if autostart["groups"] is not None:
        keys.update(check_options({"lxc.group": autostart["groups"]}, "autostart"))
    return keys
