# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""LXC configuration files: parsed, derived for a clone, written atomically.

Parsing follows liblxc's ``parse_line`` (src/lxc/confile.c), deriving follows ``do_lxcapi_clone`` (src/lxc/lxccontainer.c);
where it does not, docs/differences-from-lxc-copy.md says why.
Private to the collection fleet.lxc.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from typing import Callable, Iterable, Mapping, Sequence

from ansible_collections.fleet.lxc.plugins.module_utils.errors import BROKEN, INVALID, FleetError

GUARD = "fleet.lxc.guard"
_MAC = re.compile(r"[0-9A-Fa-fxX]{2}(:[0-9A-Fa-fxX]{2}){5}")
_HWADDR = re.compile(r"lxc\.net\.\d+\.hwaddr|lxc\.network\.hwaddr")
_KEY = re.compile(r"lxc(\.[A-Za-z0-9_-]+)+")
_REFUSED = ("lxc.rootfs", "lxc.uts.name", "lxc.utsname", "lxc.idmap", "lxc.id_map", "lxc.include")
# Keys that LXC itself no longer reads since 3.0: a container that has them does not load.
_LEGACY = re.compile(
    r"\s*(lxc\.(utsname|rootfs|rootfs\.backend|network(\.\S+)?|mount|id_map|tty|pts|pivotdir|devttydir|haltsignal|rebootsignal|stopsignal"
    r"|aa_profile|aa_allow_incomplete|se_context|seccomp|console|kmsg|init_cmd|init_uid|init_gid|limit\.\S+|syslog|loglevel|logfile))\s*="
)
_MOST_INCLUDES = 16
_DIRECTORIES = ("br=", "upperdir=", "workdir=")
_PLACEHOLDER = re.compile(r"\{\{|\{([^{}]*)\}|\{")


class Config:
    """The lines of one configuration file, comments and order kept."""

    def __init__(self, lines: Iterable[str] = ()):
        self.lines = list(lines)

    @classmethod
    def parse(cls, text: str) -> Config:
        return cls(text.split("\n")[:-1] if text.endswith("\n") else text.split("\n") if text else [])

    @classmethod
    def read(cls, path: str) -> Config:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return cls.parse(file.read())

    def __str__(self) -> str:
        return "".join(line + "\n" for line in self.lines)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.lines == other.lines

    __hash__ = None

    def items(self) -> list[tuple[str, str]]:
        return [item for item in map(split_line, self.lines) if item]

    def get_all(self, key: str) -> list[str]:
        """All values of a key, in order, those before an empty one (of the key or of one above it, such as lxc.hook) left out."""
        values: list[str] = []
        for line in self.lines:
            item = split_line(line)
            if item and item[0] == key:
                values = values + [item[1]] if item[1] else []
            elif item and not item[1] and key.startswith(item[0] + "."):
                values = []
        return values

    def get(self, key: str) -> str | None:
        values = self.get_all(key)
        return values[-1] if values else None

    def expanded(self, depth: int = 0) -> Config:
        """This configuration as LXC sees it: the files that lxc.include names read in where they stand.

        :raises FleetError: BROKEN for an include that cannot be read.
        """
        lines: list[str] = []
        for line in self.lines:
            item = split_line(line)
            if not item or item[0] != "lxc.include" or not item[1]:
                lines.append(line)
                continue
            if depth == _MOST_INCLUDES:
                raise FleetError("its configuration includes files without end", why=item[1], kind=BROKEN)
            try:
                for path in _included(item[1]):
                    lines += Config.read(path).expanded(depth + 1).lines
            except OSError as error:
                raise FleetError(f"its configuration includes {item[1]}, which cannot be read", why=error.strerror or "", kind=BROKEN) from error
        return Config(lines)

    def legacy_keys(self) -> list[str]:
        return [match.group(1) for match in map(_LEGACY.match, self.lines) if match]

    def set(self, key: str, values: Sequence[str]) -> None:
        """Replace all lines of a key: where they stood, or at the end where none stood or an include follows them."""
        at, kept = None, []
        for line in self.lines:
            item = split_line(line)
            if item and item[0] == key:
                at = len(kept) if at is None else at
                continue
            if item and item[0] == "lxc.include" and at is not None:
                at = None if values else at
            kept.append(line)
        at = len(kept) if at is None else at
        self.lines = kept[:at] + [f"{key} = {value}" for value in values] + kept[at:]

    def map_values(self, change: Callable[[str, str], str | None]) -> None:
        """Rewrite single values in place, the rest of the line kept as it is written; None removes the line."""
        lines = []
        for line in self.lines:
            item = split_line(line)
            if item:
                value = change(*item)
                if value is None:
                    continue
                if value != item[1]:
                    key, _equals, written = line.partition("=")
                    line = f"{key}={written.replace(item[1], value, 1)}"
            lines.append(line)
        self.lines = lines

    def digest(self) -> str:
        return hashlib.sha256(str(self).encode("utf-8", "surrogateescape")).hexdigest()[:16]


