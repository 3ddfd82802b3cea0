# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One call of lxc_storage: a btrfs filesystem, a VG with a thin pool, a ZFS dataset, where the containers of a host will be kept.

What is made bears a mark of ours (a label, a tag, a property), and only what bears it is ever removed. Every refusal is made
before the first step is taken.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import glob
import json
import os
import re
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Iterable, Mapping

from ansible_collections.fleet.lxc.plugins.module_utils import mounts
from ansible_collections.fleet.lxc.plugins.module_utils.locks import Lock, hold
from ansible_collections.fleet.lxc.plugins.module_utils.records import write_atomically
from ansible_collections.fleet.lxc.plugins.module_utils.command import Runner
from ansible_collections.fleet.lxc.plugins.module_utils.disk import Disk, clear, disk_of_zfs, goes_when_unmounted, is_block_device, loop_devices, signatures
from ansible_collections.fleet.lxc.plugins.module_utils.errors import BUSY, CONFLICT, FAILED, INVALID, RESOURCES, UNSUPPORTED, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.host import require_root
from ansible_collections.fleet.lxc.plugins.module_utils.storage.lvm import LvmDriver, Volume
from ansible_collections.fleet.lxc.plugins.module_utils.wanted import parse_size, wanted_storage

LABEL = "fleet.lxc"  # of a btrfs filesystem
TAG = "fleet.lxc.host"  # of a VG
PROPERTY = "fleet.lxc:host"  # of a pool
FSTAB, MARK = "/etc/fstab", "x-fleet.lxc"

_DISK: dict[str, Any] = {"device": {"type": "path"}, "file": {"type": "path"}, "size": {"type": "str"}}
STORAGE_ARGUMENTS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "btrfs": {"type": "dict", "options": {"mountpoint": {"type": "path", "required": True}, **_DISK}},
    "lvm": {
        "type": "dict",
        "options": {"vg": {"type": "str", "required": True}, "thinpool": {"type": "str"}, "thinpool_size": {"type": "str"}, **_DISK},
    },
    "zfs": {"type": "dict", "options": {"dataset": {"type": "str", "required": True}, **_DISK}},
    "timeout": {"type": "int", "default": 600},
    "lock_timeout": {"type": "int", "default": 300},
}
LOCK = Lock("storage", True, "this host's storage")


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


