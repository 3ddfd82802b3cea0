# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Static addresses for a fleet, on a bridge of its own; cgroup limits, on the cgroups of this machine."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil

import pytest
from ansible_collections.fleet.lxc.plugins.module_utils import cgroups
from ansible_collections.fleet.lxc.plugins.module_utils.config import Config
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.host import LxcHost
from ansible_collections.fleet.lxc.plugins.module_utils.neighbours import Neighbours
from conftest import BUSYBOX, lxc, sh

# Busybox asks an eth0 for DHCP, and no other.
LAN = {**BUSYBOX, "lxc.net.0.type": "veth", "lxc.net.0.name": "lan0", "lxc.net.0.flags": "up"}


class Lan:
    """The network of the throwaway bridge: ``lan[5]`` is the fifth address after the bridge's own."""

    def __init__(self, bridge):
        found = json.loads(sh(["ip", "-json", "-4", "addr", "show", "dev", bridge]))[0]["addr_info"][0]
        self.bridge, self.gateway, self.prefix = bridge, found["local"], found["prefixlen"]

    def __getitem__(self, number):
        return str(ipaddress.ip_address(self.gateway) + number)

    def range(self, first, last):
        return f"{self[first]}-{self[last]}/{self.prefix}"


@pytest.fixture
def lan(bridge):
    return Lan(bridge)


@pytest.fixture
def wired(fleet, lan, busybox_archive):
    fleet.base(name="golden", state="sealed", rootfs_archive=busybox_archive, config={**LAN, "lxc.net.0.link": lan.bridge})
    return fleet


def configured(fleet, name, key="lxc.net.0.ipv4.address"):
    return Config.read(fleet.path(name, "config")).get_all(key)


def addresses(result):
    return {clone["name"]: clone.get("assigned", "").partition("/")[0] for clone in result["clones"]}


def test_each_clone_has_its_address_really_and_a_route_out(wired, lan):
    options = {"source": "golden", "name": "web-[1:3]", "state": "started", "ipv4": lan.range(10, 12), "ipv4_gateway": lan.gateway}
    foreseen = wired.clone(check_mode=True, **options)
    assert f"  lxc.net.0.ipv4.address = {lan[11]}/{lan.prefix}" in foreseen["diff"]["after"]
    made = wired.clone(**options, wait_for="network")
    assert addresses(made) == addresses(foreseen) == {"web-1": lan[10], "web-2": lan[11], "web-3": lan[12]}
    assert [clone["ipv4"] for clone in made["clones"]] == [[lan[10]], [lan[11]], [lan[12]]]
    assert f"inet {lan[11]}/{lan.prefix} brd" in lxc("lxc-attach", wired, "web-2", "--", "ip", "-4", "addr", "show", "lan0").stdout
    assert f"default via {lan.gateway} dev lan0" in lxc("lxc-attach", wired, "web-2", "--", "ip", "route").stdout
    assert lxc("lxc-attach", wired, "web-1", "--", "ping", "-c1", "-W2", lan[12]).returncode == 0
    assert not wired.clone(**options)["changed"]
    assert not wired.clone(source="golden", name="web-[1:3]", state="started")["changed"]  # left out, it is not managed


def test_a_clone_keeps_its_address_whoever_joins_or_leaves_in_whatever_order(wired, lan):
    options = {"source": "golden", "ipv4": lan.range(10, 15)}
    first = addresses(wired.clone(name="web-[1:4]", **options))
    wired.clone(name="web-2", state="absent")
    then = addresses(wired.clone(name=["web-9", "web-4", "web-8", "web-3", "web-1"], **options))
    assert then == {"web-9": lan[11], "web-8": lan[14], **{name: first[name] for name in ("web-1", "web-3", "web-4")}}
    # Those that a call does not name hold theirs as well.
    assert addresses(wired.clone(name="late", **options)) == {"late": lan[15]}
    assert not wired.clone(name=["late", "web-1"], **options)["changed"]


def test_an_address_outside_of_a_changed_range_is_drift(wired, lan):
    options = {"source": "golden", "name": "web-[1:2]", "state": "started"}
    wired.clone(**options, ipv4=lan.range(10, 12), ipv4_gateway=lan.gateway)
    again = wired.clone(**options, ipv4=lan.range(11, 13), ipv4_gateway="dev")
    assert addresses(again) == {"web-1": lan[12], "web-2": lan[11]}
    assert [clone["actions"] for clone in again["clones"]] == [["configure"]] * 2 and again["clones"][0]["restart_required"] is True
    assert configured(wired, "web-1", "lxc.net.0.ipv4.gateway") == ["dev"]
    assert f"- {lan[10]}" not in again["diff"]["after"] and lan[10] in again["diff"]["before"]
    # Dropped from the task, the gateway is taken back, and with an empty range the address.
    wired.clone(**options, ipv4=lan.range(11, 13))
    assert configured(wired, "web-1", "lxc.net.0.ipv4.gateway") == []
    back = wired.clone(**options, ipv4="")
    assert configured(wired, "web-1") == [] and addresses(back) == {"web-1": "", "web-2": ""}
    assert not wired.clone(**options, ipv4="")["changed"]


