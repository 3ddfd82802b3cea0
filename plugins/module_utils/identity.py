# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What makes a clone itself, and not a second copy of its base.

Most of it is taken away once, when the base is sealed: what must differ is removed, and each clone's first boot makes its own
(:func:`scrub`). A clone of a source that was not scrubbed gets the same done to itself. What is left for each clone is its name.

ssh host keys are made by the clone at its first boot and not here: that needs no program on this host, costs this host nothing,
and no private key is ever written by anybody but its owner. Where a guest would not make keys by itself, a unit that does is put
into it; where none can be put, its keys stay and that is told.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import random
import re
import stat as modes
from dataclasses import dataclass, field, fields
from typing import Any, Callable, Collection, Mapping

from ansible_collections.fleet.lxc.plugins.module_utils.config import read_text
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.guest import GuestRoot

STABLE, RANDOM, KEEP = "stable", "random", "keep"

# What is removed from a source, by the item that it belongs to. A pattern is of the last component only.
_TRACES = {
    "ssh_host_keys": ("etc/ssh/ssh_host_*_key", "etc/ssh/ssh_host_*_key.pub"),
    "random_seed": (
        *(f"var/lib/{place}random-seed" for place in ("systemd/", "urandom/", "", "misc/")),
        "var/lib/systemd/credential.secret",
        "var/lib/seedrng/seed.*",
    ),
    "dhcp": (
        *(f"var/lib/{client}/*.lease{s}" for client in ("dhcp", "dhclient", "dhcpcd", "dhcpcd5", "NetworkManager") for s in ("", "s", "6")),
        *(f"{place}{secret}" for place in ("var/lib/dhcpcd/", "var/lib/dhcpcd5/", "etc/dhcpcd.") for secret in ("duid", "secret")),
        "var/lib/NetworkManager/secret_key",
    ),
    "cloud_init": tuple(f"var/lib/cloud/{part}" for part in ("instance", "instances", "data", "sem")),
}
# What is not taken away, and the operator should know of: (item, pattern).
_REMARKS = {
    ("ssh_host_keys", "etc/dropbear/dropbear_*_host_key"): "dropbear's host keys are those of all clones: remove them if its service makes new ones",
    ("cloud_init", "var/lib/cloud/seed/*/meta-data"): "cloud-init's seed is that of all clones, its instance-id too: give each its own (cloud_init)",
}
_MACHINE_ID = re.compile(rb"[0-9a-f]{32}\s*")
_SYSTEMD = ("usr/lib/systemd/systemd", "lib/systemd/systemd")
# Guests that make missing ssh host keys themselves: Fedora and its kin, Arch, openSUSE.
_KEY_UNITS = ("sshd-keygen@.service", "sshd-keygen.service", "sshdgenkeys.service")
_SSH_KEYGEN = "usr/bin/ssh-keygen"
_UNIT = "fleet-lxc-ssh-host-keys.service"
_UNIT_TEXT = b"""# Written by fleet.lxc: the base has no ssh host keys, so that each clone makes its own.
[Unit]
Description=Make this machine's own ssh host keys
ConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key
DefaultDependencies=no
After=local-fs.target
Before=ssh.service sshd.service ssh.socket sshd.socket shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A

[Install]
WantedBy=multi-user.target
"""
# Where a machine's own name stands: in the lines of its own addresses, and in settings.
_IN_HOSTS = ("127.", "::1"), r"([ \t])(?:%s)(?=[.\s]|$)"
_IN_SYSCONFIG = ("HOSTNAME=", "DHCP_HOSTNAME="), r"(=[\"']?)(?:%s)(?=[.\s\"']|$)"
_HOSTNAME, _HOSTS = "etc/hostname", "etc/hosts"
_SEED = "var/lib/cloud/seed/nocloud"


@dataclass(frozen=True)
class Identity:
    """The option ``identity``: what of a clone is to be its own."""

    hostname: bool = True
    machine_id: bool = True
    ssh_host_keys: bool = True
    random_seed: bool = True
    dhcp: bool = True
    cloud_init: bool = True
    hwaddr: str = STABLE

    @property
    def scrubbed(self) -> list[str]:
        """The items that a source is scrubbed of."""
        return [item.name for item in fields(self) if item.name not in ("hostname", "hwaddr") and getattr(self, item.name)]


ALL = Identity()


def scrub(guest: GuestRoot, items: Collection[str], warn: Callable[[str], None]) -> list[str]:
    """Take away what two machines must not share; the next boot makes it anew.

    :param warn: gets what could not be done.
    :returns: the items of which something was found and taken.
    """
    done = []
    for item in items:
        try:
            if _scrub(guest, item, warn):
                done.append(item)
        except (FleetError, OSError) as error:
            warn(f"{item} was left as it is: {error}")
    for path, remark in _REMARKS.items():
        if path[0] in items and _seen(guest, path[1]):
            warn(remark)
    return done


