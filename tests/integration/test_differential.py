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
import itertools
import os
import re
import stat
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest
from ansible_collections.fleet.lxc.plugins.module_utils import identity
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from conftest import Fleet, sh
from test_conformance import furnish, inside

THEIRS, OURS = "their-clone", "our-clone"
# lxc-copy knows no more of identity than the hostname and new random MAC addresses.
LIKE_LXC_COPY = {**dict.fromkeys(identity.ALL.scrubbed, False), "hwaddr": "random"}
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
def _record(theirs, ours):
    kind, mode, uid, gid, _content, xattrs = ours.files.pop("fleet.lxc.json")
    assert (kind, mode, uid, gid, xattrs) == ("file", 0o640, 0, 0, {})


@difference("hostname-newline")
def _hostname_newline(theirs, ours):
    for twin in (theirs, ours):
        for tree in (twin.root, twin.files):
            for path in [path for path in tree if path.endswith("etc/hostname")]:
                entry = tree[path]
                tree[path] = tuple(value.rstrip(b"\n") if isinstance(value, bytes) else value for value in entry)


@difference("blank-lines")
def _blank_lines(theirs, ours):
    for twin in (theirs, ours):
        twin.config[:] = [line for line in twin.config if line.strip()]


@difference("acl")
def _acl(theirs, ours):
    kept = [path for path, entry in ours.root.items() if any(name.startswith("system.posix_acl") for name in entry[-1])]
    assert kept and not any(name.startswith("system.posix_acl") for path in kept for name in theirs.root[path][-1])
    for path in kept:
        entry = ours.root[path]
        ours.root[path] = (*entry[:-1], {name: value for name, value in entry[-1].items() if not name.startswith("system.posix_acl")})


@difference("overlay-root")
def _overlay_root(theirs, ours):
    for tree, path in (("root", "."), ("files", "overlay/delta")):
        getattr(theirs, tree)[path] = getattr(ours, tree)[path]


@difference("overlay-work")
def _overlay_work(theirs, ours):
    assert theirs.files.pop("overlay/work/work")[0] == "directory"


@difference("loop-size")
def _loop_size(theirs, ours):
    sizes = [twin.files["rootdev"][4] for twin in (theirs, ours)]
    assert sizes[0] == (1 << 30) + 1 != sizes[1]
    theirs.files["rootdev"] = ours.files["rootdev"]


@difference("reflink")
def _reflink(theirs, ours):
    assert ours.shares_blocks
    theirs.shares_blocks = True


@difference("hook-mount")
def _hook_mount(theirs, ours):
    for twin in (theirs, ours):
        for tree in (twin.root, twin.files):
            for path in [path for path in tree if path.endswith("hook-record")]:
                tree[path] = tuple(re.sub(rb"LXC_ROOTFS_MOUNT=.*", b"", value) if isinstance(value, bytes) else value for value in tree[path])


@difference("guard")
def _guard(theirs, ours):
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
            group = groups.setdefault((info.st_dev, info.st_ino), []) if info.st_nlink > 1 and kind != "directory" else []
            group.append(relative)
            found[relative] = (kind, stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, time, content, device, group, xattrs)
    return {path: (*entry[:-2], min(entry[-2]), entry[-1]) for path, entry in found.items()}


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
    """Describe a clone; a MAC address that is new is written <new>. LXC 6 takes new ones from a range of its own."""
    directory = fleet.path(name)

    def anonymous(value):
        if isinstance(value, bytes):
            return value.replace(directory.encode(), b"<directory>").replace(name.encode(), b"<name>")
        return value.replace(directory, "<directory>").replace(name, "<name>") if isinstance(value, str) else value

    config = []
    for line in open(fleet.path(name, "config")).read().splitlines():
        match = re.search(r"hwaddr\s*=\s*([\"']?)(\S{17})\1\s*$", line)
        if match and re.fullmatch(r"(00:16:3e|10:66:6a)(:[0-9a-f]{2}){3}", match.group(2)) and match.group(2).lower() not in macs:
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
                target.clone(source=source, source_lxcpath=fleet.lxcpath, name=name, identity=LIKE_LXC_COPY, **way.ours)
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
def elsewhere():
    """A directory beside all lxcpaths, with an lxcpath in it."""
    directory = Path(f"/var/tmp/fleet-differential-{uuid.uuid4().hex[:8]}")
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
            kind(made[key], way.store, elsewhere)
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