def test_what_a_task_sets_by_hand_wins(wired, lan):
    key = "lxc.net.0.ipv4.address"
    options = {"source": "golden", "name": "web-[1:3]", "ipv4": lan.range(10, 12), "config": {"lxc.start.order": 1}}
    by_hand = {"web-1": {"config": {key: f"{lan[100]}/{lan.prefix}"}}, "web-2": {"config": {key: f"{lan[10]}/{lan.prefix}"}}}
    made = wired.clone(**options, overrides=by_hand)
    assert addresses(made) == {"web-1": "", "web-2": "", "web-3": lan[11]}
    assert configured(wired, "web-1") == [f"{lan[100]}/{lan.prefix}"]
    assert not wired.clone(**options, overrides=by_hand)["changed"]
    # Without them the range gives; who has an address of it already keeps that one.
    assert addresses(wired.clone(**options)) == {"web-1": lan[12], "web-2": lan[10], "web-3": lan[11]}
    with pytest.raises(FleetError, match=f"web-1: {lan[11]} is set by hand, and web-3 has it"):
        wired.clone(**options, overrides={"web-1": {"config": {key: f"{lan[11]}/{lan.prefix}"}}})


def test_what_a_clone_has_before_the_range_comes_it_keeps_where_it_can(wired, lan):
    wired.clone(source="golden", name="web-1", config={"lxc.net.0.ipv4.address": f"{lan[11]}/{lan.prefix}"})
    assert addresses(wired.clone(source="golden", name="web-[1:2]", config={}, ipv4=lan.range(11, 12))) == {"web-1": lan[11], "web-2": lan[12]}


def test_a_range_that_overlaps_another_container_of_the_host_is_refused(wired, fleet_on, lan, refused):
    options = {"source": "golden", "name": "web-[1:2]", "ipv4": lan.range(10, 14)}
    refused(wired, f"overlaps.*{lan.gateway} of this host", wired.clone, **{**options, "ipv4": lan.range(0, 9)})
    other = fleet_on()
    # Below an lxcpath that nobody names, a container is found while it runs.
    shutil.copytree(wired.path("golden"), other.path("db"), symlinks=True)
    with open(other.path("db", "config"), "a") as file:
        file.write(f"lxc.net.0.ipv4.address = {lan[12]}/{lan.prefix}\n")
    sh(f"sed -i 's|{wired.lxcpath}/golden|{other.lxcpath}/db|; /fleet.lxc.guard/d' {other.path('db', 'config')}")
    sh(["lxc-start", "-P", other.lxcpath, "-n", "db"])
    refused(wired, f"overlaps.*{lan[12]} of {other.lxcpath}/db", wired.clone, **options)
    sh(["lxc-stop", "-P", other.lxcpath, "-n", "db", "-k"])
    # Below the source's lxcpath it is found in any case.
    far = fleet_on()
    sh(["lxc-copy", "-P", wired.lxcpath, "-n", "golden", "-N", "stopped"])
    with open(wired.path("stopped", "config"), "a") as file:
        file.write(f"lxc.net.0.ipv4.address = {lan[14]}/{lan.prefix}\n")
    refused(far, f"overlaps.*{lan[14]} of {wired.lxcpath}/stopped", far.clone, **options, source_lxcpath=wired.lxcpath)
    sh(["lxc-destroy", "-P", wired.lxcpath, "-n", "stopped"])
    # Below our own lxcpath, with an address of DHCP or a command inside, or of its configuration.
    sh(["lxc-copy", "-P", wired.lxcpath, "-n", "golden", "-N", "foreign"])
    sh(["lxc-start", "-P", wired.lxcpath, "-n", "foreign"])
    assert lxc("lxc-attach", wired, "foreign", "--", "ip", "addr", "add", f"{lan[13]}/{lan.prefix}", "dev", "lan0").returncode == 0
    refused(wired, f"overlaps.*{lan[13]} of {wired.lxcpath}/foreign", wired.clone, **options)
    sh(["lxc-stop", "-P", wired.lxcpath, "-n", "foreign", "-k"])
    wired.clone(**options)
    # Whoever came later does not stop an unchanged run, only the next that needs an address.
    with open(wired.path("foreign", "config"), "a") as file:
        file.write(f"lxc.net.0.ipv4.address = {lan[14]}/{lan.prefix}\n")
    assert not wired.clone(**options)["changed"]
    refused(wired, f"overlaps.*{lan[14]} of {wired.lxcpath}/foreign", wired.clone, **{**options, "name": "web-3"})


