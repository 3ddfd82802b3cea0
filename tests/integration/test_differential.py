# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each base is cloned twice, by lxc-copy and by lxc_clone, and the twins are held against each other.

Compared are the container's directory (paths, types, modes, owners, content, xattrs), its configuration line by line, what
LXC's bookkeeping of other containers gained, and the whole root filesystem (the same, and times, device numbers, hard links,
ACLs). A case names the differences that it allows, and each of them must be there: what is documented and not true fails too.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import os
import re
import stat
import subprocess
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ansible_collections.fleet.lxc.plugins.module_utils import fleet as fleet_module
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from conftest import Fleet, sh
from test_conformance import furnish, inside

THEIRS, OURS = "their-clone", "our-clone"
PAGE = Path(__file__).parents[2] / "docs" / "differences-from-lxc-copy.md"


@dataclass
class Twin:
    """All that one clone consists of; its own name and place are written as <name> and <directory>."""

    files: dict
    config: list
    root: dict
    bookkeeping: dict
    shares_blocks: bool = False


# What may differ: an id of the documentation's table, and how that difference is taken out of a pair of twins.
# Each gets (theirs, ours) and makes them equal in its own respect, and in nothing else.
DIFFERENCES = {}


def difference(identifier):
    def register(function):
        DIFFERENCES[identifier] = function
        return function

    return register


@difference("record")
def _(theirs, ours):
    kind, mode, uid, gid, _content, xattrs = ours.files.pop("fleet.lxc.json")
    assert (kind, mode, uid, gid, xattrs) == ("file", 0o640, 0, 0, {})


@difference("hostname-newline")
def _(theirs, ours):
    for twin in (theirs, ours):
        for tree in (twin.root, twin.files):
            for path in [path for path in tree if path.endswith("etc/hostname")]:
                entry = tree[path]
                tree[path] = tuple(value.rstrip(b"\n") if isinstance(value, bytes) else value for value in entry)


@difference("blank-lines")
def _(theirs, ours):
    for twin in (theirs, ours):
        twin.config[:] = [line for line in twin.config if line.strip()]


@difference("acl")
def _(theirs, ours):
    kept = [path for path, entry in ours.root.items() if any(name.startswith("system.posix_acl") for name in entry[-1])]
    assert kept and not any(name.startswith("system.posix_acl") for path in kept for name in theirs.root[path][-1])
    for path in kept:
        entry = ours.root[path]
        ours.root[path] = (*entry[:-1], {name: value for name, value in entry[-1].items() if not name.startswith("system.posix_acl")})


@difference("overlay-root")
def _(theirs, ours):
    for tree, path in (("root", "."), ("files", "overlay/delta")):
        getattr(theirs, tree)[path] = getattr(ours, tree)[path]


@difference("overlay-work")
def _(theirs, ours):
    assert theirs.files.pop("overlay/work/work")[0] == "directory"


@difference("loop-size")
def _(theirs, ours):
    sizes = [twin.files["rootdev"][4] for twin in (theirs, ours)]
    assert sizes[0] == (1 << 30) + 1 != sizes[1]
    theirs.files["rootdev"] = ours.files["rootdev"]


@difference("reflink")
def _(theirs, ours):
    assert ours.shares_blocks
    theirs.shares_blocks = True


@difference("hook-mount")
def _(theirs, ours):
    for twin in (theirs, ours):
        entry = twin.root["hook-record"]
        text = re.sub(rb"LXC_ROOTFS_MOUNT=.*", b"LXC_ROOTFS_MOUNT=", entry[CONTENT])
        twin.root["hook-record"] = (*entry[:CONTENT], text, *entry[CONTENT + 1 :])


@difference("guard")
def _(theirs, ours):
    del theirs.files["fleet.lxc.guard"]
    theirs.config.remove("lxc.hook.pre-start = <directory>/fleet.lxc.guard")


# Describing

CONTENT = 5


def described_root(path):
    """A root filesystem: {path: (type, mode, uid, gid, mtime, content, device, first of its hard links, xattrs)}."""
    found, groups = {}, {}
    top = os.fsencode(path)
    for directory, folders, files in os.walk(top):
        for name in sorted(files) + sorted(folders) + ([b"."] if directory == top else []):
            file = os.path.join(directory, name)
            relative = os.fsdecode(os.path.relpath(file, top))
            if relative.split("/")[0] == "lost+found":
                continue
            info = os.lstat(file)
            kind, content, xattrs = _contents(file, info)
            # rsync takes the time of what is no file and no directory for right when the seconds are.
            time = info.st_mtime_ns if kind in ("file", "directory") else info.st_mtime_ns // 10**9
            device = info.st_rdev if kind in ("character", "block") else 0
            linked = ""
            if info.st_nlink > 1 and kind != "directory":
                linked = groups.setdefault((info.st_dev, info.st_ino), []) or relative
                groups[info.st_dev, info.st_ino] = linked
            found[relative] = (kind, stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, time, content, device, linked, xattrs)
    return found