def aged(path, names):
    """Times of long ago: rsync takes a directory's time for right when it differs by less than a second."""
    for name in names:
        os.utime(os.path.join(path, name), ns=(10**18 + 5, 10**18 + 123456789), follow_symlinks=False)


def changed(path):
    """What an overlay's delta can hold: something new, something changed, something gone, something replaced."""
    with open(f"{path}/etc/new", "w") as file:
        file.write("new\n")
    os.setxattr(f"{path}/etc/new", "user.mark", b"value")
    os.chmod(f"{path}/etc/passwd", 0o600)
    os.unlink(f"{path}/etc/shells")
    sh(["rm", "-rf", f"{path}/srv"])
    os.mkdir(f"{path}/srv", 0o711)
    aged(path, ["etc/new", "etc", "srv", "."])


def storage_of(store, size="96M"):
    return {"backing_store": store, **({"storage": {"size": size, "fstype": None}} if store == "loop" else {})}


def busybox(fleet, store, elsewhere):
    fleet.golden(state="present", **storage_of(store))

    def more(path):
        furnish(path)
        for name, text in (("hostname", "golden\n"), ("shells", "/bin/sh\n")):
            with open(f"{path}/etc/{name}", "w") as file:
                file.write(text)
        os.chmod(path, 0o711)
        os.setxattr(path, "user.mark", b"the root directory's")
        aged(path, [os.path.join(folder, name) for folder, folders, files in os.walk(path) for name in folders + files + ["."]])

    inside(fleet, "golden", more, writable=True)


def debian(fleet, store, elsewhere):
    """Debian 12, made once and kept in the cache directory."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fleet-lxc"
    archive = cache / "debian-bookworm.tar"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = cache / f"debian-bookworm.{uuid.uuid4().hex[:8]}.part.tar"
        mirrors = sh(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Codename: bookworm"]).split()
        sh(["timeout", "240", "mmdebstrap", "--quiet", "--variant=minbase", "bookworm", str(part), *sorted(set(mirrors))[:1]])
        os.rename(part, archive)
    fleet.base(name="golden", rootfs_archive=str(archive), **storage_of(store, "600M"))


RECORD = """#!/bin/sh
# Writes into the clone what it was called with.
{ echo "$0"; env | grep ^LXC_ | sort; for argument; do echo "argument $argument"; done; } >"$LXC_ROOTFS_MOUNT/hook-record"
"""
FURNISHED = """# A base as it grows under many hands
lxc.include = {elsewhere}/shared.conf
  # an indented comment
lxc.uts.name = "golden"
lxc.rootfs.path={rootfs}
lxc.net.0.type = veth
lxc.net.0.hwaddr = 00:16:3e:12:34:5a
lxc.net.1.type=veth
lxc.net.1.hwaddr=00:16:3E:AB:CD:EF
lxc.net.1.veth.pair = golden-1
lxc.net.1.ipv4.address = 192.0.2.7/24
lxc.net.2.type = veth
lxc.net.2.hwaddr   =\t00:16:3e:xx:XX:xx  \nlxc.net.3.type = empty
lxc.net.3.hwaddr =
lxc.cap.drop = sys_time
lxc.cap.drop =
lxc.cap.drop = 'sys_module mac_admin'
lxc.hook.version = {version}
lxc.hook.clone = {base}/record
lxc.hook.pre-start={base}/before.sh\t
lxc.hook.post-stop = {elsewhere}/after.sh with {base}/arguments
lxc.mount.fstab = /dev/null
lxc.mount.fstab = {base}/fstab
lxc.mount.entry = {base}/shared mnt none bind 0 0
lxc.mount.entry = overlay srv overlay lowerdir={elsewhere},upperdir={base}/upper,workdir={base}/work 0 0
lxc.mount.entry =   proc proc proc nodev 0 0
lxc.start.auto = 1
lxc.environment = TOKEN = "of golden"
lxc.seccomp.profile =
not = for LXC
# the last line has no newline"""