@dataclass(frozen=True)
class Survey:
    """What a source holds that its clones have to change, found once for all that are made of it."""

    scrubbed: bool  # nothing is left to be taken away
    named: Mapping[str, bytes] = field(default_factory=dict)  # the files in which a name may stand
    problems: tuple[str, ...] = ()  # what was not read, as the operator is told

    def renamed(self, name: str, source: str) -> dict[str, bytes]:
        """The files that change, and what they become, when the guest is called by another name.

        :param source: the name of the container that is cloned.
        """
        own = self.named.get(_HOSTNAME)
        # localhost is nobody's own name.
        old = {source, (own or b"").strip().decode("ascii", "replace")} - {"", "localhost"}
        names = "|".join(map(re.escape, sorted(old, key=len, reverse=True)))
        files = {} if own is None else {_HOSTNAME: name.encode() + b"\n"}
        for path, text in self.named.items():
            if path != _HOSTNAME and names:
                files[path] = _renamed(text, *(_IN_HOSTS if path == _HOSTS else _IN_SYSCONFIG), names, name)
        return {path: text for path, text in files.items() if text != self.named[path]}


def survey(guest: GuestRoot, wanted: Identity) -> Survey:
    """Look through a source, or through a clone that nothing has been done to."""
    named: dict[str, bytes] = {}
    problems = []
    paths = [_HOSTNAME, _HOSTS] if wanted.hostname else []
    try:
        if wanted.hostname and guest.stat("etc/sysconfig"):
            paths += ["etc/sysconfig/network", *_found(guest, ["etc/sysconfig/network-scripts/ifcfg-*"])]
    except FleetError as error:
        problems.append(f"hostname was left as it is in settings: {error}")
    for path in paths:
        try:
            text = guest.read(path)
        except FleetError as error:
            problems.append(f"hostname was left as it is: {error}")
            continue
        if text is not None:
            named[path] = text
    try:
        scrubbed = not any(_found(guest, _TRACES.get(item, ())) for item in wanted.scrubbed) and not ("machine_id" in wanted.scrubbed and _machine_ids(guest))
    except FleetError:
        scrubbed = False
    return Survey(scrubbed, named, tuple(problems))


def _scrub(guest: GuestRoot, item: str, warn: Callable[[str], None]) -> bool:
    if item == "machine_id":
        found = _machine_ids(guest)
        for path in found:
            # Empty, not absent: without the file systemd would take the next boot for the first one ever (machine-id(5)).
            if path == "etc/machine-id" and _has_systemd(guest):
                guest.replace(path, b"")
            else:
                guest.remove(path)
        return bool(found)
    found = _found(guest, _TRACES[item])
    if item == "ssh_host_keys" and found and not _makes_host_keys(guest):
        warn("ssh_host_keys were left as they are: nothing in this guest would make new ones")
        return False
    for path in found:
        guest.remove(path)
    return bool(found)


def _found(guest: GuestRoot, patterns: Collection[str]) -> list[str]:
    listed: dict[str, list[str]] = {}
    found = []
    for pattern in patterns:
        directory, _slash, last = pattern.rpartition("/")
        if directory not in listed:
            listed[directory] = guest.names(directory)
        found += [f"{directory}/{name}" for name in fnmatch.filter(listed[directory], last)]
    return found


def _seen(guest: GuestRoot, pattern: str) -> bool:
    """Whether anything matches a pattern, in which one directory may be any."""
    before, star, after = pattern.partition("/*/")
    try:
        places = [f"{before}/{name}/{after}" for name in guest.names(before)] if star else [pattern]
        return any(_found(guest, [place]) for place in places)
    except FleetError:
        return False


def _machine_ids(guest: GuestRoot) -> list[str]:
    found = []
    for path in ("etc/machine-id", "var/lib/dbus/machine-id"):
        stat = guest.stat(path)
        if stat is None:
            continue
        # D-Bus's is often a link to the other one.
        if path != "etc/machine-id" and modes.S_ISLNK(stat.st_mode):
            continue
        if _MACHINE_ID.fullmatch(guest.read(path, 64) or b""):
            found.append(path)
    return found


def _has_systemd(guest: GuestRoot) -> bool:
    return any(guest.stat(path) for path in _SYSTEMD)