class Btrfs(Pool):
    """A btrfs filesystem and its line in /etc/fstab."""

    tools = ("mkfs.btrfs",)

    def __init__(self, runner: Runner, options: Mapping[str, Any]):
        super().__init__(runner, options, os.path.normpath(options["mountpoint"]))
        if not self.name.startswith("/") or self.name == "/" or re.search(r"\s", self.name):
            raise FleetError(f"the mountpoint {self.name} is no absolute path without spaces", kind=INVALID)

    def check_kernel(self, check_mode: bool) -> None:
        if not self._load("/sys/fs/btrfs", "btrfs", check_mode):
            raise FleetError("this kernel has no btrfs", mend="Use another kernel, or another kind of storage.", kind=UNSUPPORTED)

    def _mounted(self) -> mounts.Mount | None:
        return next((mount for mount in reversed(mounts.table()) if mount.point == os.path.realpath(self.name)), None)

    def plan(self) -> list[Step]:
        mount = self._mounted()
        if mount:
            self._check_mount(mount)
            found = self.disk.holds("btrfs") if self.disk else None
            return self._fstab_steps(found.uuid) if found and found.label == LABEL else []
        disk, steps = self.needed_disk(), []
        if os.path.isdir(self.name) and os.listdir(self.name):
            raise FleetError(
                f"nothing is mounted on {self.name}, for it is not empty",
                why=f"{sorted(os.listdir(self.name))[0]} would be hidden",
                mend="Choose another mountpoint, or move what is in it away.",
                kind=CONFLICT,
            )
        if not os.path.isdir(self.name):
            steps.append(Step(f"make the directory {self.name}", lambda: os.makedirs(self.name, 0o755)))
        found = disk.holds("btrfs")
        identifier = found.uuid if found else str(uuid.uuid4())
        if not found or found.label != LABEL:
            disk.must_be_empty()
            steps += self.make_file()
            steps.append(Step(f"make a btrfs filesystem on {disk.path}", self.run("mkfs.btrfs", "-q", "-L", LABEL, "-U", identifier, disk.path)))
        steps += self._fstab_steps(identifier)
        return [*steps, Step(f"mount {self.name}", self.run("mount", self.name))]

    def _check_mount(self, mount: mounts.Mount) -> None:
        if mount.fstype != "btrfs" or self.disk and not self.disk.places() & set(self._devices(mount)):
            raise FleetError(
                f"{mount.source} ({mount.fstype}) is mounted on {self.name}",
                why=f"not {self.disk.path}" if self.disk else "that is no btrfs",
                mend="Choose another mountpoint, or unmount that.",
                kind=CONFLICT,
            )

    @staticmethod
    def _devices(mount: mounts.Mount) -> list[str]:
        """The devices of the mounted filesystem, as the kernel knows them: a copy of one bears the same UUID."""
        source = os.path.realpath(mount.source)
        for directory in glob.glob("/sys/fs/btrfs/*/devices"):
            found = sorted(f"/dev/{name.replace('!', '/')}" for name in os.listdir(directory))
            if source in found:
                return found
        return [source]

    # The boot mounts it again by a line that bears our mark. Another's line for the same mountpoint is left as it is.

    def _fstab(self) -> list[str]:
        try:
            with open(FSTAB, encoding="utf-8", errors="surrogateescape") as file:
                return file.read().splitlines()
        except FileNotFoundError:
            return []

    def _lines_of_mountpoint(self) -> list[str]:
        return [line for line in self._fstab() if not line.lstrip().startswith("#") and self.name in line.split()[1:2]]

    def _fstab_steps(self, identifier: str) -> list[Step]:
        what = self.disk.file.replace("\\", "\\134").replace(" ", "\\040") if self.disk.file else f"UUID={identifier}"
        line = f"{what} {self.name} btrfs {'loop,' if self.disk.file else ''}nofail,{MARK} 0 0"
        there = self._lines_of_mountpoint()
        foreign = [one for one in there if MARK not in one]
        for one in foreign:
            if not self._names_it(one, identifier):
                raise FleetError(
                    f"{FSTAB} mounts something else on {self.name}",
                    why=one.strip(),
                    mend="Choose another mountpoint, or remove that line.",
                    kind=CONFLICT,
                )
        if line in there or foreign:
            return []
        return [Step(f"write a line for {self.name} to {FSTAB}", lambda: self._write_fstab([line]))]

    def _names_it(self, line: str, identifier: str) -> bool:
        """Whether another's line mounts this filesystem."""
        what, _point, fstype, options = [*line.split(), "", ""][:4]
        what = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), what.replace('"', ""))
        if fstype not in ("btrfs", "auto") or not self.disk.holds("btrfs") and "subvol" in options:
            return False
        if what.upper() == f"UUID={identifier}".upper():
            return True
        if not what.startswith("/"):
            what = self.runner.run(["findfs", what], check=False).stdout.strip()
        return os.path.realpath(what) in {os.path.realpath(place) for place in self.disk.places()}

    def _write_fstab(self, lines: list[str]) -> None:
        old = set(self._lines_of_mountpoint())
        kept = [line for line in self._fstab() if line not in old or MARK not in line]
        write_atomically(FSTAB, "".join(f"{line}\n" for line in [*kept, *lines]), None if os.path.exists(FSTAB) else 0o644)

    def removal(self) -> list[Step]:
        mount = self._mounted()
        if not mount:
            if self.disk and self.disk.is_there() and any(one.label == LABEL for one in self.disk.signatures()):
                raise self._unseen()
            return []
        self._check_mount(mount)
        devices = self._devices(mount)
        if not any((one.type, one.label) == ("btrfs", LABEL) for one in signatures(self.runner, devices[0])):
            raise self._not_ours(f"Use umount {self.name}.")
        files = [loop_devices()[device] for device in devices if goes_when_unmounted(device)]
        if files and not (self.disk and self.disk.file):
            raise FleetError(f"{self.name} lies on the file {', '.join(files)}", mend="Set file and size to have it removed.", kind=INVALID)
        elsewhere = [one.point for one in mounts.table() if one != mount and os.path.realpath(one.source) in devices]
        if elsewhere:
            raise self._in_use([f"it is mounted at {point}" for point in elsewhere])
        # What is mounted may be one subvolume of many.
        there = mounts.in_private_mounts(lambda: contents(devices[0], "btrfs", "subvolid=5"))
        if there:
            raise self._in_use(there)
        steps = [Step(f"unmount {self.name}", self.run("umount", self.name))]
        if any(MARK in line for line in self._lines_of_mountpoint()):
            steps.append(Step(f"remove the line for {self.name} from {FSTAB}", lambda: self._write_fstab([])))
        return steps + self.give_back(devices)


