# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Throwaway lxcpaths on the filesystems that every machine can make, and the modules called as Ansible calls them."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import uuid

import network
import pytest
from checkout import ROOT

if importlib.util.find_spec("pytest_ansible"):
    from ansible.plugins.loader import init_plugin_loader

    # Ansible's own way to find collections, for pytest-ansible runs Ansible in this very process. It has to be set up before the first is imported.
    init_plugin_loader([str(ROOT / ".collections")])

from ansible_collections.fleet.lxc.plugins.module_utils import mounts
from ansible_collections.fleet.lxc.plugins.module_utils.bases import BaseCall
from ansible_collections.fleet.lxc.plugins.module_utils.command import Runner
from ansible_collections.fleet.lxc.plugins.module_utils.config import Config
from ansible_collections.fleet.lxc.plugins.module_utils.container import INTENT, PROVENANCE, Rootfs
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.fleet import CloneCall
from ansible_collections.fleet.lxc.plugins.module_utils.storage.registry import Registry
from ansible_collections.fleet.lxc.plugins.module_utils.wanted import BASE_ARGUMENTS, CLONE_ARGUMENTS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")


def pytest_collection_modifyitems(items):
    """Tests that need LVM or ZFS bear that as a mark: by the name of their file, of themselves, or of their store."""
    for item in items:
        for store in ("lvm", "zfs"):
            words = item.path.stem.split("_") + item.name.partition("[")[0].split("_")
            if store in words or re.search(rf"\[(\w+-)*{store}\b", item.name):
                item.add_marker(store)