def written(fleet, config, elsewhere, rootfs="dir:{base}/rootfs", files=("record", "before.sh"), **values):
    """Make a container by hand: a small root filesystem, a configuration, and files beside it."""
    base = fleet.path("golden")
    os.makedirs(f"{base}/rootfs/etc")
    for name, text in (("hostname", "golden\n"), ("passwd", "root:x:0:0::/:/bin/sh\n"), ("shells", "/bin/sh\n")):
        Path(base, "rootfs/etc", name).write_text(text)
    rootfs = rootfs.format(base=base)
    Path(base, "config").write_text(config.format(base=base, rootfs=rootfs, elsewhere=elsewhere, **values))
    Path(base, "fstab").write_text("proc proc proc defaults 0 0\n")
    os.chmod(f"{base}/fstab", 0o604)
    Path(base, "notes.txt").write_text("not the clones' business\n")
    for name in files:
        path = Path(base, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RECORD)
        path.chmod(0o750)
    aged(f"{base}/rootfs", ["etc/passwd", "etc/shells", "etc", "."])


def _furnished(fleet, store, elsewhere, version):
    (elsewhere / "shared.conf").write_text("lxc.net.4.type = veth\nlxc.net.4.hwaddr = 00:16:3e:11:22:33\nlxc.start.order = 7\n")
    if store == "dir":
        return written(fleet, FURNISHED, elsewhere, version=version)
    # On another store the storage is made first, and the rest put around it.
    fleet.golden(state="present", **storage_of(store))
    rootfs = re.search(r"^lxc.rootfs.path = (.*)$", Path(fleet.path("golden", "config")).read_text(), re.M).group(1)

    def bare(path):
        sh(["find", path, "-mindepth", "1", "-delete"])
        os.mkdir(f"{path}/etc")
        for name in ("hostname", "passwd", "shells"):
            Path(path, "etc", name).write_text("golden\n")
        aged(path, ["etc/passwd", "etc/shells", "etc", "."])

    inside(fleet, "golden", bare, writable=True)
    os.rename(fleet.path("golden"), fleet.path("made"))
    written(fleet, FURNISHED, elsewhere, rootfs=rootfs, version=version)
    sh(["rm", "-rf", fleet.path("golden", "rootfs")])
    for name in ("rootfs", "rootdev"):
        if os.path.exists(fleet.path("made", name)):
            os.rename(fleet.path("made", name), fleet.path("golden", name))
    sh(["rm", "-rf", fleet.path("made")])


def furnished_0(fleet, store, elsewhere):
    _furnished(fleet, store, elsewhere, 0)


def furnished_1(fleet, store, elsewhere):
    _furnished(fleet, store, elsewhere, 1)


# The cases

ALWAYS = {"record", "hostname-newline"}
OVER_DIR = {"dir-snapshot", "dir-snapshot-elsewhere"}
OVERLAY = OVER_DIR | {"overlay-snapshot"}


def hold_against_each_other(base_on, elsewhere, kind, way, differs):
    fleet, source = base_on(kind, WAYS[way])
    theirs, ours = twins(fleet, source, WAYS[way], elsewhere / "lxc")
    compare(theirs, copy.deepcopy(ours), ALWAYS | differs | ({"loop-size"} if way == "loop-copy" else set()))
    return ours


@pytest.mark.parametrize("way", WAYS)
def test_busybox(base_on, elsewhere, way):
    differs = {"dir-copy": {"acl"}, "loop-copy": {"acl"}, "dir-copy-reflink": {"reflink"}}.get(way, set())
    differs = differs | ({"overlay-root"} if way in OVER_DIR else set()) | ({"overlay-work"} if way in OVERLAY else set())
    ours = hold_against_each_other(base_on, elsewhere, busybox, way, {"blank-lines"} | differs)
    assert len(ours.root) > 100


