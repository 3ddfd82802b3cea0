# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What runs: addresses awaited on a throwaway bridge, guests that do not want to stop, what the host starts by itself."""

from __future__ import annotations

import ipaddress
import os
import time

import pytest
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from conftest import inside, sh

# The kernel keeps from a first process every signal that it has no handler for: this one never heeds a halt.
DEAF = {"lxc.init.cmd": "/bin/sleep 1000"}


def state_of(fleet, name):
    return sh(["lxc-info", "-P", fleet.lxcpath, "-n", name, "-sH"]).strip()


@pytest.fixture
def networked(fleet, bridge):
    """A fleet whose base is attached to the bridge."""
    fleet.base(name="golden", template="busybox", state="sealed", config={"lxc.net.0.type": "veth", "lxc.net.0.link": bridge, "lxc.net.0.flags": "up"})
    return fleet


def test_started_clones_are_returned_with_their_addresses_by_the_first_run_and_by_the_next(networked):
    options = {"source": "golden", "name": "web-[1:5]", "state": "started", "wait_for": "network"}
    first = networked.clone(**options)
    addresses = {clone["name"]: clone["ipv4"] for clone in first["clones"]}
    assert {name: len(each) for name, each in addresses.items()} == dict.fromkeys([f"web-{i}" for i in range(1, 6)], 1)
    assert len({ipaddress.ip_address(address) for (address,) in addresses.values()}) == 5
    for name, (address,) in addresses.items():
        assert sh(["lxc-info", "-P", networked.lxcpath, "-n", name, "-iH"]).split()[0] == address
    for more in ({}, {"wait_for": "running"}, {"check_mode": True}):
        again = networked.clone(**{**options, **more})
        assert not again["changed"] and {clone["name"]: clone["ipv4"] for clone in again["clones"]} == addresses
    assert {clone["name"]: clone["ipv4"] for clone in networked.clone(source="golden", name="web-[1:6]")["clones"]} == {**addresses, "web-6": []}


def test_a_clone_whose_network_never_comes_is_named_and_the_others_are_fine(networked):
    cut_off = {"web-2": {"config": {"lxc.net.0.link": None}}}
    options = {"source": "golden", "name": "web-[1:3]", "state": "started", "wait_for": "network", "overrides": cut_off}
    for wait_timeout in (5, 1):  # it is not there, and it still is not
        result = networked.call(**options, wait_timeout=wait_timeout)
        assert list(result["failures"]) == ["web-2"] and result["summary"]["failed"] == 1
        failure = result["failures"]["web-2"]
        assert str(failure).startswith(f"web-2: runs, but had no address within {wait_timeout} s")
        assert failure.kind == "timeout" and "raise wait_timeout" in failure.mend
        assert {clone["name"]: (clone["state"], len(clone["ipv4"])) for clone in result["clones"]} == {
            "web-1": ("running", 1),
            "web-2": ("failed", 0),
            "web-3": ("running", 1),
        }
    assert networked.up() == ["web-1", "web-2", "web-3"]


def test_no_time_to_wait_is_a_look(networked):
    options = {"source": "golden", "name": "web", "state": "started", "wait_for": "network"}
    networked.clone(**options)
    assert networked.clone(**options, wait_timeout=0)["clones"][0]["ipv4"]


def test_a_clone_that_dies_while_it_is_awaited_is_named(networked):
    begin = time.monotonic()
    short = {"web-2": {"config": {"lxc.net.0.link": None, "lxc.init.cmd": "/bin/sleep 1"}}}
    result = networked.call(source="golden", name="web-[1:3]", state="started", wait_for="network", wait_timeout=60, overrides=short)
    assert time.monotonic() - begin < 30
    assert {name: (failure.container, failure.what) for name, failure in result["failures"].items()} == {"web-2": ("web-2", "stopped while it was awaited")}
    assert {clone["name"]: len(clone["ipv4"]) for clone in result["clones"]} == {"web-1": 1, "web-2": 0, "web-3": 1}


@pytest.mark.parametrize(("wait_for", "stopping"), [("running", False), ("running", True), ("network", True)])
def test_a_clone_that_dies_right_after_its_start_is_named(golden, tmp_path, wait_for, stopping):
    """Whether its end is over by then or, with a hook that takes long, is not."""
    for seconds in (1, 3):
        hook = tmp_path / f"take-{seconds}"
        hook.write_text(f"#!/bin/sh\nsleep {seconds}\n")
        hook.chmod(0o755)
    overrides = {
        "dies": {"config": {"lxc.init.cmd": "/bin/true", **({"lxc.hook.stop": f"{tmp_path}/take-3"} if stopping else {})}},
        "other": {"config": {"lxc.hook.pre-start": f"{tmp_path}/take-1"}},  # looked at only when this one has been started, too
    }
    options = {"source": "golden", "name": ["dies", "other"], "state": "started", "workers": 1, "wait_for": wait_for, "wait_timeout": 0}
    result = golden.call(**options, overrides=overrides)
    assert str(result["failures"]["dies"]).startswith("dies: stopped again right after its start")
    assert {clone["name"]: clone["state"] for clone in result["clones"]}["dies"] == "failed"
    assert set(result["failures"]) == ({"dies"} if wait_for == "running" else {"dies", "other"})  # which has no network


