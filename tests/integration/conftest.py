# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Throwaway lxcpaths on the filesystems that every machine can make, and the modules called as Ansible calls them."""

from __future__ import annotations

import os
import re
import subprocess
import uuid

import pytest
from ansible.plugins.loader import init_plugin_loader
from checkout import ROOT

# Ansible's own way to find collections, for pytest-ansible runs Ansible in this very process. It has to be set up before the first is imported.
init_plugin_loader([str(ROOT / ".collections")])

from ansible_collections.fleet.lxc.plugins.module_utils.bases import BaseCall
from ansible_collections.fleet.lxc.plugins.module_utils.config import Config
from ansible_collections.fleet.lxc.plugins.module_utils.container import Rootfs
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.fleet import CloneCall
from ansible_collections.fleet.lxc.plugins.module_utils.wanted import BASE_ARGUMENTS, CLONE_ARGUMENTS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")


def pytest_collection_modifyitems(items):
    """Tests that need LVM or ZFS bear that as a mark: by the name of their file, or of their store."""
    for item in items:
        for store in ("lvm", "zfs"):
            if store in item.path.stem.split("_") or re.search(rf"\[(\w+-)*{store}\b", item.name):
                item.add_marker(store)


def sh(command, check=True):
    done = subprocess.run(command, shell=isinstance(command, str), capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{command}: {done.stdout}{done.stderr}")
    return done.stdout


# What LXC's template gives a busybox container, without a network.
BUSYBOX = {
    "lxc.net.0.type": "empty",
    "lxc.net.0.link": None,
    "lxc.net.0.flags": None,
    "lxc.signal.halt": "SIGUSR1",
    "lxc.signal.reboot": "SIGTERM",
}


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
        names = options.get("name")
        options["name"] = [names] if isinstance(names, str) else names
        result = CloneCall(self.options(CLONE_ARGUMENTS, options)).run(check_mode)
        for failure in result["failures"].values():
            raise failure
        return result

    def options(self, spec, given):
        unknown = set(given) - set(spec)
        assert not unknown, unknown
        options = {key: given.get(key, argument.get("default")) for key, argument in spec.items()}
        if isinstance(options.get("autostart"), dict):
            options["autostart"] = {"enabled": True, "order": None, "delay": None, "groups": None, **options["autostart"]}
        if options.get("storage"):
            options["storage"] = {**dict.fromkeys(spec["storage"]["options"]), **options["storage"]}
        options["lxcpath"] = self.lxcpath
        return options

    def golden(self, state="sealed", **options):
        """Busybox, by LXC's template or of an archive."""
        options.setdefault("template", None if options.get("rootfs_archive") else "busybox")
        return self.base(name="golden", state=state, config=BUSYBOX, **options)

    def names(self):
        return sorted(sh(["lxc-ls", "-P", self.lxcpath, "-1"]).split())

    def up(self):
        return sorted(sh(["lxc-ls", "-P", self.lxcpath, "-1", "--active"]).split())

    def empty(self):
        for name in self.up():
            sh(["lxc-stop", "-P", self.lxcpath, "-n", name, "-k"], check=False)
        for name in sorted(os.listdir(self.lxcpath)):
            rootfs = self.path(name, "rootfs")
            if os.path.isdir(rootfs) and os.lstat(rootfs).st_ino == 256:
                sh(["btrfs", "subvolume", "delete", rootfs], check=False)
            sh(["rm", "-rf", "--one-file-system", self.path(name)])


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
    """What LXC's template makes, made once: its hundreds of forks are slow on some machines."""
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


@pytest.fixture(scope="session")
def volume_group(tmp_path_factory):
    """A VG, with a dash in its name, and a thin pool in it."""
    if not os.path.exists("/dev/mapper/control") or subprocess.run(["lvm", "version"], capture_output=True, check=False).returncode:
        pytest.skip("no device-mapper here: ./test storage brings it along")
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
    if not os.path.exists("/dev/zfs") or subprocess.run(["zfs", "version"], capture_output=True, check=False).returncode:
        pytest.skip("no ZFS here: ./test storage brings it along")
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

    def value(self, name):
        return self.request.getfixturevalue(name)

    def present(self):
        """Every volume and dataset of the fixtures in use, but for what they made themselves."""
        used = self.request.session.__dict__.setdefault("fleet_volumes", set())
        found = []
        for name in used:
            value = self.value(name)
            if name == "volume_group":
                found += [f"/dev/{value}/{lv}" for lv in sh(["lvs", "--noheadings", "-o", "lv_name", value]).split() if lv != "pool"]
            else:
                found += [one for one in sh(["zfs", "list", "-H", "-o", "name", "-t", "all", "-r", value]).split() if one != value]
        return sorted(found)

    def use(self, name):
        value = self.value(name)
        self.request.session.__dict__.setdefault("fleet_volumes", set()).add(name)
        return value

    def remove_all(self):
        for name in self.present():
            sh(["lvremove", "-q", "-f", name] if name.startswith("/") else ["zfs", "destroy", "-R", name], check=False)


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
def fleet(fleet_on):
    return fleet_on()


@pytest.fixture
def golden(fleet):
    """A fleet with its sealed base."""
    fleet.golden()
    return fleet


@pytest.fixture(scope="session")
def localhost_module():
    """Runs a module on this machine as Ansible runs it. pytest-ansible is reached here and nowhere else."""
    from pytest_ansible.host_manager.utils import get_host_manager

    hosts = get_host_manager(inventory="localhost,", connection="local")

    def call(module, **arguments):
        return getattr(hosts["localhost"], module)(**arguments)["localhost"]

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