@pytest.mark.parametrize("way", ["dir-copy", "dir-snapshot", "overlay-snapshot", "btrfs-snapshot", "loop-copy"])
def test_debian(base_on, elsewhere, way):
    overlaid = {"overlay-work"} if way in OVERLAY else set()
    ours = hold_against_each_other(base_on, elsewhere, debian, way, {"blank-lines"} | overlaid | ({"overlay-root"} if way in OVER_DIR else set()))
    assert len(ours.root) > 5000


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [furnished_0, furnished_1])
def test_many_nics_includes_hooks_and_mounts(base_on, elsewhere, kind, way):
    mounted = WAYS[way].store != "dir" or way in OVERLAY
    ours = hold_against_each_other(base_on, elsewhere, kind, way, {"hook-mount"} if mounted else set())
    assert [line for line in ours.config if "hwaddr" in line] == [
        "lxc.net.0.hwaddr = <new>", "lxc.net.1.hwaddr=<new>", "lxc.net.2.hwaddr   =\t<new>  ", "lxc.net.3.hwaddr ="
    ]  # fmt: skip
    assert {"fstab", "record", "before.sh"} < ours.files.keys() and "notes.txt" not in ours.files
    assert ours.root["hook-record"][CONTENT].startswith(b"<directory>/record\n")


# What one line of a configuration, or one file, does

PLAIN = "lxc.uts.name = golden\nlxc.rootfs.path = {rootfs}\n"


@pytest.fixture
def by_hand(fleet, elsewhere):
    """Clones a base that has these lines, or whose root filesystem ``prepare`` changed, by both; returns our twin."""

    def clone(lines="", differs=(), way="dir-copy", prepare=None, always=frozenset(ALWAYS), **options):
        written(fleet, PLAIN + lines, elsewhere, **options)
        if prepare:
            prepare(Path(fleet.path("golden", "rootfs")))
            aged(fleet.path("golden", "rootfs"), ["etc", "."])
        theirs, ours = twins(fleet, "golden", WAYS[way], elsewhere / "lxc")
        compare(theirs, copy.deepcopy(ours), set(always) | set(differs))
        return ours

    return clone


@pytest.fixture
def only_ours(fleet, elsewhere):
    """Clones a base by ours that lxc-copy cannot clone; returns our clone's directory."""

    def clone(lines, message, **options):
        written(fleet, options.pop("config", PLAIN) + lines, elsewhere, **options)
        done = lxc_copy(fleet, "golden", "-B", "dir", "-l", "ERROR", "-o", "/dev/stderr")
        assert done.returncode and re.search(message, done.stderr), done.stderr
        sh(["rm", "-rf", fleet.path(THEIRS)])
        fleet.clone(source="golden", name=OURS, method="copy")
        return Path(fleet.path(OURS))

    return clone


def shown_by_itself(identifier):
    """Marks the test of a difference that no pair of twins can show."""
    DIFFERENCES[identifier] = None
    return lambda test: test


def test_blank_leading_characters(by_hand):
    ours = by_hand("  lxc.uts.name = golden\n lxc.rootfs.path = {rootfs}\n\tlxc.net.0.type = empty\n\tlxc.net.0.hwaddr = 00:16:3e:12:34:56\n", {"indented"})
    assert ours.config == ["\tlxc.net.0.type = empty", "\tlxc.net.0.hwaddr = <new>", "lxc.rootfs.path = dir:<directory>/rootfs", "lxc.uts.name = <name>"]


@difference("indented")
def _indented(theirs, ours):
    theirs.config[:] = [line for line in theirs.config if not re.match(r"\s+lxc\.(uts|rootfs)", line)]
    for twin in (theirs, ours):
        twin.config[:] = [re.sub(r"^(\s+lxc.net.0.hwaddr) = .*", r"\1", line) for line in twin.config]


def test_quotes(by_hand):
    ours = by_hand("lxc.net.0.type = empty\nlxc.net.0.hwaddr = '00:16:3e:12:34:56'\nlxc.hook.stop = \"{base}/before.sh\"\n", {"quoted"})
    assert "lxc.net.0.hwaddr = '<new>'" in ours.config and 'lxc.hook.stop = "<directory>/before.sh"' in ours.config


@difference("quoted")
def _quoted(theirs, ours):
    assert "lxc.net.0.hwaddr = '00:16:3e:12:34:56'" in theirs.config and any(line.endswith('golden/before.sh"') for line in theirs.config)
    for twin in (theirs, ours):
        twin.config[:] = [line for line in twin.config if not line.startswith(("lxc.net.0.hwaddr", "lxc.hook"))]


def test_a_path_that_only_begins_like_the_bases(by_hand):
    ours = by_hand(
        "lxc.hook.stop = {base}-common/hook\nlxc.mount.entry = overlay srv overlay lowerdir=/srv,upperdir={base}2/upper,workdir={base}2/work 0 0\n",
        {"name-prefix"},
    )
    assert len([line for line in ours.config if "golden-common/" in line or "golden2/upper" in line]) == 2


