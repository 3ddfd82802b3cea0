# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Clones awaited until a command succeeds in each, and what is said of those in which it does not."""

from __future__ import annotations

import threading
import time

import pytest
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from conftest import lxc, sh

STARTED = {"source": "golden", "state": "started", "wait_for": "command"}


def inside(fleet, name, command):
    return lxc("lxc-attach", fleet, name, "--clear-env", "--", "/bin/sh", "-c", command)


def test_a_command_is_awaited_in_all_clones(golden):
    golden.clone(source="golden", name="web-[1:5]", state="started")
    # Ready one after the other, and only after a while.
    threading.Timer(0.5, lambda: [inside(golden, f"web-{number}", "touch /ready") for number in range(1, 6)]).start()
    begin = time.monotonic()
    golden.clone(name="web-[1:5]", **STARTED, wait_command="test -e /ready", wait_timeout=20)
    assert 0.5 < time.monotonic() - begin < 10
    begin = time.monotonic()
    golden.clone(name="web-[1:5]", **STARTED, wait_command="sleep 1", wait_timeout=20)
    assert time.monotonic() - begin < 4  # all at once


def test_it_runs_in_a_shell_of_the_guest_with_a_clean_environment(golden, monkeypatch):
    monkeypatch.setenv("FLEET_LEAK", "yes")
    command = 'test "$(hostname)" = web && test -z "$FLEET_LEAK" && test "$container" = lxc && type ls >/dev/null && ! read line'
    golden.clone(name="web", **STARTED, wait_command=command, wait_timeout=10)


def test_what_is_not_ready_in_time_is_named_with_all_that_is_known(golden, tmp_path):
    console = tmp_path / "console.log"
    overrides = {"web-2": {"config": {"lxc.console.logfile": str(console)}}}
    golden.clone(source="golden", name="web-[1:3]", state="started", overrides=overrides)
    inside(golden, "web-1", "touch /ready")
    with open(console, "a") as file:
        file.write("\033[31mthe port is taken\n")
    begin = time.monotonic()
    command = 'test -e /ready && exit 0; test "$(hostname)" = web-2 && { echo connection refused; exit 4; }; echo waiting; sleep 100'
    result = golden.call(name="web-[1:3]", **STARTED, overrides=overrides, wait_command=command, wait_timeout=2)
    assert time.monotonic() - begin < 6
    second, third = str(result["failures"]["web-2"]), str(result["failures"]["web-3"])
    assert "web-2: runs, but its wait_command did not succeed within 2 s: it exited with 4 in the last of " in second
    assert "tries and said 'connection refused'" in second and "its console ends with" in second and "[31mthe port is taken" in second
    assert "web-3: runs, but its wait_command did not succeed within 2 s: it was still under way and said 'waiting'" in third
    assert "seccomp" not in second  # which LXC's monitor logs at each lxc-attach
    assert set(result["failures"]) == {"web-2", "web-3"} and result["summary"]["failed"] == 2
    assert [failure.kind for failure in result["failures"].values()] == ["timeout", "timeout"]
    # A moment later the guest's init has taken note of its death, too.
    assert any("sleep" not in inside(golden, "web-3", "sleep 0.1; ps | grep -v grep").stdout.replace("sleep 0.1", "") for _try in range(20))


def test_a_clone_that_dies_meanwhile_is_noticed_at_once(golden):
    golden.clone(source="golden", name="web-[1:2]", state="started")
    threading.Timer(0.5, lambda: sh(["lxc-stop", "-P", golden.lxcpath, "-n", "web-2", "-k"])).start()
    begin = time.monotonic()
    result = golden.call(name="web-[1:2]", **STARTED, wait_command='test "$(hostname)" = web-1 || sleep 100', wait_timeout=60)
    assert time.monotonic() - begin < 10
    assert list(result["failures"]) == ["web-2"] and "web-2: stopped while it was awaited" in str(result["failures"]["web-2"])


def test_network_and_command_are_awaited_together_within_one_time(golden):
    begin = time.monotonic()
    options = {**STARTED, "wait_for": ["network", "command"], "wait_timeout": 2}
    result = golden.call(name="web-[1:2]", **options, wait_command='test "$(hostname)" = web-1 || { echo no; false; }')
    assert time.monotonic() - begin < 5
    assert {"runs, but had no address within 2 s" in str(failure) for failure in result["failures"].values()} == {True} and len(result["failures"]) == 2
    # By now each has one, and only the command of the second is missed.
    for name in ("web-1", "web-2"):
        inside(golden, name, "ip addr add 192.0.2.9/32 dev lo")
    result = golden.call(name="web-[1:2]", **options, wait_command='test "$(hostname)" = web-1 || { echo no; false; }')
    assert list(result["failures"]) == ["web-2"] and "said 'no'" in str(result["failures"]["web-2"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"wait_for": "command"}, "wait_for: command stands without wait_command"),
        ({"wait_command": "true"}, "wait_command stands without wait_for: command"),
        ({"wait_for": ["none", "network"]}, "none stands alone"),
    ],
)
def test_a_command_needs_its_option_and_the_option_a_command(golden, refused, options, match):
    refused(golden, match, golden.clone, source="golden", name="web", **options)
    with pytest.raises(FleetError, match=match):
        golden.clone(check_mode=True, source="golden", name="web", **options)