def _contents(file, info):
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFCHR: "character", stat.S_IFBLK: "block", stat.S_IFIFO: "pipe"}
    kind = kinds[stat.S_IFMT(info.st_mode)]
    content = None
    if kind == "file":
        with open(file, "rb") as stream:
            content = stream.read()
        content = content if len(content) < 2000 else hashlib.sha256(content).hexdigest()
    elif kind == "symlink":
        content = os.readlink(file)
    hidden = ("trusted.overlay.", "user.overlay.", "btrfs.")
    xattrs = {name: os.getxattr(file, name, follow_symlinks=False) for name in os.listxattr(file, follow_symlinks=False) if not name.startswith(hidden)}
    return kind, content, xattrs


def described_files(directory):
    """A container's directory without its configuration, and without what the root filesystem's comparison sees."""
    found = {}
    for folder, folders, files in os.walk(directory):
        relative = os.path.relpath(folder, directory)
        if relative == "rootfs":
            folders.clear()
            continue
        for name in files + folders:
            path = os.path.join(folder, name)
            info = os.lstat(path)
            place = os.path.normpath(os.path.join(relative, name))
            if place == "config":
                found[place] = ("file", stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid)
            elif place == "rootdev":
                found[place] = ("file", stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_size)
            else:
                kind, content, xattrs = _contents(path, info)
                found[place] = (kind, stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, content, xattrs)
    info = os.stat(directory)
    found["."] = ("directory", stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid)
    return found


def bookkeeping(fleet):
    """The lines of each container's lxc_snapshots."""
    found = {}
    for name in os.listdir(fleet.lxcpath):
        path = fleet.path(name, "lxc_snapshots")
        found[name] = open(path).read().splitlines() if os.path.exists(path) else []
    return found


def shares_blocks(fleet, name, file="bin/busybox"):
    path = fleet.path(name, "rootfs", file)
    return os.path.isfile(path) and "shared" in subprocess.run(["filefrag", "-s", "-v", path], capture_output=True, text=True, check=True).stdout


def twin(source_fleet, fleet, name, before, macs):
    """Describe a clone; a MAC address that is new is written <new>."""
    directory = fleet.path(name)

    def anonymous(value):
        if isinstance(value, bytes):
            return value.replace(directory.encode(), b"<directory>").replace(name.encode(), b"<name>")
        return value.replace(directory, "<directory>").replace(name, "<name>") if isinstance(value, str) else value

    config = []
    for line in open(fleet.path(name, "config")).read().splitlines():
        match = re.search(r"hwaddr\s*=\s*([\"']?)(\S{17})\1\s*$", line)
        if match and re.fullmatch(r"00:16:3e(:[0-9a-f]{2}){3}", match.group(2)) and match.group(2).lower() not in macs:
            line = line.replace(match.group(2), "<new>")
        config.append(anonymous(line))
    files = {path: tuple(map(anonymous, entry)) for path, entry in described_files(directory).items()}
    root = inside(fleet, name, described_root)
    for own in ("etc/hostname", "hook-record"):
        if own in root:
            root[own] = tuple(map(anonymous, root[own]))
            if own == "hook-record" or root[own][CONTENT].strip() == b"<name>":
                root[own] = (*root[own][:4], 0, *root[own][CONTENT:])
    gained = {other: list(map(anonymous, lines[len(before[other]) :])) for other, lines in bookkeeping(source_fleet).items() if other not in (THEIRS, OURS)}
    # A new file in the root's top directory changes its time.
    if "hook-record" in root:
        root["."] = (*root["."][:4], 0, *root["."][CONTENT:])
    return Twin(files, config, root, gained, shares_blocks(fleet, name))


@dataclass(frozen=True)
class Way:
    """One way to clone, told to both."""

    name: str
    filesystem: str
    store: str
    lxc_copy: tuple
    ours: dict
    of_overlay: bool = False
    elsewhere: bool = False


WAYS = {
    way.name: way
    for way in (
        Way("dir-copy", "ext", "dir", ("-B", "dir"), {"method": "copy"}),
        Way("dir-copy-reflink", "xfs", "dir", ("-B", "dir"), {"method": "copy"}),
        Way("dir-snapshot", "ext", "dir", ("-s", "-B", "overlay"), {"method": "snapshot"}),
        Way("dir-snapshot-elsewhere", "ext", "dir", ("-s", "-B", "overlay"), {"method": "snapshot"}, elsewhere=True),
        Way("overlay-snapshot", "ext", "dir", ("-s", "-B", "overlay"), {"method": "snapshot"}, of_overlay=True),
        Way("overlay-copy", "ext", "dir", ("-B", "dir"), {"method": "copy"}, of_overlay=True),
        Way("btrfs-snapshot", "btrfs", "btrfs", ("-s", "-B", "btrfs"), {"method": "snapshot"}),
        Way("btrfs-copy", "btrfs", "btrfs", ("-B", "btrfs"), {"method": "copy"}),
        Way("loop-copy", "ext", "loop", ("-B", "loop"), {"method": "copy"}),
    )
}