@difference("name-prefix")
def _name_prefix(theirs, ours):
    ours.config[:] = [re.sub(r"/[^ =,]*/golden(?=-common|2/)", "<directory>", line) for line in ours.config]


def test_a_hook_in_a_directory_of_the_base(by_hand):
    ours = by_hand(
        "lxc.hook.stop = {base}/hooks/stop.sh\nlxc.hook.mount = {base}/rootfs/etc/hook.sh\n", {"hook-directory"}, files=("hooks/stop.sh", "rootfs/etc/hook.sh")
    )
    assert {"hooks", "hooks/stop.sh"} < ours.files.keys() and "etc/hook.sh" in ours.root


@difference("hook-directory")
def _hook_directory(theirs, ours):
    assert theirs.files.pop("stop.sh")[:4] == ours.files.pop("hooks/stop.sh")[:4]
    assert theirs.files.pop("hook.sh") and ours.files.pop("hooks")


def test_a_hook_without_a_path(by_hand):
    ours = by_hand("lxc.hook.pre-start = true\nlxc.hook.stop = {base}/before.sh\n", {"hook-relative"})
    assert "lxc.hook.stop = <directory>/before.sh" in ours.config


@difference("hook-relative")
def _hook_relative(theirs, ours):
    assert "before.sh" not in theirs.files and ours.files.pop("before.sh")
    for twin in (theirs, ours):
        twin.config[:] = [line for line in twin.config if not line.startswith("lxc.hook.stop")]


def test_hooks_and_an_fstab_in_an_included_file(by_hand, fleet, elsewhere):
    base = fleet.path("golden")
    (elsewhere / "hooks.d").mkdir(exist_ok=True)
    (elsewhere / "hooks.d" / "ignored").write_text("lxc.environment = A=1\n")
    lines = f"lxc.hook.clone = {base}/record\nlxc.hook.stop = {base}/before.sh\nlxc.mount.fstab = {base}/fstab\n"
    (elsewhere / "hooks.d" / "one.conf").write_text(lines + "lxc.hook.version = 1\n")
    ours = by_hand("lxc.include = {elsewhere}/hooks.d\n", {"hook-included"})
    assert ours.config[-1] == "lxc.mount.fstab = <directory>/fstab" and "fstab" in ours.files
    assert b"LXC_HOOK_TYPE=clone" in ours.root["hook-record"][CONTENT]


@difference("hook-included")
def _hook_included(theirs, ours):
    assert theirs.files.pop("before.sh") and theirs.files.pop("record")
    for twin, path in ((theirs, b"<directory>/"), (ours, rb"/.*/golden/")):
        entry = twin.root["hook-record"]
        text, count = re.subn(b"^" + path + b"record\n", b"record\n", entry[CONTENT])
        assert count == 1
        twin.root["hook-record"] = (*entry[:CONTENT], text, *entry[CONTENT + 1 :])


def test_lists_that_are_cleared_lines_that_are_not_ours_and_a_path_without_type(by_hand):
    lines = (
        "lxc.hook.clone = {base}/record\nlxc.hook.clone =\nlxc.hook.clone = {base}/record\nlxc.hook =\nlxc.include =\nodd\nlxc.rootfs.path = {base}/rootfs\n"
    )
    ours = by_hand(lines)
    assert (
        "hook-record" not in ours.root
        and "lxc.hook =" in ours.config
        and ours.config[-2:] == ["lxc.rootfs.path = dir:<directory>/rootfs", "lxc.uts.name = <name>"]
    )


def test_a_guest_without_hostname(by_hand):
    by_hand(prepare=lambda root: os.unlink(root / "etc/hostname"), always={"record"})


def test_a_hostname_that_is_a_hard_link(by_hand):
    ours = by_hand(prepare=lambda root: os.link(root / "etc/hostname", root / "etc/nodename"), differs={"hostname-link"})
    assert ours.root["etc/nodename"][CONTENT] == b"golden\n"