@functools.lru_cache(maxsize=4096)  # a fleet's configurations are the same lines a thousand times
def split_line(line: str) -> tuple[str, str] | None:
    """Key and value of a line, as liblxc reads them; None for a comment or anything that is no lxc key."""
    if not line.startswith("lxc."):
        line = line.lstrip()
        if not line.startswith("lxc."):
            return None
    key, equals, value = line.partition("=")
    if not equals:
        return None
    value = value.strip()
    if len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]:
        value = value[1:-1]
    return key.rstrip(), value


def _included(path: str) -> list[str]:
    """The files that one lxc.include stands for: of a directory all *.conf, in the order that the filesystem has them in."""
    if not path.endswith("/") and not os.path.isdir(path):
        return [path]
    try:
        return [os.path.join(path, name) for name in os.listdir(path) if name.endswith(".conf") and name != ".conf"]
    except FileNotFoundError:
        return []


def derive(
    source: Config,
    source_dir: str,
    name: str,
    clone_dir: str,
    rootfs: str,
    new_mac: Callable[[], str],
    expanded: Config | None = None,
) -> tuple[Config, dict[str, str]]:
    """A clone's configuration, as liblxc makes it.

    New uts.name, rootfs path and MAC addresses; hooks under the source's directory and the fstab move along; everything
    else stays. The guard of a sealed base is left behind.

    :param new_mac: gives an unused MAC address at each call.
    :param expanded: the source's configuration with its includes, which may name an fstab too.
    :returns: the configuration, and the files to copy along: {path in the source: path in the clone}.
    :raises FleetError: BROKEN for an fstab that is no absolute path.
    """
    config = Config(source.lines)
    files: dict[str, str] = {}
    prefix = source_dir + "/"

    effective = expanded or source
    fstab = effective.get("lxc.mount.fstab")
    if fstab and not fstab.startswith("/"):
        raise FleetError(f"its lxc.mount.fstab {fstab!r} is no absolute path", why="a clone could not tell which file that is", kind=BROKEN)

    def change(key: str, value: str) -> str | None:
        if key in ("lxc.rootfs.path", "lxc.uts.name") or (key == "lxc.mount.fstab" and fstab):
            return None
        if key.startswith("lxc.hook.") and value.startswith(prefix):
            if value == prefix + GUARD:
                return None
            path = value.split(None, 1)[0]
            # A path that leads out of the source's directory again is another's file.
            if not os.path.normpath(path).startswith(prefix):
                return value
            if value in effective.get_all(key):
                files[path] = clone_dir + path[len(source_dir) :]
            return clone_dir + value[len(source_dir) :]
        if key == "lxc.mount.entry" and " overlay" in value:
            for option in _DIRECTORIES:
                value = value.replace(option + prefix, option + clone_dir + "/")
            return value
        if _HWADDR.fullmatch(key) and _MAC.fullmatch(value):
            return new_mac()
        return value

    config.map_values(change)
    config.lines += [f"lxc.rootfs.path = {rootfs}", f"lxc.uts.name = {name}"]
    if fstab:
        files[fstab] = f"{clone_dir}/{os.path.basename(fstab)}"
        config.lines.append(f"lxc.mount.fstab = {files[fstab]}")
    return config, files


def mapped_root(config: Config) -> tuple[int, int] | None:
    """The host's uid and gid of an unprivileged container's root; None when nothing is mapped.

    :param config: with its includes.
    """
    found: dict[str, int] = {}
    for value in config.get_all("lxc.idmap"):
        fields = value.split()
        if len(fields) == 4 and fields[1] == "0" and fields[2].isdigit():
            found.setdefault(fields[0], int(fields[2]))
    return (found["u"], found["g"]) if {"u", "g"} <= found.keys() else None


def hwaddrs(config: Config) -> list[str]:
    return [value for key, value in config.items() if _HWADDR.fullmatch(key) and value]


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


def rootfs_value(config: Config, name: str) -> str:
    """The value of ``lxc.rootfs.path``.

    :raises FleetError: BROKEN when there is none, or the file is of LXC 2 or older.
    """
    value = config.get("lxc.rootfs.path")
    if value:
        return value
    check_legacy(config, name)
    raise FleetError("has no root filesystem", container=name, why="its configuration has no lxc.rootfs.path", kind=BROKEN)


def check_legacy(config: Config, name: str) -> None:
    """:raises FleetError: BROKEN for a configuration of LXC 2 or older, which LXC does not load."""
    legacy = config.legacy_keys()
    if legacy:
        raise FleetError(
            f"its configuration has keys that LXC no longer reads ({', '.join(legacy[:3])})",
            container=name,
            mend="Run lxc-update-config -c on its config.",
            kind=BROKEN,
        )