def lxc_copy(fleet, source, *arguments, to=None, name=THEIRS):
    return subprocess.run(
        ["lxc-copy", "-P", fleet.lxcpath, "-n", source, "-N", name, *(["-p", to] if to else []), *arguments], capture_output=True, text=True, check=False
    )


def twins(fleet, source, way, elsewhere):
    """Clone by lxc-copy and by ours; describe both; remove both."""
    target = Fleet(elsewhere) if way.elsewhere else fleet
    base_config = open(fleet.path(source, "config")).read()
    macs = {mac.lower() for mac in re.findall(r"(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}", base_config)}
    found = []
    try:
        for name in (THEIRS, OURS):
            before = bookkeeping(fleet)
            if name == THEIRS:
                done = lxc_copy(fleet, source, *way.lxc_copy, to=target.lxcpath)
                assert done.returncode == 0, done.stderr
            else:
                target.clone(source=source, source_lxcpath=fleet.lxcpath, name=name, **way.ours)
            found.append(twin(fleet, target, name, before, macs))
    finally:
        for name in (THEIRS, OURS):
            if os.path.exists(target.path(name)):
                subprocess.run(["lxc-destroy", "-P", target.lxcpath, "-n", name], capture_output=True, check=False)
    return found


def compare(theirs, ours, differs):
    """Take out the differences that are allowed, each of which must be there; then there must be none."""
    for identifier in sorted(differs):
        before = copy.deepcopy((theirs, ours))
        DIFFERENCES[identifier](theirs, ours)
        assert before != (theirs, ours), f"the difference {identifier} is documented for this case, and is not there"
    unlike = {}
    for part in ("files", "root", "bookkeeping"):
        one, other = getattr(theirs, part), getattr(ours, part)
        unlike.update({(part, key): (one.get(key), other.get(key)) for key in one.keys() | other.keys() if one.get(key) != other.get(key)})
    lines = [f"{part} {key}: lxc-copy {one}, fleet.lxc {other}" for (part, key), (one, other) in sorted(unlike.items())]
    lines += difflib.unified_diff(theirs.config, ours.config, "config of lxc-copy", "config of fleet.lxc", lineterm="", n=0)
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)
    assert theirs == ours


# Bases


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A directory beside all lxcpaths, and an lxcpath in it."""
    directory = Path("/var/tmp") / f"fleet-differential-{uuid.uuid4().hex[:8]}"
    (directory / "lxc").mkdir(parents=True)
    yield directory
    Fleet(directory / "lxc").empty()
    sh(["rm", "-rf", str(directory)])


@pytest.fixture(scope="module")
def base_on(filesystems, elsewhere):
    """Makes a base once for each kind of storage: (its fleet, its name)."""
    made = {}

    def make(kind, way):
        key = kind, way.filesystem, way.store
        if key not in made:
            lxcpath = os.path.join(filesystems[way.filesystem], f"fleet-{uuid.uuid4().hex[:8]}")
            os.mkdir(lxcpath, 0o755)
            made[key] = Fleet(lxcpath)
            BASES[kind](made[key], way.store, elsewhere)
        fleet = made[key]
        if not way.of_overlay:
            return fleet, "golden"
        if not os.path.exists(fleet.path("middle")):
            fleet.clone(source="golden", name="middle", method="snapshot")
            inside(fleet, "middle", changed, writable=True)
        return fleet, "middle"

    yield make
    for fleet in made.values():
        fleet.empty()
        os.rmdir(fleet.lxcpath)


def changed(path):
    """What an overlay's delta can hold: something new, something changed, something gone, something replaced."""
    with open(f"{path}/etc/new", "w") as file:
        file.write("new\n")
    os.setxattr(f"{path}/etc/new", "user.mark", b"value")
    os.chmod(f"{path}/etc/passwd", 0o600)
    os.unlink(f"{path}/etc/group")
    sh(["rm", "-rf", f"{path}/srv"])
    os.mkdir(f"{path}/srv", 0o711)


def busybox(fleet, store, elsewhere):
    options = {"backing_store": store}
    if store == "loop":
        options["storage"] = {"size": "96M", "fstype": None}
    fleet.golden(state="present", **options)
    inside(fleet, "golden", furnish, writable=True)


BASES = {"busybox": busybox}


@pytest.mark.parametrize("way", WAYS)
def test_busybox(base_on, elsewhere, way):
    fleet, source = base_on("busybox", WAYS[way])
    theirs, ours = twins(fleet, source, WAYS[way], elsewhere / "lxc")
    compare(theirs, ours, set())