@difference("hostname-link")
def _hostname_link(theirs, ours):
    assert theirs.root["etc/nodename"][CONTENT] == theirs.root["etc/hostname"][CONTENT].replace(b"<name>", THEIRS.encode())
    del theirs.root["etc/nodename"], ours.root["etc/nodename"]
    for twin in (theirs, ours):
        twin.root["etc/hostname"] = (*twin.root["etc/hostname"][:-2], "", {})
        twin.root["etc"] = (*twin.root["etc"][:4], 0, *twin.root["etc"][CONTENT:])


@shown_by_itself("hostname-symlink")
def test_a_hostname_that_leads_out_of_the_guest(fleet, elsewhere):
    victim = elsewhere / "victim"
    victim.write_text("the host's")
    written(fleet, PLAIN, elsewhere)
    hostname = Path(fleet.path("golden", "rootfs/etc/hostname"))
    hostname.unlink()
    hostname.symlink_to(victim)
    assert fleet.clone(source="golden", name=OURS, method="copy")["summary"]["created"] == 1
    assert victim.read_text() == "the host's" and os.readlink(fleet.path(OURS, "rootfs/etc/hostname")) == str(victim)
    assert lxc_copy(fleet, "golden", "-B", "dir").returncode == 0
    assert victim.read_text() == THEIRS


IDMAP = "lxc.idmap = u 0 100000 65536\nlxc.idmap = g 0 100000 65536\n"


@pytest.mark.parametrize("way", ["dir-copy", "dir-snapshot", "overlay-snapshot"])
@pytest.mark.parametrize("included", [False, True])
def test_an_unprivileged_base(fleet, elsewhere, way, included):
    (elsewhere / "idmap.conf").write_text(IDMAP)
    written(fleet, PLAIN + ("lxc.include = {elsewhere}/idmap.conf\n" if included else IDMAP), elsewhere)
    sh(["chown", "-R", "100000:100000", fleet.path("golden", "rootfs")])
    sh(["chown", "100000:0", fleet.path("golden")])
    source = "golden"
    if WAYS[way].of_overlay:
        source = "middle"
        fleet.clone(source="golden", name=source, method="snapshot")
        inside(fleet, source, lambda path: aged(path, ["etc", "."]), writable=True)
    theirs, ours = twins(fleet, source, WAYS[way], elsewhere / "lxc")
    compare(theirs, copy.deepcopy(ours), ALWAYS | ({"overlay-work"} if way in OVERLAY else set()) | ({"overlay-root"} if way in OVER_DIR else set()))


def test_another_umask(by_hand):
    before = os.umask(0o027)
    try:
        ours = by_hand(way="dir-snapshot", differs={"overlay-root", "overlay-work"}, prepare=lambda root: root.chmod(0o711))
    finally:
        os.umask(before)
    assert ours.files["."][1] == 0o770


@shown_by_itself("hook-clonehostname")
def test_lxcs_own_hook_that_replaces_names(fleet, elsewhere):
    hosts = "127.0.1.1 golden-two golden golden.example.org\n"
    victim = elsewhere / "hosts"
    written(fleet, PLAIN + "lxc.include = /usr/share/lxc/config/common.conf\n", elsewhere)
    own = Path(fleet.path("golden", "rootfs/etc/hosts"))
    own.write_text(hosts)
    found = {}
    for case in ("file", "symlink"):
        if case == "symlink":
            victim.write_text(hosts)
            own.unlink()
            own.symlink_to(victim)
        assert lxc_copy(fleet, "golden", "-B", "dir").returncode == 0
        fleet.clone(source="golden", name=OURS, method="copy")
        for name in (THEIRS, OURS):
            path = Path(fleet.path(name, "rootfs/etc/hosts"))
            found[case, name] = os.readlink(path) if path.is_symlink() else path.read_text()
            sh(["lxc-destroy", "-P", fleet.lxcpath, "-n", name])
    assert found["file", THEIRS] == f"127.0.1.1 {THEIRS}-two golden golden.example.org\n"
    assert found["file", OURS] == f"127.0.1.1 golden-two {OURS} {OURS}.example.org\n"
    # The host's file was read into the guest.
    assert found["symlink", THEIRS] == found["file", THEIRS] and found["symlink", OURS] == str(victim)
    assert victim.read_text() == hosts


