# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a task may set in a container's configuration: keys and values checked, placeholders filled.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import re
from typing import Mapping

from ansible_collections.fleet.lxc.plugins.module_utils.errors import INVALID, FleetError

GUARD = "fleet.lxc.guard"
_KEY = re.compile(r"lxc(\.[A-Za-z0-9_-]+)+")
_REFUSED = ("lxc.rootfs", "lxc.uts.name", "lxc.utsname", "lxc.idmap", "lxc.id_map", "lxc.include")
# Keys that LXC itself no longer reads since 3.0, with what they are called today: a container that has them does not load.
_RENAMED = {
    "lxc.utsname": "lxc.uts.name",
    "lxc.rootfs": "lxc.rootfs.path",
    "lxc.rootfs.backend": "",
    "lxc.mount": "lxc.mount.fstab",
    "lxc.id_map": "lxc.idmap",
    "lxc.tty": "lxc.tty.max",
    "lxc.pts": "lxc.pty.max",
    "lxc.pivotdir": "",
    "lxc.devttydir": "lxc.tty.dir",
    "lxc.haltsignal": "lxc.signal.halt",
    "lxc.rebootsignal": "lxc.signal.reboot",
    "lxc.stopsignal": "lxc.signal.stop",
    "lxc.aa_profile": "lxc.apparmor.profile",
    "lxc.aa_allow_incomplete": "lxc.apparmor.allow_incomplete",
    "lxc.se_context": "lxc.selinux.context",
    "lxc.seccomp": "lxc.seccomp.profile",
    "lxc.console": "lxc.console.path",
    "lxc.kmsg": "",
    "lxc.init_cmd": "lxc.init.cmd",
    "lxc.init_uid": "lxc.init.uid",
    "lxc.init_gid": "lxc.init.gid",
    "lxc.syslog": "lxc.log.syslog",
    "lxc.loglevel": "lxc.log.level",
    "lxc.logfile": "lxc.log.file",
}
_NETWORK = re.compile(r"lxc\.network(?:\.(\d+))?(?:\.(.+))?")
_PLACEHOLDER = re.compile(r"\{\{|\{([^{}]*)\}|\{")


def renamed(key: str) -> str | None:
    """What a key of LXC 2 and older is called today, '' where nothing took its place; None for a key of today."""
    if key.startswith("lxc.limit."):
        return "lxc.prlimit." + key[len("lxc.limit.") :]
    match = _NETWORK.fullmatch(key)
    if match:
        number, rest = match.groups()
        rest = f"{rest}.address" if rest in ("ipv4", "ipv6") else rest or "type"
        return f"lxc.net.{number or 0}.{rest}"
    return _RENAMED.get(key)


def check_options(options: Mapping[str, object], where: str = "config") -> dict[str, list[str]]:
    """The ``config`` option as {key: values}.

    :raises FleetError: INVALID for a key that is ours to set or no LXC key, and for a value that breaks the line.
    """
    checked: dict[str, list[str]] = {}
    for key, value in options.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise FleetError(f"{where} has {key!r}, which is no LXC configuration key", why="keys look like lxc.start.auto", kind=INVALID)
        if any(key == refused or key.startswith(refused + ".") for refused in _REFUSED):
            raise FleetError(f"{where} must not set {key}", why="the clone's rootfs, name, id map and includes come from its source", kind=INVALID)
        today = renamed(key)
        if today is not None:
            mend = f"Its name is {today} now." if today else "Leave it out: nothing took its place."
            raise FleetError(f"{where} has {key}, which LXC no longer reads", mend=mend, kind=INVALID)
        values = [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
        checked[key] = [_text(key, one, where) for one in values]
    return checked


def _text(key: str, value: object, where: str) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if not isinstance(value, (str, int, float)):
        raise FleetError(f"{where} gives {key} a {type(value).__name__}", mend="Give a string, or a list of strings.", kind=INVALID)
    text = str(value)
    if "\n" in text or "\r" in text or "\0" in text:
        raise FleetError(f"{where} gives {key} a value with a line break", why="it would add lines to the configuration", kind=INVALID)
    if GUARD in text:
        raise FleetError(f"{where} gives {key} the value {text!r}", why=f"{GUARD} is the guard of a sealed base", kind=INVALID)
    return text.strip()


def fill(value: str, name: str, index: int | None) -> str:
    """Replace ``{name}`` and ``{index}``; ``{{`` is a brace.

    :raises FleetError: INVALID for another placeholder, or ``{index}`` for a name without a number.
    """

    def one(match: re.Match) -> str:
        if match.group(0) == "{{":
            return "{"
        if match.group(1) == "name":
            return name
        if match.group(1) == "index":
            if index is None:
                raise FleetError("config uses {index}, but the name has no numeric range", container=name, kind=INVALID)
            return str(index)
        raise FleetError(f"config has the unknown placeholder {match.group(0)!r}", mend="Use {name} or {index}; write {{ for a brace.", kind=INVALID)

    return _PLACEHOLDER.sub(one, value)