def sh(command, check=True):
    done = subprocess.run(command, shell=isinstance(command, str), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{command}: {done.stdout}{done.stderr}")
    return done.stdout


# What LXC's template gives a busybox container, without a network.
NETWORKLESS = {"lxc.net.0.type": "empty", "lxc.net.0.link": None, "lxc.net.0.flags": None}
# What busybox's template would have written.
BUSYBOX = {**NETWORKLESS, "lxc.signal.halt": "SIGUSR1", "lxc.signal.reboot": "SIGTERM"}


def lxc(command, fleet, name, *arguments):
    """One of LXC's own commands on a container; what became of it."""
    return subprocess.run([command, "-P", fleet.lxcpath, "-n", name, *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def starts(fleet, name):
    """Start a clone and stop it again."""
    fleet.clone(source="golden", name=name, state="started")
    fleet.clone(source="golden", name=name, state="stopped", force_stop=True, stop_timeout=5)
    return True


class Fleet:
    """An lxcpath with the two modules over it. Containers have no network, so they need no bridge."""

    def __init__(self, lxcpath):
        self.lxcpath = str(lxcpath)

    def path(self, *parts):
        return os.path.join(self.lxcpath, *parts)

    def rootfs(self, name):
        return Rootfs.parse(Config.read(self.path(name, "config")).get("lxc.rootfs.path"))

    def base(self, check_mode=False, **options):
        return BaseCall(self.options(BASE_ARGUMENTS, options)).run(check_mode)

    def clone(self, check_mode=False, **options):
        result = self.call(check_mode, **options)
        for failure in result["failures"].values():
            raise failure
        return result

    def call(self, check_mode=False, **options):
        """As ``clone``, with what failed in the result."""
        names = options.get("name")
        options["name"] = [names] if isinstance(names, str) else names
        return CloneCall(self.options(CLONE_ARGUMENTS, options)).run(check_mode)

    def options(self, spec, given):
        unknown = set(given) - set(spec)
        assert not unknown, unknown
        options = {key: given.get(key, argument.get("default")) for key, argument in spec.items()}
        for key, value in options.items():
            if spec[key].get("type") == "list" and isinstance(value, str):
                options[key] = [value]
        if isinstance(options.get("autostart"), dict):
            options["autostart"] = {"enabled": None, "order": None, "delay": None, "groups": None, **options["autostart"]}
        if options.get("storage"):
            options["storage"] = {**dict.fromkeys(spec["storage"]["options"]), **options["storage"]}
        options["lxcpath"] = self.lxcpath
        return options

    def golden(self, state="sealed", **options):
        """Busybox, by LXC's template or of an archive."""
        if options.get("rootfs_archive"):
            return self.base(name="golden", state=state, config=BUSYBOX, **options)
        return self.base(name="golden", state=state, config=NETWORKLESS, **{"template": "busybox", **options})

    def names(self):
        return sorted(sh(["lxc-ls", "-P", self.lxcpath, "-1"]).split())

    def up(self):
        return sorted(sh(["lxc-ls", "-P", self.lxcpath, "-1", "--active"]).split())

    def empty(self):
        for name in self.up():
            sh(["lxc-stop", "-P", self.lxcpath, "-n", name, "-k"], check=False)
        names = sorted(os.listdir(self.lxcpath))
        for name in names:
            rootfs = self.path(name, "rootfs")
            if os.path.isdir(rootfs) and os.lstat(rootfs).st_ino == 256:
                sh(["btrfs", "subvolume", "delete", rootfs], check=False)
        sh(["rm", "-rf", "--one-file-system", *map(self.path, names)])


class Filesystems(dict):
    """{name: directory}: what is there, and btrfs and XFS in files, made when they are asked for."""

    def __init__(self, images):
        super().__init__(ext="/var/tmp")
        self.images = images

    def __missing__(self, fstype):
        image, point = self.images / f"{fstype}.img", self.images / fstype
        point.mkdir()
        with open(image, "wb") as file:
            file.truncate(1 << 30)
        sh([f"mkfs.{fstype}", "-q", str(image)])
        sh(["mount", "-o", "loop", str(image), str(point)])
        self[fstype] = str(point)
        return self[fstype]


@pytest.fixture(scope="session")
def filesystems(tmp_path_factory):
    made = Filesystems(tmp_path_factory.mktemp("images"))
    yield made
    for fstype in made.keys() - {"ext"}:
        sh(["umount", made[fstype]])


@pytest.fixture(scope="session")
def busybox_archive(tmp_path_factory):
    """What LXC's template makes, made once: its hundreds of forks are slow on some machines, so the lab brings it along."""
    if os.environ.get("FLEET_LXC_BUSYBOX"):
        return os.environ["FLEET_LXC_BUSYBOX"]
    directory = tmp_path_factory.mktemp("busybox")
    sh(["lxc-create", "-P", str(directory), "-n", "golden", "-t", "busybox", "-B", "dir"])
    archive = directory / "busybox.tar"
    sh(["tar", "-C", str(directory / "golden" / "rootfs"), "--numeric-owner", "-cf", str(archive), "."])
    return str(archive)


def disk(directory, name, size):
    """An empty block device: the next of FLEET_LXC_DISKS (blank, and ours), or a sparse file."""
    given = os.environ.get("FLEET_LXC_DISKS", "").split()
    position = ["lvm", "zfs"].index(name)
    if len(given) > position:
        return given[position], None
    image = directory / f"{name}.img"
    with open(image, "wb") as file:
        file.truncate(size)
    device = sh(["losetup", "--find", "--show", str(image)]).strip()
    return device, device


def need_lvm():
    if not os.path.exists("/dev/mapper/control") or not shutil.which("lvm"):
        pytest.skip("no device-mapper here: ./test storage brings it along")


def need_zfs():
    if not os.path.exists("/dev/zfs") or not shutil.which("zfs"):
        pytest.skip("no ZFS here: ./test storage brings it along")


@pytest.fixture(scope="session")
def volume_group(tmp_path_factory):
    """A VG, with a dash in its name, and a thin pool in it."""
    need_lvm()
    name = f"fleet-test-{uuid.uuid4().hex[:6]}"
    device, loop = disk(tmp_path_factory.mktemp("lvm"), "lvm", 6 << 30)
    sh(["vgcreate", "-q", "-y", name, device])
    sh(["lvcreate", "-q", "-y", "--type", "thin-pool", "-L", "1500M", "-n", "pool", name])
    yield name
    sh(["vgremove", "-q", "-f", "-y", name])
    sh(["pvremove", "-q", "-y", device])
    if loop:
        sh(["losetup", "-d", loop])


@pytest.fixture(scope="session")
def zfs_dataset(tmp_path_factory):
    """A dataset in a pool of its own."""
    need_zfs()
    pool = f"fleet{uuid.uuid4().hex[:6]}"
    device, loop = disk(tmp_path_factory.mktemp("zfs"), "zfs", 2 << 30)
    sh(["zpool", "create", "-f", "-m", "none", pool, device])
    sh(["zfs", "create", f"{pool}/lxc"])
    yield f"{pool}/lxc"
    sh(["zpool", "destroy", "-f", pool])
    if loop:
        sh(["losetup", "-d", loop])


class Volumes:
    """What lies outside of any lxcpath: logical volumes and datasets."""

    def __init__(self, request):
        self.request = request
        self.instead = {}  # {fixture: what takes its place}

    @property
    def used(self):
        """{fixture: the VG or dataset that it made}, of the whole session."""
        return self.request.session.__dict__.setdefault("fleet_volumes", {})

    def present(self):
        """Every volume and dataset of the fixtures in use, but for what they made themselves."""
        found = []
        for name, value in self.used.items():
            if name == "volume_group":
                found += [f"/dev/{value}/{lv}" for lv in sh(["lvs", "--noheadings", "-o", "lv_name", value]).split() if lv != "pool"]
            else:
                found += [one for one in sh(["zfs", "list", "-H", "-o", "name", "-t", "all", "-r", value]).split() if one != value]
        return sorted(found)

    def use(self, name):
        self.used[name] = self.instead.get(name) or self.request.getfixturevalue(name)
        return self.used[name]

    @contextlib.contextmanager
    def replaced(self, name, value):
        """Another VG or dataset takes the place of a fixture's meanwhile; all that is in it goes at the end."""
        before = dict(self.used)
        self.instead[name] = value
        yield
        self.remove_all()
        self.used.clear()
        self.used.update(before)

    def remove_all(self):
        present = self.present()
        volumes = [name for name in present if name.startswith("/")]
        if volumes:
            sh(["lvremove", "-q", "-f", *volumes], check=False)
        for name in present:
            if not name.startswith("/"):
                sh(["zfs", "destroy", "-R", name], check=False)


@pytest.fixture
def volumes(request):
    made = Volumes(request)
    yield made
    made.remove_all()


@pytest.fixture
def fleet_on(filesystems, volumes):
    """Makes a fleet on a filesystem; all that is in it goes when the test ends."""
    fleets = []

    def make(filesystem="ext"):
        directory = os.path.join(filesystems[filesystem], f"fleet-{uuid.uuid4().hex[:8]}")
        os.mkdir(directory, 0o755)
        fleets.append(Fleet(directory))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.empty()
        os.rmdir(fleet.lxcpath)


@pytest.fixture
def base_on(fleet_on, volumes, busybox_archive):
    """Makes a fleet whose base is on LVM (with these options of storage) or, without any, on ZFS."""

    def make(storage=None, state="present"):
        fleet = fleet_on()
        where = {"vg": volumes.use("volume_group"), **storage} if storage else {"zfs_dataset": volumes.use("zfs_dataset")}
        fleet.golden(state=state, rootfs_archive=busybox_archive, backing_store="lvm" if storage else "zfs", storage=where)
        return fleet

    return make


@pytest.fixture
def grows_when_cloned(volumes, tmp_path):
    """Makes clones that fill their store by a hook of their own, which no look beforehand can foresee; then adds room."""

    def check(fleet, add_room):
        hook = tmp_path / "hook"
        hook.write_text("#!/bin/sh\nexec dd if=/dev/urandom of=$LXC_ROOTFS_MOUNT/grown bs=1M count=24\n")
        hook.chmod(0o755)
        with open(fleet.path("golden", "config"), "a", encoding="utf-8") as file:
            file.write(f"lxc.hook.clone = {hook}\n")
        base, bare = content_of(fleet, "golden"), volumes.present()
        names = [f"web-{number}" for number in range(1, 6)]
        options = {"source": "golden", "name": names, "method": "snapshot", "workers": 1}
        result = fleet.call(**options)
        (error,) = result["failures"].values()
        assert re.search("No space left|quota exceeded|did not reach|Input/output error", str(error)), error
        whole = names[: names.index(error.container)]
        assert whole and fleet.names() == ["golden", *whole] == sorted(os.listdir(fleet.lxcpath))
        made = {path.rpartition("/")[2].rpartition("@")[2] for path in volumes.present() if path not in bare}
        assert made == set(whole) and content_of(fleet, "golden") == base
        add_room()
        assert fleet.clone(**options)["summary"]["created"] == len(names) - len(whole)
        for name in names:
            assert inside(fleet, name, lambda path: os.path.getsize(f"{path}/grown")) == 24 << 20

    return check


@pytest.fixture
def stays_while_away(base_on, volumes):
    """Makes a base and a clone, takes their storage away and brings it back: nothing is removed or made anew meanwhile."""

    def check(storage, match, take_away, bring_back):
        fleet = base_on(storage)
        fleet.clone(source="golden", name="web")
        before = volumes.present()
        take_away()
        try:
            calls = [(fleet.clone, {"source": "golden", "name": name}) for name in ("web", "more")] + [(fleet.clone, {"name": "web", "state": "absent"})]
            calls += [(fleet.base, {"name": "golden", "state": state}) for state in ("present", "sealed", "absent")]
            for call, options in calls:
                with pytest.raises(FleetError, match=match):
                    call(**options)
            # What a run that was cut off left is swept no sooner.
            os.rename(fleet.path("golden", PROVENANCE), fleet.path("golden", INTENT))
            with pytest.raises(FleetError, match=match):
                fleet.base(name="golden", state="absent")
            os.rename(fleet.path("golden", INTENT), fleet.path("golden", PROVENANCE))
        finally:
            bring_back()
        assert volumes.present() == before and not fleet.clone(source="golden", name="web")["changed"]

    return check


def inside(fleet, name, work, writable=False):
    """Run work(path) with a container's whole root filesystem at path."""
    rootfs = fleet.rootfs(name)
    driver = Registry(Runner()).driver(rootfs)

    def run():
        os.makedirs(fleet.path(name, "rootfs"), exist_ok=True)
        with driver.rootfs_view(rootfs, fleet.path(name, "rootfs"), writable) as path:
            return work(path)

    return mounts.in_private_mounts(run)


def crashed(fleet, name):
    """Leave a container's root filesystem as a power cut does: with a file that was synced, and so lies in the journal only."""
    path = fleet.rootfs(name).path

    def work(root):
        # The first fsync after a mount may commit all of btrfs at once, without its log.
        for last in ("first", "kept"):
            with open(f"{root}/root/{last}", "wb", buffering=0) as file:
                file.write(b"x" * 100000)
                os.fsync(file.fileno())
        directory = os.open(f"{root}/root", os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        sh(["dd", f"if={path}", f"of={fleet.path(name, 'crash')}", "bs=1M", "conv=sparse"])

    inside(fleet, name, work, writable=True)
    sh(["dd", f"if={fleet.path(name, 'crash')}", f"of={path}", "bs=1M", "conv=notrunc,fsync"])
    os.unlink(fleet.path(name, "crash"))


def content_of(fleet, name):
    return inside(fleet, name, lambda path: sh(f"cd {path} && find . -type f -exec sha256sum {{}} + | sort"))


@pytest.fixture
def fleet(fleet_on):
    return fleet_on()


@pytest.fixture
def golden(fleet):
    """A fleet with its sealed base."""
    fleet.golden()
    return fleet


@pytest.fixture(scope="session")
def bridge():
    with network.bridge() as name:
        yield name


@pytest.fixture(scope="session")
def localhost_module():
    """Runs a module on this machine as Ansible runs it. pytest-ansible is reached here and nowhere else."""
    from pytest_ansible.host_manager.utils import get_host_manager

    hosts = get_host_manager(inventory="localhost,", connection="local")

    def call(module, **arguments):
        try:
            return getattr(hosts["localhost"], module)(**arguments)["localhost"]
        finally:
            # Ansible keeps its standard files from its children, and here they are those of every test to come: lxc-attach wants its input.
            for standard in range(3):
                os.set_inheritable(standard, True)

    return call


@pytest.fixture
def refused():
    """Asserts that a call is refused with a message, and that nothing below the lxcpath was touched."""

    def check(fleet, match, call, **options):
        before = digest(fleet.lxcpath)
        with pytest.raises(FleetError, match=match):
            call(**options)
        assert digest(fleet.lxcpath) == before

    return check


def digest(path):
    return sh(f"cd {path} && find . -printf '%p %y %m %U %s %T@ %C@\\n' | sort | sha256sum")