@shown_by_itself("hook-arguments")
def test_a_hook_of_the_base_with_arguments(only_ours):
    clone = only_ours("lxc.hook.stop = {base}/before.sh {base}/notes.txt\n", "copying hooks")
    assert f"lxc.hook.stop = {clone}/before.sh {clone.parent}/golden/notes.txt" in (clone / "config").read_text() and (clone / "before.sh").exists()


@shown_by_itself("hook-twice")
def test_one_file_that_is_two_hooks(only_ours):
    clone = only_ours("lxc.hook.pre-start = {base}/before.sh\nlxc.hook.stop = {base}/before.sh\n", "copying hooks")
    assert (clone / "config").read_text().count(f"{clone}/before.sh") == 2 and (clone / "before.sh").exists()


@shown_by_itself("rootfs-name")
def test_a_root_filesystem_whose_path_has_not_the_bases_name(only_ours, elsewhere):
    sh(["mkdir", "-p", str(elsewhere / "system" / "etc")])
    clone = only_ours("", "does not include container name", rootfs=f"dir:{elsewhere}/system")
    assert (clone / "rootfs" / "etc").is_dir()


@shown_by_itself("mac-collision")
def test_a_new_mac_is_one_that_no_container_has(fleet, elsewhere, monkeypatch):
    written(fleet, PLAIN + "lxc.net.0.type = empty\nlxc.net.0.hwaddr = 00:16:3e:01:01:01\n", elsewhere)
    octets = itertools.cycle([b"\1\1\1", b"\2\2\2"])
    monkeypatch.setattr(identity.random, "randbytes", lambda _count: next(octets))
    fleet.clone(source="golden", name=OURS, method="copy", identity={"hwaddr": "random"})
    assert "hwaddr = 00:16:3e:02:02:02" in Path(fleet.path(OURS, "config")).read_text()


def test_a_sealed_base(fleet, elsewhere):
    written(fleet, PLAIN, elsewhere)
    fleet.base(name="golden", adopt=True, state="sealed")
    theirs, ours = twins(fleet, "golden", WAYS["dir-copy"], elsewhere / "lxc")
    assert "fleet.lxc.guard" in theirs.files and "fleet.lxc.json" not in theirs.files
    compare(theirs, ours, ALWAYS | {"guard"})


LEGACY = """lxc.utsname = golden
lxc.rootfs = {base}/rootfs
lxc.network.type = veth
lxc.network.link = br0
lxc.network.hwaddr = 00:16:3e:12:34:56
"""


@pytest.mark.parametrize(
    ("config", "theirs", "ours"),
    [
        (LEGACY, "Failed to load config", "lxc.utsname, lxc.rootfs, lxc.network.type.*lxc-update-config"),
        (PLAIN + "lxc.network.type = veth\n", "Failed to load config", "lxc.network.type.*lxc-update-config"),
        (PLAIN + "lxc.bogus = 1\n", "Failed to load config", "not one that LXC loads.*lxc.bogus"),
        (PLAIN + "lxc.include = {base}/nowhere\n", "Failed to load config", "includes .*nowhere, which cannot be read"),
        (PLAIN + "lxc.mount.fstab = {base}/nowhere\n", "copying fstab", "nowhere"),
        (PLAIN + "lxc.mount.fstab = nowhere\n", "copying fstab", "no absolute path"),
        (PLAIN + "lxc.hook.stop = {base}/nowhere\n", "copying hooks", "nowhere"),
        ("lxc.uts.name = golden\n", "No rootfs specified", "no usable root filesystem"),
    ],
)
def test_what_both_refuse(fleet, elsewhere, config, theirs, ours):
    written(fleet, config, elsewhere)
    done = lxc_copy(fleet, "golden", "-B", "dir", "-l", "ERROR", "-o", "/dev/stderr")
    assert done.returncode and re.search(theirs, done.stderr), done.stderr
    sh(["rm", "-rf", fleet.path(THEIRS)])
    with pytest.raises(FleetError, match=ours):
        fleet.clone(source="golden", name=OURS, method="copy")
    assert os.listdir(fleet.lxcpath) == ["golden"]


def test_the_documented_differences_are_these():
    rows = re.findall(r"^\| `([a-z-]+)` \|", PAGE.read_text(), re.M)
    assert sorted(rows) == sorted(DIFFERENCES) and len(rows) == len(set(rows))