def test_too_few_addresses_and_no_interface_are_refused_before_anything_is_touched(wired, lan, refused):
    options = {"source": "golden", "ipv4": lan.range(10, 12)}
    refused(wired, "has 3 addresses for 4 clones", wired.clone, name="web-[1:4]", **options)
    wired.clone(name="web-[1:2]", **options)
    refused(wired, "web-4: gets no address: none of.*is free", wired.clone, name="web-[3:4]", **options)
    refused(wired, "web-3: has no network interface", wired.clone, name="web-3", config={"lxc.net.0.type": "empty"}, **options)
    refused(wired, "flags is not up", wired.clone, name="web-3", config={"lxc.net.0.flags": None}, ipv4_gateway=lan.gateway, **options)
    # The others go on where the task says so.
    without = {"web-3": {"config": {"lxc.net.0.type": "empty"}}}
    result = wired.call(name="web-[1:4]", source="golden", ipv4=lan.range(10, 13), on_error="continue", overrides=without)
    assert list(result["failures"]) == ["web-3"] and addresses(result)["web-4"] == lan[12]


def test_what_a_cut_off_run_had_given_is_given_again(wired, lan):
    wired.clone(source="golden", name="web-[1:3]", ipv4=lan.range(10, 12))
    os.rename(wired.path("web-2", "fleet.lxc.json"), wired.path("web-2", "fleet.lxc.intent"))
    again = wired.clone(source="golden", name=["web-4", "web-2"], ipv4=lan.range(10, 13))
    assert addresses(again) == {"web-4": lan[13], "web-2": lan[11]} and again["clones"][1]["actions"] == ["sweep", "create"]


def test_the_macs_in_use_are_those_of_configurations_and_of_the_host(wired, lan):
    wired.clone(source="golden", name="web", config={"lxc.net.0.hwaddr": "00:16:3E:AA:BB:CC"})
    host = wired_host(wired)
    macs = Neighbours(host.observe()).macs()
    with open(f"/sys/class/net/{lan.bridge}/address") as file:
        assert {"00:16:3e:aa:bb:cc", file.read().strip()} <= macs
    assert all(mac == mac.lower() for mac in macs)


def wired_host(fleet):
    from ansible_collections.fleet.lxc.plugins.module_utils.command import Runner
    from ansible_collections.fleet.lxc.plugins.module_utils.storage.registry import Registry

    runner = Runner(60)
    return LxcHost(fleet.lxcpath, runner, Registry(runner))


# Limits, by the version that they are of.
LIMITS = {1: ("lxc.cgroup.memory.limit_in_bytes", "memory.limit_in_bytes"), 2: ("lxc.cgroup2.memory.max", "memory.max")}


def test_a_limit_of_the_other_cgroup_version_is_refused_and_a_portable_task_is_not(golden, refused):
    here = cgroups.layout()
    (right, file), (wrong, _file) = LIMITS[here.version], LIMITS[3 - here.version]
    options = {"source": "golden", "name": "web"}
    refused(golden, f"config has {wrong}, which LXC ignores here.*Write {right}", golden.clone, **options, config={wrong: "64M"})
    refused(golden, f"which LXC ignores here.*Write {right}", golden.clone, **options, overrides={"web": {"config": {wrong: "64M"}}})
    refused(golden, f"which LXC ignores here.*Write {right}", golden.base, name="other", template="busybox", config={wrong: "64M"})
    golden.clone(**options, state="started", config={right: "64M", wrong: "64M"})
    assert lxc("lxc-cgroup", golden, "web", file).stdout.strip() == str(64 << 20)


def test_a_running_container_below_a_path_too_long_for_a_socket_is_found(wired, tmp_path, lan):
    lxcpath = tmp_path / ("a-long-way-down-" * 6)  # whose command socket liblxc names by a hash
    lxcpath.mkdir()
    config = [f"{key} = {value}" for key, value in {**LAN, "lxc.net.0.link": lan.bridge}.items() if value]
    config += [f"lxc.rootfs.path = dir:{wired.path('golden', 'rootfs')}", "lxc.uts.name = deep", f"lxc.net.0.ipv4.address = {lan[12]}/{lan.prefix}"]
    (lxcpath / "deep").mkdir()
    (lxcpath / "deep" / "config").write_text("\n".join(config) + "\n")
    sh(["lxc-start", "-P", str(lxcpath), "-n", "deep"])
    try:
        assert f"{lan[12]} of {lxcpath}/deep" in map(str, Neighbours(wired_host(wired).observe()).addresses())
    finally:
        sh(["lxc-stop", "-P", str(lxcpath), "-n", "deep", "-k"])