class Lvm(Pool):
    """A volume group, and a thin pool in it."""

    tools = ("lvs", "vgs", "pvs")

    def __init__(self, runner: Runner, options: Mapping[str, Any]):
        super().__init__(runner, options, options["vg"])
        wanted_storage({"vg": options["vg"], "thinpool": options["thinpool"]})
        self.thinpool, self.thinpool_size = options["thinpool"], parse_size("thinpool_size", options["thinpool_size"])
        self.driver = LvmDriver(runner)

    def check_kernel(self, check_mode: bool) -> None:
        if not self._load("/sys/class/misc/device-mapper", "dm_mod", check_mode):
            raise FleetError("this kernel has no device-mapper, so there is no LVM", mend="Use another kernel, or another kind of storage.", kind=UNSUPPORTED)

    def _group(self) -> dict[str, str] | None:
        """{PV: our tag or nothing} of the VG; None when there is no such VG."""
        if not self.has_tools():
            return None
        said = self.runner.run(["pvs", "--reportformat", "json", "-o", "pv_name,vg_name,vg_tags"]).stdout
        rows = [row for part in json.loads(said)["report"] for row in part["pv"] if row["vg_name"] == self.name]
        return {os.path.realpath(row["pv_name"]): row["vg_tags"] for row in rows} or None

    def _volumes(self) -> list[Volume]:
        self.driver.refresh()
        return [volume for volume in self.driver.volumes().values() if volume.vg == self.name]

    def plan(self) -> list[Step]:
        group, steps = self._group(), []
        if group is None:
            disk = self.needed_disk()
            if disk.file and self._lies_detached():
                steps += [Step(f"attach {disk.file} as a loop device", disk.attach), Step(f"activate the VG {self.name}", self._activate)]
                return steps  # its thin pool is seen by the run's second look
            if not disk.was_just_made():
                disk.must_be_empty()
            steps += self.make_file()
            if disk.file and not disk.loops():
                steps.append(Step(f"attach {disk.file} as a loop device", disk.attach))
            steps.append(
                Step(f"make the VG {self.name} on {disk.path}", lambda: self.runner.run(["vgcreate", "-q", "--addtag", TAG, self.name, disk.attach()]))
            )
        elif self.disk and not self.disk.places() & set(group):
            raise FleetError(
                f"there is already a VG {self.name} on {', '.join(group)}",
                why=f"not on {self.disk.path}",
                mend="Leave device and file out to use it as it is, or choose another name.",
                kind=CONFLICT,
            )
        if not self.thinpool:
            return steps
        there = next((volume for volume in self._volumes() if volume.name == self.thinpool), None) if group else None
        if there and not there.is_pool:
            raise FleetError(f"{there.path} is no thin pool", mend="Choose another name for the thin pool.", kind=CONFLICT)
        if not there:
            room = ["-L", f"{self.thinpool_size}b"] if self.thinpool_size else ["-l", "90%FREE"]
            argv = ["lvcreate", "-q", "-y", "--type", "thin-pool", *room, "-n", self.thinpool, self.name]
            steps.append(Step(f"make the thin pool {self.name}/{self.thinpool}", self.run(*argv)))
        return steps

    def _lies_detached(self) -> bool:
        """Whether the file holds this VG, as after a reboot. LVM keeps a VG's description as text at the beginning of each PV."""
        if self.disk.loops() or not self.disk.holds("LVM2_member"):
            return False
        with open(self.disk.file, "rb") as file:
            head = file.read(1 << 20)
        return f"{self.name} {{\nid = ".encode() in head and f'"{TAG}"'.encode() in head

    def _activate(self) -> None:
        self.runner.run(["vgchange", "-q", "-ay", self.name])

    def removal(self) -> list[Step]:
        group = self._group()
        if group is None:
            if self.disk and self.disk.file and self.disk.is_there() and self._lies_detached():
                raise self._unseen()
            return []
        if not all(TAG in tags.split(",") for tags in group.values()):
            raise self._not_ours(f"Use vgremove {self.name}.")
        self._check_place(group)
        volumes = [volume for volume in self._volumes() if not (volume.is_pool and volume.name == self.thinpool)]
        if volumes:
            raise self._in_use([volume.path for volume in volumes])
        steps = []
        if any(volume.is_pool for volume in self._volumes()):
            steps.append(Step(f"remove the thin pool {self.name}/{self.thinpool}", self.run("lvremove", "-q", "-y", f"{self.name}/{self.thinpool}")))
        steps.append(Step(f"remove the VG {self.name}", self.run("vgremove", "-q", self.name)))
        return [*steps, Step(f"make no PV of {', '.join(group)}", self.run("pvremove", "-q", *group)), *self.give_back(group)]


