# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the containers of a host will be kept: what storage of every kind is asked, and the steps that it answers with.

What is made bears a mark of ours (a label, a tag, a property), and only what bears it is ever removed. Every refusal is made
before the first step is taken.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Iterable, Mapping

from ansible_collections.fleet.lxc.plugins.module_utils import mounts
from ansible_collections.fleet.lxc.plugins.module_utils.command import Runner
from ansible_collections.fleet.lxc.plugins.module_utils.disk import Disk, clear
from ansible_collections.fleet.lxc.plugins.module_utils.errors import BUSY, CONFLICT, INVALID, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.wanted import parse_size


@dataclass(frozen=True)
class Step:
    """What is done, in words, and how."""

    what: str
    do: Callable[[], object]


class Pool(ABC):
    """Storage of one kind.

    :param options: its suboption of the module.
    """

    tools: tuple[str, ...] = ()

    def __init__(self, runner: Runner, options: Mapping[str, Any], name: str):
        self.runner, self.options, self.name = runner, options, name
        given = {key: options.get(key) for key in ("device", "file")}
        self.disk = Disk(runner, **given, size=parse_size(f"{name} size", options.get("size"))) if any([*given.values(), options.get("size")]) else None

    def needed_disk(self) -> Disk:
        """:raises FleetError: INVALID when neither a device nor a file was given."""
        if self.disk is None:
            raise FleetError(f"{self.name} does not exist", mend="Set device, or file and size, to have it made there.", kind=INVALID)
        return self.disk

    def make_file(self) -> list[Step]:
        return [] if not self.disk.file or self.disk.is_there() else [Step(f"make the sparse file {self.disk.file}", self.disk.make_file)]

    def give_back(self, devices: Iterable[str]) -> list[Step]:
        """Leave the devices that it lay on empty; the file that was named goes with the loop devices on it."""
        file = self.disk.file if self.disk else None
        going = self.disk.places() if file else set()
        steps = [Step(f"clear {device}", partial(clear, self.runner, device)) for device in devices if device not in going]
        if file and self.disk.loops():
            steps.append(Step(f"detach {file}", self.disk.detach))
        return steps + ([Step(f"remove the file {file}", lambda: os.unlink(file))] if file else [])

    def has_tools(self) -> bool:
        return all(self.runner.which(tool) for tool in self.tools)

    def check_kernel(self, check_mode: bool) -> None:
        """:raises FleetError: UNSUPPORTED when this kernel cannot do it."""

    def _load(self, sign: str, module: str, check_mode: bool) -> bool:
        """Whether the kernel has something, its module loaded."""
        if os.path.exists(sign):
            return True
        loaded = self.runner.run(["modprobe", *(["--dry-run"] if check_mode else []), module], check=False).rc == 0
        return loaded and (check_mode or os.path.exists(sign))

    @abstractmethod
    def plan(self) -> list[Step]:
        """The steps to what is wanted; none when it is there.

        :raises FleetError: CONFLICT for what would have to be overwritten.
        """

    @abstractmethod
    def removal(self) -> list[Step]:
        """The steps that remove it.

        :raises FleetError: BUSY while containers are on it, CONFLICT for what we did not make.
        """

    def run(self, *argv: str) -> Callable[[], object]:
        return lambda: self.runner.run(list(argv))

    def _check_place(self, devices: Iterable[str], places: set[str] | None = None) -> None:
        """:raises FleetError: CONFLICT when the device or file that is named is none of those that it lies on."""
        if self.disk and not (places or self.disk.places()) & set(devices):
            raise FleetError(
                f"{self.name} lies on {', '.join(devices)} and is not removed",
                why=f"not on {self.disk.path}, which is left as it is",
                mend="Leave device and file out, or name what it lies on.",
                kind=CONFLICT,
            )

    def _not_ours(self, mend: str) -> FleetError:
        return FleetError(f"{self.name} was not made by fleet.lxc and is not removed", mend=mend, kind=CONFLICT)

    def _in_use(self, names: list[str]) -> FleetError:
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        return FleetError(f"{self.name} is not removed while something is on it", why=", ".join(names[:10]) + more, mend="Remove that first.", kind=BUSY)

    def _unseen(self) -> FleetError:
        return FleetError(
            f"{self.name} is not removed, for what is on it cannot be seen", why=f"{self.disk.path} is not in use", mend="Run state: present first.", kind=BUSY
        )


def contents(source: str, fstype: str, options: str = "", point: str = "/run") -> list[str]:
    """What lies in a filesystem, mounted for that at a directory where it is not yet; call this in :func:`mounts.in_private_mounts`."""
    try:
        mounts.mount(source, point, fstype, writable=False, devices=False, options=options)
    except FleetError:
        # ZFS mounts what is mounted already as that is.
        mounts.mount(source, point, fstype, writable=True, devices=False, options=options)
    try:
        return sorted(os.listdir(point))
    finally:
        mounts.unmount(point)
