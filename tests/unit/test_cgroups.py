# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Limits that a host's cgroups would ignore, on hosts of each kind; and what kind this machine is."""

from __future__ import annotations

import os
import re

import pytest
from ansible_collections.fleet.lxc.plugins.module_utils import cgroups
from ansible_collections.fleet.lxc.plugins.module_utils.cgroups import Layout
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.mounts import table

V1 = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset,noprefix,clone_children
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/lib/agent,name=systemd
"""
HYBRID = V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
UNIFIED = "31 23 0:28 / ROOT rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
# As some VPN clients mount it beside version 2, which LXC goes on using.
STRAY = UNIFIED + "32 23 0:29 / /run/net_cls rw,relatime - cgroup net_cls rw,net_cls\n"


def layout_of(tmp_path, mountinfo):
    root = tmp_path / "cgroup"
    root.mkdir()
    (root / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "mountinfo").write_text(mountinfo.replace("ROOT", str(root)))
    return cgroups.layout(table(str(tmp_path / "mountinfo")), str(root) if "ROOT" in mountinfo else "/sys/fs/cgroup")


@pytest.mark.parametrize(
    ("mountinfo", "version", "controllers"),
    [
        (V1, 1, {"cpu", "cpuacct", "memory", "cpuset"}),
        (HYBRID, 1, {"cpu", "cpuacct", "memory", "cpuset"}),
        (UNIFIED, 2, {"cpuset", "cpu", "io", "memory", "pids", "devices"}),
        (STRAY, 2, {"cpuset", "cpu", "io", "memory", "pids", "devices"}),
        ("", 0, set()),
    ],
    ids=["v1", "hybrid", "unified", "stray", "none"],
)
def test_how_a_host_mounts_its_cgroups(tmp_path, mountinfo, version, controllers):
    assert layout_of(tmp_path, mountinfo) == Layout(version, frozenset(controllers))


ONE, TWO = Layout(1, frozenset({"cpu", "memory", "blkio", "pids"})), Layout(2, frozenset({"cpu", "memory", "io", "devices"}))


def check(monkeypatch, layout, *keys):
    monkeypatch.setattr(cgroups, "layout", lambda: layout)
    cgroups.check([dict.fromkeys(keys, ["1"])])


@pytest.mark.parametrize(
    ("layout", "keys", "match"),
    [
        (ONE, ["lxc.cgroup2.memory.max"], "which LXC ignores here.*version 1.*Write lxc.cgroup.memory.limit_in_bytes; both"),
        (TWO, ["lxc.cgroup.memory.limit_in_bytes"], "version 2. Write lxc.cgroup2.memory.max"),
        (TWO, ["lxc.cgroup.cpu.shares"], "Write lxc.cgroup2.cpu.weight .1 to 10000"),
        (ONE, ["lxc.cgroup2.cpu.weight"], "Write lxc.cgroup.cpu.shares .1024"),
        (ONE, ["lxc.cgroup2.devices.allow"], "Write lxc.cgroup.devices.allow"),
        (TWO, ["lxc.cgroup.devices.deny"], "Write lxc.cgroup2.devices.deny"),
        (TWO, ["lxc.cgroup.hugetlb.2MB.limit_in_bytes"], "Write lxc.cgroup2.hugetlb.2MB.max"),
        (TWO, ["lxc.cgroup.net_cls.classid"], r"Write a limit of lxc.cgroup2.\*"),
        (ONE, ["lxc.cgroup2.memory.max", "lxc.cgroup.pids.max"], "memory.max"),
        (ONE, ["lxc.cgroup.hugetlb.2MB.limit_in_bytes"], "no cgroup controller hugetlb: it has blkio, cpu, memory, pids"),
        (TWO, ["lxc.cgroup2.pids.max"], "no cgroup controller pids"),
    ],
)
def test_a_limit_that_would_be_ignored_is_refused_with_its_equivalent(monkeypatch, layout, keys, match):
    with pytest.raises(FleetError, match=match):
        check(monkeypatch, layout, *keys)


@pytest.mark.parametrize("layout", [ONE, TWO])
def test_portable_tasks_and_what_is_no_controller_pass(monkeypatch, layout):
    check(monkeypatch, layout, "lxc.cgroup.memory.limit_in_bytes", "lxc.cgroup2.memory.max")
    check(monkeypatch, layout, "lxc.cgroup.blkio.weight", "lxc.cgroup2.io.weight")
    check(monkeypatch, layout, "lxc.cgroup.dir", "lxc.cgroup.dir.container.inner", "lxc.cgroup.relative", "lxc.environment")


def test_devices_need_no_controller_and_no_cgroups_no_check(monkeypatch):
    check(monkeypatch, TWO, "lxc.cgroup2.devices.allow")
    check(monkeypatch, Layout(0, frozenset()), "lxc.cgroup.memory.limit_in_bytes")
    monkeypatch.setattr(cgroups, "layout", lambda: ONE)
    cgroups.check([{"lxc.cgroup2.memory.max": []}, None])  # null takes a limit away


def test_this_machines_layout_is_what_the_kernel_says():
    found = cgroups.layout()
    if found.version == 1:
        with open("/proc/cgroups", encoding="ascii") as file:
            bound = {line.split()[0] for line in file if not line.startswith("#") and line.split()[1] != "0"}
        assert found.controllers <= bound and found.controllers
    elif found.version == 2:
        assert os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    with open("/proc/self/cgroup", encoding="ascii") as file:
        named = {name for line in file for name in re.split("[:,]", line.split(":")[1]) if name}
    assert found.version != 1 or found.controllers <= named