class Zfs(Pool):
    """A pool, and the dataset below which containers get theirs."""

    tools = ("zpool", "zfs")

    def __init__(self, runner: Runner, options: Mapping[str, Any]):
        wanted_storage({"zfs_dataset": options["dataset"]})
        self.dataset = options["dataset"]
        super().__init__(runner, options, self.dataset.split("/")[0])
        if self.dataset == self.name:
            raise FleetError(f"{self.dataset} is a pool", mend=f"Name a dataset in it, such as {self.dataset}/lxc.", kind=INVALID)

    def check_kernel(self, check_mode: bool) -> None:
        if not self._load("/dev/zfs", "zfs", check_mode):
            raise FleetError(
                "this kernel has no ZFS module",
                why="modprobe zfs fails",
                mend="On Ubuntu install linux-modules-extra; on Debian install zfs-dkms and linux-headers-amd64 from contrib, then run this again.",
                kind=UNSUPPORTED,
            )

    def _pools(self) -> list[str]:
        return self.runner.run(["zpool", "list", "-H", "-o", "name"]).stdout.split() if self.has_tools() else []

    def _vdevs(self) -> list[str]:
        """The devices and files of the pool. zpool cuts off a long path: that of our file is known by its label."""
        rows = self.runner.run(["zpool", "list", "-v", "-H", "-P", "-L", self.name]).stdout.splitlines()
        found = [name for name in (row.strip("\t").split("\t")[0] for row in rows) if name.startswith("/")]
        ours = self.disk and self.disk.file
        return [ours if ours and one != ours and self._is_cut_off(one, ours) else one for one in found]

    def _is_cut_off(self, name: str, path: str) -> bool:
        # A copy of the file has the same label, with the path of the original.
        if not path.startswith(name) or not self.disk.is_there():
            return False
        guid = self.runner.run(["zpool", "get", "-H", "-p", "-o", "value", "guid", self.name]).stdout.strip()
        label = [line.strip() for line in self.runner.run(["zdb", "-l", path], check=False).stdout.splitlines()]
        return {f"pool_guid: {guid}", f"path: '{path}'"} <= set(label)

    def _places(self) -> set[str]:
        # ZFS puts partitions on a whole disk.
        return {*self.disk.places(), *self.disk.partitions()}

    def _datasets(self) -> list[str]:
        return self.runner.run(["zfs", "list", "-H", "-t", "all", "-o", "name", "-r", self.name]).stdout.splitlines()

    def _contents(self, dataset: str) -> list[str]:
        if self.runner.run(["zfs", "get", "-H", "-o", "value", "type", dataset]).stdout.strip() != "filesystem":
            return [f"the volume {dataset}"]
        try:
            found = mounts.in_private_mounts(lambda: contents(dataset, "zfs"))
        except FleetError as error:
            raise FleetError(
                f"{self.name} is not removed, for what is in {dataset} cannot be seen",
                why=error.why,
                mend=f"If it is encrypted: zfs load-key {dataset}.",
                kind=BUSY,
            ) from error
        return [f"{name} in {dataset}" for name in found if name != ".zfs"]

    def plan(self) -> list[Step]:
        steps, made = [], self.name in self._pools()
        if not made:
            disk = self.needed_disk()
            place = disk.find("zfs_member", self.name)
            if place:
                return [Step(f"import the pool {self.name}", self.run("zpool", "import", "-d", place, self.name))]  # the run looks again
            disk.must_be_empty()
            steps += self.make_file()
            argv = ["zpool", "create", "-m", "none", "-O", f"{PROPERTY}=yes", self.name, disk.path]
            steps.append(Step(f"make the pool {self.name} on {disk.path}", self.run(*argv)))
        elif self.disk and not self._places() & set(self._vdevs()):
            raise FleetError(
                f"there is already a pool {self.name} on {', '.join(self._vdevs())}",
                why=f"not on {self.disk.path}",
                mend="Leave device and file out to use it as it is, or choose another name.",
                kind=CONFLICT,
            )
        if not made or self.dataset not in self._datasets():
            # Without these two a guest has no POSIX ACLs, and its other attributes are slow.
            options = ["-o", "mountpoint=none", "-o", "acltype=posixacl", "-o", "xattr=sa"]
            steps.append(Step(f"make the dataset {self.dataset}", self.run("zfs", "create", "-p", *options, self.dataset)))
        return steps

    def removal(self) -> list[Step]:
        if self.name not in self._pools():
            if self.disk and self.disk.find("zfs_member", self.name):
                raise self._unseen()
            return []
        if self.runner.run(["zfs", "get", "-H", "-o", "value", PROPERTY, self.name]).stdout.strip() != "yes":
            raise self._not_ours(f"Use zpool destroy {self.name}.")
        ancestors = ["/".join(self.dataset.split("/")[:depth]) for depth in range(1, self.dataset.count("/") + 2)]
        others = [name for name in self._datasets() if name not in ancestors]
        if others:
            raise self._in_use(others)
        there = [one for name in ancestors if name in self._datasets() for one in self._contents(name)]
        if there:
            raise self._in_use(there)
        vdevs = self._vdevs()
        self._check_place(vdevs, self._places() if self.disk else None)
        files = [vdev for vdev in vdevs if not is_block_device(vdev) and not (self.disk and vdev == self.disk.file)]
        if files:
            raise FleetError(
                f"{self.name} is not removed, for it lies on what is not named and is no device",
                why=", ".join(files),
                mend=f"Set file and size, or use zpool destroy {self.name} and remove that.",
                kind=CONFLICT,
            )
        disks = [disk for disk in map(disk_of_zfs, vdevs) if disk]
        return [Step(f"remove the pool {self.name}", self.run("zpool", "destroy", self.name)), *self.give_back(dict.fromkeys([*vdevs, *disks]))]