def test_a_guest_that_does_not_heed_the_halt_signal_is_told_and_left_running_as_it_was(golden):
    golden.clone(source="golden", name="web", state="started", config=DEAF)
    pid = sh(["lxc-info", "-P", golden.lxcpath, "-n", "web", "-pH"])
    for state in ("stopped", "restarted", "absent"):
        begin = time.monotonic()
        with pytest.raises(FleetError) as refusal:
            golden.clone(source="golden", name="web", state=state, config=DEAF, stop_timeout=1)
        assert 1 <= time.monotonic() - begin < 10  # neither before its time nor after stop_timeout's default
        assert str(refusal.value).startswith("web: did not shut down within 1 s") and "force_stop: true" in refusal.value.mend
        assert state_of(golden, "web") == "RUNNING" and sh(["lxc-info", "-P", golden.lxcpath, "-n", "web", "-pH"]) == pid
        assert golden.names() == ["golden", "web"]


def test_a_guest_that_does_not_heed_the_halt_signal_is_killed_where_that_is_asked_for(golden):
    for state, actions in (("stopped", ["stop"]), ("restarted", ["stop", "start"]), ("absent", ["stop", "remove"])):
        golden.clone(source="golden", name="web", state="started", config=DEAF)
        result = golden.clone(source="golden", name="web", state=state, config=DEAF, stop_timeout=1, force_stop=True)
        assert result["clones"][0]["actions"] == actions
        assert golden.up() == (["web"] if state == "restarted" else [])
        assert golden.names() == (["golden"] if state == "absent" else ["golden", "web"])


def test_a_guest_that_has_just_begun_stops_once_its_init_listens(golden):
    golden.clone(source="golden", name="web", config={"lxc.init.cmd": "/bin/late"})

    def write(path):
        with open(f"{path}/bin/late", "w", opener=lambda name, flags: os.open(name, flags, 0o755)) as file:
            file.write("#!/bin/sh\nsleep 1\ntrap 'exit 0' USR1\nwhile :; do sleep 0.1; done\n")

    inside(golden, "web", write, writable=True)
    golden.clone(source="golden", name="web", config={"lxc.init.cmd": "/bin/late"}, state="started")
    begin = time.monotonic()
    assert golden.clone(name="web", state="absent")["clones"][0]["actions"] == ["stop", "remove"]
    assert time.monotonic() - begin < 15  # of the 30 s that it would have been waited for


def test_one_guest_that_does_not_heed_the_halt_signal_keeps_no_other_from_stopping(golden):
    options = {"source": "golden", "name": "web-[1:3]", "overrides": {"web-1": {"config": DEAF}}}
    golden.clone(**options, state="started")
    result = golden.call(**options, state="stopped", stop_timeout=3, on_error="continue")
    assert list(result["failures"]) == golden.up() == ["web-1"]
    assert (result["summary"]["stopped"], result["summary"]["failed"]) == (2, 1)


def test_a_frozen_clone_stops_at_once_and_in_good_order(golden):
    for state, actions in (("stopped", ["unfreeze", "stop"]), ("absent", ["unfreeze", "stop", "remove"])):
        golden.clone(source="golden", name="web", state="frozen")
        begin = time.monotonic()
        assert golden.clone(source="golden", name="web", state=state)["clones"][0]["actions"] == actions
        assert time.monotonic() - begin < 15  # of the 30 s that a frozen one would take
        assert golden.up() == [] and os.path.exists(golden.path("web")) == (state == "stopped")


def autostarted(fleet, *groups):
    """{name: delay} in the order in which the host starts them."""
    listed = sh(["lxc-autostart", "-P", fleet.lxcpath, "--list", *(["--groups", ",".join(groups)] if groups else [])])
    return {name: int(delay) for name, delay in (line.split() for line in listed.splitlines())}


def test_what_the_host_starts_by_itself_and_when_is_what_lxc_autostart_lists(golden):
    def clone(**options):
        return golden.clone(source="golden", **options)

    clone(name="later", autostart={"order": 20, "delay": 3})
    clone(name="sooner", autostart={"order": 10, "delay": 0})
    clone(name="[a:b]", autostart={"groups": ["web", "blue"], "delay": 1})
    clone(name="never", autostart={"enabled": False, "order": 30})
    assert list(autostarted(golden).items()) == [("sooner", 0), ("later", 3)]
    assert autostarted(golden, "web") == autostarted(golden, "blue") == {"a": 1, "b": 1}
    assert not clone(name="[a:b]", autostart={"groups": ["web", "blue"], "delay": 1})["changed"]
    changed = clone(name="[a:b]", autostart={"groups": ["web"]})
    assert [c["actions"] for c in changed["clones"]] == [["configure"], ["configure"]]
    assert (autostarted(golden, "web"), autostarted(golden, "blue")) == ({"a": 0, "b": 0}, {})
    clone(name="[a:b]", autostart={"enabled": False})
    assert autostarted(golden, "web") == {}
    with open(golden.path("a", "config"), encoding="utf-8") as file:
        assert [line for line in file.read().splitlines() if line.startswith(("lxc.start", "lxc.group"))] == ["lxc.start.auto = 0"]
