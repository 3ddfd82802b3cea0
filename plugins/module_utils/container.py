# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the layers pass each other: a root filesystem, a container as observed, and where it came from.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields

from ansible_collections.fleet.lxc.plugins.module_utils.config import Config

FORMAT = 1
INTENT = "fleet.lxc.intent"
PROVENANCE = "fleet.lxc.json"

STOPPED, RUNNING, FROZEN, ABSENT = "stopped", "running", "frozen", "absent"

# What a directory below an lxcpath turned out to be.
COMPLETE, UNFINISHED, BROKEN, FOREIGN = "complete", "unfinished", "broken", "foreign"


@dataclass(frozen=True)
class Rootfs:
    """``lxc.rootfs.path`` taken apart: ``type:path``, for overlay ``overlay:lower:upper`` (lower may be a list joined by ':')."""

    store: str
    path: str
    lower: str = ""

    @classmethod
    def parse(cls, value: str) -> Rootfs:
        """Read LXC's notation; a path without a type stays without one (``store`` is ''): liblxc would guess."""
        store, colon, rest = value.partition(":")
        if not colon or "/" in store:
            return cls("", value)
        if store in ("overlay", "overlayfs", "aufs"):
            lower, _colon, upper = rest.rpartition(":")
            return cls("overlay", upper, lower)
        return cls(store, rest)

    def __str__(self) -> str:
        if self.store == "overlay":
            return f"overlay:{self.lower}:{self.path}"
        return f"{self.store}:{self.path}" if self.store else self.path


@dataclass(frozen=True)
class Provenance:
    """The record that makes a container ours; written as the intent first, complete once renamed to its final name."""

    id: str
    name: str
    lxcpath: str
    origin: str  # created, adopted, cloned
    rootfs: str
    family: str
    source: str | None = None
    source_lxcpath: str | None = None
    set: str | None = None
    generation: str | None = None
    method: str | None = None
    sealed: bool = False
    fingerprint: str | None = None
    config_digest: str | None = None
    base_version: str | None = None  # what the operator calls the content that was sealed
    # Keys that the task set, with the lines that the key had before: a key dropped from the task gets those back.
    inherited: dict[str, list[str]] = field(default_factory=dict)
    by_option: dict[str, list[str]] = field(default_factory=dict)  # those of them that another option than config set
    assigned: str | None = None  # the address that the option ipv4 gave it, with its prefix length
    outdated: str | None = None  # the life (LxcHost.life) in which it runs with an older configuration than the file's
    version: str = ""
    time: str = ""
    format: int = FORMAT

    def dumps(self) -> str:
        return json.dumps(vars(self), sort_keys=True) + "\n"

    @classmethod
    def loads(cls, text: str) -> Provenance | None:
        """None for what is no record of a format that we know."""
        try:
            data = json.loads(text)
            known = {one.name for one in fields(cls)}
            if not isinstance(data, dict) or data.get("format") != FORMAT:
                return None
            record = cls(**{key: value for key, value in data.items() if key in known})
            texts = (record.id, record.name, record.lxcpath, record.origin, record.rootfs, record.family, record.assigned or "")
            dicts = (record.inherited, record.by_option)
            lists = [keys for one in dicts if isinstance(one, dict) for keys in one.values()]
            known = all(isinstance(text, str) for text in texts) and all(isinstance(one, dict) for one in dicts)
            return record if known and all(isinstance(keys, list) for keys in lists) else None
        except (ValueError, TypeError):
            return None


@dataclass(frozen=True)
class Container:
    """A directory below an lxcpath, as one observation found it."""

    name: str
    lxcpath: str
    kind: str  # COMPLETE, UNFINISHED, BROKEN, FOREIGN
    state: str = STOPPED
    pid: int | None = None
    config: Config | None = None
    rootfs: Rootfs | None = None
    provenance: Provenance | None = None
    damage: str = ""  # why it is BROKEN
    away: str = ""  # what brings its storage back, where that is only out of reach
    remark: str = ""  # what the operator should know while it is not
    size: int | None = None  # bytes, where the store is sized ahead
    granule: int = 1  # bytes that its size is a multiple of

    @property
    def directory(self) -> str:
        return f"{self.lxcpath}/{self.name}"

    def rounded(self, size: int) -> int:
        """A size as its store makes it."""
        return -(-size // self.granule) * self.granule

    @property
    def is_base(self) -> bool:
        return bool(self.provenance and self.provenance.origin in ("created", "adopted"))

    @property
    def is_clone(self) -> bool:
        return bool(self.provenance and self.provenance.origin == "cloned")