KINDS: dict[str, type[Pool]] = {"btrfs": Btrfs, "lvm": Lvm, "zfs": Zfs}


class StorageCall:
    """The one call that prepares a host's storage, or removes it."""

    def __init__(self, options: Mapping[str, Any]):
        require_root()
        self.runner = Runner(options["timeout"])
        self.absent = options["state"] == "absent"
        self.kinds = [kind for kind in KINDS if options[kind]]
        if not self.kinds:
            raise FleetError("nothing is asked for", mend=f"Set one of {', '.join(KINDS)}.", kind=INVALID)
        self.options = options

    def run(self, check_mode: bool) -> dict[str, Any]:
        """Do what the options ask; in check mode say what would be done.

        :raises FleetError: before the first step when anything would have to be overwritten.
        """
        if check_mode:
            return self._run(check_mode)
        with hold([LOCK], self.options["lock_timeout"]) as locks, self.runner.keeping(locks):
            return self._run(check_mode)

    def _run(self, check_mode: bool) -> dict[str, Any]:
        pools = [KINDS[kind](self.runner, self.options[kind]) for kind in self.kinds]
        for pool in pools:
            # Check mode tells what a machine would get whose tools are yet to be installed.
            if not check_mode and not self.absent:
                self.runner.require(*pool.tools)
            if not self.absent and (pool.has_tools() or not check_mode):
                pool.check_kernel(check_mode)
        steps = self._steps(pools)
        done = [step.what for step in steps]
        if not check_mode:
            for _look in range(3):
                for step in steps:
                    step.do()
                # What was attached or imported shows only now what is missing in it; and what was made must be found again.
                steps = self._steps(pools) if steps else []
                done += [step.what for step in steps]
            if steps:
                raise FleetError("the storage was made and is not found again", why="; ".join(step.what for step in steps), kind=FAILED)
        after = "".join(f"{what}\n" for what in done)
        return {"changed": bool(done), "actions": done, "diff": {"before": "", "after": after, "before_header": "storage", "after_header": "storage"}}

    def _steps(self, pools: list[Pool]) -> list[Step]:
        steps = []
        for pool in pools:
            if self.absent and not pool.has_tools():
                raise FleetError(f"{pool.name} cannot be looked at", why=f"{', '.join(pool.tools)} are not installed", kind=RESOURCES)
            steps += pool.removal() if self.absent else pool.plan()
        return steps
