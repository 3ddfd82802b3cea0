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
from typing import Callable, Collection, Iterable, Mapping, Sequence

from ansible_collections.fleet.lxc.plugins.module_utils.errors import BROKEN, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.keys import GUARD, renamed

_MAC = re.compile(r"[0-9A-Fa-fxX]{2}(:[0-9A-Fa-fxX]{2}){5}")
_INTERFACE = re.compile(r"lxc\.net\.(\d+)\.(type|hwaddr)")
_HWADDR = re.compile(r"lxc\.net\.\d+\.hwaddr|lxc\.network\.hwaddr")
# LXC does not load a configuration in which these stand without a value; the last of several lines holds.
_NEVER_EMPTY = ("lxc.arch", "lxc.mount.fstab")
_MOST_INCLUDES = 16
_DIRECTORIES = ("br=", "upperdir=", "workdir=")


def read_text(path: str, errors: str = "surrogateescape") -> str:
    """The text of a file; a pipe in its place is read as empty, and not waited for."""
    with open(path, encoding="utf-8", errors=errors, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        return file.read()


class Config:
    """The lines of one configuration file, comments and order kept."""

    def __init__(self, lines: Iterable[str] = ()):
        self.lines = list(lines)

    @classmethod
    def parse(cls, text: str) -> Config:
        return cls(text.split("\n")[:-1] if text.endswith("\n") else text.split("\n") if text else [])

    @classmethod
    def read(cls, path: str) -> Config:
        return cls.parse(read_text(path))

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

    def expanded(self) -> Config:
        """This configuration as LXC sees it: the files that lxc.include names read in where they stand.

        :raises FleetError: BROKEN for an include that cannot be read.
        """
        return Includes().expanded(self)

    def legacy_keys(self) -> list[str]:
        return [key for key, _value in self.items() if renamed(key) is not None]

    def own(self, key: str, includes: Includes | None = None) -> list[str]:
        """What stands after ``key =``, of the lines that no include and no empty line of a key above may override."""
        return self._own(key, includes or Includes())[1]

    def _own(self, key: str, includes: Includes) -> tuple[int, list[str]]:
        """Where those lines begin that :meth:`own` looks at, and what it finds."""
        values: list[str] = []
        for index in range(len(self.lines) - 1, -1, -1):
            item = split_line(self.lines[index])
            if not item:
                continue
            if item[0] == key:
                values.append(self.lines[index].partition("=")[2].strip())
            elif includes.touch(item[1], key) if item[0] == "lxc.include" else not item[1] and key.startswith(item[0] + "."):
                return index + 1, values[::-1]
        return 0, values[::-1]

    def set(self, key: str, values: Sequence[str], includes: Includes | None = None) -> None:
        """Replace a key's own lines: where they stood, or at the end where none stood. A value is written as it is."""
        begin, old = self._own(key, includes or Includes())
        if old == list(values):
            return
        at, kept = None, self.lines[:begin]
        for line in self.lines[begin:]:
            item = split_line(line)
            if item and item[0] == key:
                at = len(kept) if at is None else at
            else:
                kept.append(line)
        at = len(kept) if at is None else at
        self.lines = kept[:at] + [f"{key} = {value}".rstrip() for value in values] + kept[at:]

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


class Includes:
    """The files that ``lxc.include`` lines name, each read once for one observation."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}
        self._touched: dict[tuple[str, str], bool] = {}
        self._values: dict[tuple[tuple[str, ...], str], list[str]] = {}

    def expanded(self, config: Config) -> Config:
        """A configuration as LXC sees it, what is included in the place of its line.

        :raises FleetError: BROKEN for an include that cannot be read.
        """
        return Config(self._expand(config.lines, 0))

    def _expand(self, lines: Iterable[str], depth: int) -> list[str]:
        expanded: list[str] = []
        for line in lines:
            item = split_line(line)
            expanded += self._read(item[1], depth) if item and item[0] == "lxc.include" and item[1] else [line]
        return expanded

    def _read(self, include: str, depth: int = 0) -> list[str]:
        if include not in self._lines:
            if depth == _MOST_INCLUDES:
                raise FleetError(f"its configuration includes {include} without end", kind=BROKEN)
            try:
                self._lines[include] = [line for path in _included(include) for line in self._expand(Config.read(path).lines, depth + 1)]
            except OSError as error:
                raise FleetError(f"its configuration includes {include}, which cannot be read ({error.strerror})", kind=BROKEN) from error
        return self._lines[include]

    def touch(self, include: str, key: str) -> bool:
        """Whether an include sets a key or clears it; one that cannot be read may."""
        if (include, key) not in self._touched:
            try:
                items = Config(self._read(include) if include else []).items()
                self._touched[include, key] = any(name == key or (not value and key.startswith(name + ".")) for name, value in items)
            except FleetError:
                self._touched[include, key] = True
        return self._touched[include, key]

    def lines(self, config: Config, key: str, values: Sequence[str]) -> list[str]:
        """What a key's own lines must be, so that it has these values and no others: an empty one first, where others come before.

        :raises FleetError: BROKEN for an include that cannot be read.
        """
        begin = config._own(key, self)[0]  # pylint: disable=protected-access
        if begin and values[:1] != [""] and not (values and key in _NEVER_EMPTY):
            head = tuple(config.lines[:begin])
            if (head, key) not in self._values:
                self._values[head, key] = self.expanded(Config(head)).get_all(key)
            if self._values[head, key]:
                return ["", *values]
        return list(values)


def _included(path: str) -> list[str]:
    """The files that one lxc.include stands for: of a directory all *.conf, in the order that the filesystem has them in."""
    if not path.endswith("/") and not os.path.isdir(path):
        return [path]
    try:
        return [os.path.join(path, name) for name in os.listdir(path) if name.endswith(".conf") and name != ".conf"]
    except FileNotFoundError:
        return []


def with_keys(
    config: Config, keys: Mapping[str, Sequence[str]], before: Mapping[str, list[str]], includes: Includes, kept: Collection[str] = ()
) -> tuple[Config, dict[str, list[str]]]:
    """A configuration with a task's keys, those gone that an earlier task set; and the lines that the keys replaced.

    :param before: what the keys of earlier tasks replaced.
    :param kept: those of them that this task does not speak of.
    :raises FleetError: BROKEN for an include that cannot be read.
    """
    staying = {key: before[key] for key in before if key in kept and key not in keys}
    if keys.keys() | staying.keys() == before.keys() and all(config.own(key, includes) == includes.lines(config, key, keys[key]) for key in keys):
        return config, dict(before)
    # All that was set is taken back first, in reverse, so that what comes out does not depend on what earlier tasks did.
    changed, inherited = Config(config.lines), staying
    for key in reversed(_from_above(before)):
        if key not in staying:
            changed.set(key, before[key], includes)
    for key in _from_above(keys):
        inherited[key] = [value for value in changed.own(key, includes) if GUARD not in value]
        changed.set(key, includes.lines(changed, key, keys[key]), includes)
    return changed, inherited


def _from_above(keys: Iterable[str]) -> list[str]:
    # An empty lxc.hook clears each lxc.hook.* before it.
    return sorted(keys, key=lambda key: key.count("."))


def derive(
    source: Config,
    source_dir: str,
    name: str,
    clone_dir: str,
    rootfs: str,
    mac: Callable[[str, int, str | None], str | None],
    expanded: Config | None = None,
    bare: Iterable[int] = (),
) -> tuple[Config, dict[str, str]]:
    """A clone's configuration, as liblxc makes it.

    New uts.name, rootfs path and MAC addresses; hooks under the source's directory and the fstab move along; everything
    else stays. The guard of a sealed base is left behind.

    :param mac: gives the MAC address of (name, number of the interface, address that the source has for it).
    :param expanded: the source's configuration with its includes, which may name an fstab too.
    :param bare: the interfaces that have no MAC address in the source (:func:`without_hwaddr`).
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
            return mac(name, _index(key), value)
        return value

    config.map_values(change)
    for index in bare:
        address = mac(name, index, None)
        if address:
            config.lines.append(f"lxc.net.{index}.hwaddr = {address}")
    config.lines += [f"lxc.rootfs.path = {rootfs}", f"lxc.uts.name = {name}"]
    if fstab:
        files[fstab] = f"{clone_dir}/{os.path.basename(fstab)}"
        config.lines.append(f"lxc.mount.fstab = {files[fstab]}")
    return config, files


def _index(key: str) -> int:
    return int(next(filter(str.isdigit, key.split(".")), 0))


def without_hwaddr(config: Config) -> tuple[int, ...]:
    """The interfaces with a MAC address of their own that a configuration leaves to chance."""
    types: dict[int, str] = {}
    given = set()
    for key, value in config.items():
        match = _INTERFACE.fullmatch(key)
        if match and match.group(2) == "type":
            types[int(match.group(1))] = value
        elif match and value:
            given.add(int(match.group(1)))
        elif key == "lxc.net" and not value:
            types.clear()
    return tuple(sorted(index for index, kind in types.items() if kind in ("veth", "macvlan") and index not in given))


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


def rootfs_value(config: Config, name: str, includes: Includes) -> str:
    """The value of ``lxc.rootfs.path``, which may stand in an included file.

    :raises FleetError: BROKEN when there is none, or the file is of LXC 2 or older.
    """
    for line in reversed(config.lines):
        key, value = split_line(line) or ("", "")
        if key == "lxc.include" and includes.touch(value, "lxc.rootfs.path"):
            value = includes.expanded(config).get("lxc.rootfs.path")
        elif key != "lxc.rootfs.path":
            continue
        if value:
            return value
        break
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