def _makes_host_keys(guest: GuestRoot) -> bool:
    """Whether the guest makes ssh host keys that are missing; where it can be brought to, it is."""
    if any(guest.stat(f"{place}/systemd/system/{unit}") for place in ("usr/lib", "lib", "etc") for unit in _KEY_UNITS):
        return True
    if not _has_systemd(guest):
        # OpenRC's service makes them.
        return b"ssh-keygen" in (guest.read("etc/init.d/sshd") or b"")
    if not guest.stat(_SSH_KEYGEN):
        return False
    wants = "etc/systemd/system/multi-user.target.wants"
    guest.make_directory(wants)
    guest.write(f"etc/systemd/system/{_UNIT}", _UNIT_TEXT)
    guest.link(f"{wants}/{_UNIT}", f"/etc/systemd/system/{_UNIT}")
    return True


def renames(hook: str) -> bool:
    """Whether a clone hook is LXC's own that sees to what :meth:`Survey.renamed` does.

    It replaces the name where it is only a part of another, and goes through the guest's symlinks into the host's files.
    """
    return hook.split(None, 1)[0].endswith("/lxc/hooks/clonehostname")


def _renamed(text: bytes, begins: tuple[str, ...], pattern: str, names: str, name: str) -> bytes:
    """A file in which a machine's own names, bare or before a domain, are replaced; all else, comments included, as it stands."""
    # A name with a domain takes the place of the old one's, too.
    expression = re.compile(pattern % (f"(?:{names})(?:\\.[A-Za-z0-9.-]+)?" if "." in name else names))
    lines = []
    for line in text.decode("utf-8", "surrogateescape").splitlines(keepends=True):
        entry, mark, comment = line.partition("#")
        own = entry.startswith(begins)
        lines.append((expression.sub(lambda match: match.group(1) + name, entry) if own else entry) + mark + comment)
    return "".join(lines).encode("utf-8", "surrogateescape")


def write_seed(guest: GuestRoot, name: str, instance: str, seed: Mapping[str, Any], warn: Callable[[str], None]) -> bool:
    """Write cloud-init's NoCloud seed.

    :param instance: the instance-id.
    :param seed: ``meta_data``, ``user_data``, ``network_config``, each a text or what becomes one.
    """
    try:
        guest.make_directory(_SEED)
        meta = {"instance-id": instance, "local-hostname": name, **(seed.get("meta_data") or {})}
        files = {"meta-data": meta, "user-data": seed.get("user_data") or "", "network-config": seed.get("network_config")}
        for file, content in files.items():
            if content is not None:
                # User data may hold secrets, and the base's own may be readable by all.
                guest.remove(f"{_SEED}/{file}")
                guest.write(f"{_SEED}/{file}", _text(file, content).encode(), 0o600 if file == "user-data" else 0o644)
        return True
    except FleetError as error:
        warn(f"cloud_init was not given its seed: {error}")
        return False


def _text(file: str, content: Any) -> str:
    """YAML; a task's dictionary as JSON, which is YAML, too."""
    if isinstance(content, str):
        return content
    return ("#cloud-config\n" if file == "user-data" else "") + json.dumps(content, indent=1, sort_keys=True) + "\n"


def host_id() -> str:
    """What tells this host from others, at every boot the same."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            found = read_text(path).strip()
        except OSError:
            continue
        if found and found != "uninitialized":
            return found
    return os.uname().nodename


class MacAddresses:
    """The MAC addresses of new clones, in LXC's 00:16:3e space.

    :param used: tells which addresses others have; asked once, when the first one is needed.
    """

    def __init__(self, kind: str, lxcpath: str, used: Callable[[], Collection[str]]):
        self.kind, self.lxcpath, self._ask = kind, lxcpath, used
        self._used: set[str] | None = None
        self._host = ""

    def __call__(self, name: str, index: int, old: str | None) -> str | None:
        """The address of an interface, None where it gets none.

        :param old: what the source has; None where it leaves that to chance at each start.
        """
        if self.kind == KEEP or (self.kind == RANDOM and old is None):
            return old
        if self._used is None:
            self._used = {mac.lower() for mac in self._ask()}
            self._host = f"{host_id()}\0{os.path.realpath(self.lxcpath)}"
        attempt = 0
        while True:
            mac = "00:16:3e:" + ":".join(f"{octet:02x}" for octet in self._octets(name, index, attempt))
            if mac not in self._used:
                self._used.add(mac)
                return mac
            attempt += 1

    def _octets(self, name: str, index: int, attempt: int) -> bytes:
        if self.kind == RANDOM:
            return random.randbytes(3)
        return hashlib.sha256("\0".join((self._host, name, str(index), str(attempt))).encode()).digest()[:3]
