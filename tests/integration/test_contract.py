# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an operator may count on whatever the call: how long it waits for another, what it takes along, what it returns."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from conftest import sh

HOLDER = """
import sys, time
sys.path[:0] = {paths!r}
import conftest
from ansible_collections.fleet.lxc.plugins.module_utils.locks import hold, lxcpath_lock
with hold([lxcpath_lock({lxcpath!r})], timeout=0):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def held(golden):
    """The pid of another process that holds the lock of the lxcpath."""
    code = HOLDER.format(paths=[path for path in sys.path if path], lxcpath=golden.lxcpath)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.kill()


CALLS = {
    "clone": lambda fleet, **more: fleet.clone(source="golden", name="web", **more),
    "base": lambda fleet, **more: fleet.base(name="golden", state="absent", **more),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_lock_that_is_held_is_awaited_for_lock_timeout_and_its_holder_named(golden, held, call):
    for lock_timeout in (0, 1):
        begin = time.monotonic()
        with pytest.raises(FleetError, match=f"held by pid {held} for longer than {lock_timeout} s.*lock_timeout") as refusal:
            CALLS[call](golden, lock_timeout=lock_timeout)
        assert lock_timeout <= time.monotonic() - begin < lock_timeout + 3 and refusal.value.kind == "busy"
        assert golden.names() == ["golden"]


@pytest.mark.parametrize("call", CALLS)
def test_check_mode_waits_for_no_lock_and_neither_does_a_run_without_work(golden, held, call):
    assert CALLS[call](golden, lock_timeout=0, check_mode=True)["changed"]
    assert not golden.golden(lock_timeout=0)["changed"] and not golden.clone(name="web", state="absent", lock_timeout=0)["changed"]


def test_a_lock_is_free_when_its_holder_is_killed(golden, held):
    os.kill(held, 9)
    golden.clone(source="golden", name="web", lock_timeout=5)


# A full copy of the base, and what stands on that: clones of a clone that depend on its storage.


@pytest.fixture
def layered(golden):
    golden.clone(source="golden", name="copy", method="copy")
    golden.clone(source="copy", name="on-[1:2]", method="snapshot")
    golden.clone(source="golden", name="beside")
    return golden


def test_a_clone_goes_with_its_dependents_where_cascade_says_so(layered, refused):
    refused(layered, "copy: is not removed: .*/on-1 depends on its storage.*cascade: true", layered.clone, name="copy", state="absent")
    check = layered.clone(check_mode=True, name="copy", state="absent", cascade=True)
    run = layered.clone(name="copy", state="absent", cascade=True)
    for result in (check, run):
        assert [(clone["name"], clone["actions"]) for clone in result["clones"]] == [(name, ["remove"]) for name in ("on-1", "on-2", "copy")]
    assert run["summary"]["removed"] == 3 and layered.names() == ["beside", "golden"]
    assert not layered.clone(name="copy", state="absent", cascade=True)["changed"]


def test_a_base_goes_with_its_dependents_and_with_nothing_else(layered, refused):
    refused(layered, "golden: is not removed while 1 containers depend.*beside.*cascade: true", layered.base, name="golden", state="absent")
    assert layered.base(check_mode=True, name="golden", state="absent", cascade=True)["changed"]
    assert layered.names() == ["beside", "copy", "golden", "on-1", "on-2"]
    layered.base(name="golden", state="absent", cascade=True)
    assert layered.names() == ["copy", "on-1", "on-2"]
    layered.clone(source="copy", name="on-3", method="snapshot", state="started")
    assert layered.up() == ["on-3"]


@pytest.mark.parametrize(("below", "call"), [("copy", lambda fleet: fleet.clone), ("golden", lambda fleet: fleet.base)], ids=["lxc_clone", "lxc_base"])
def test_cascade_removes_nothing_where_one_dependent_is_foreign_or_runs(layered, below, call):
    sh(["lxc-copy", "-P", layered.lxcpath, "-n", below, "-N", "by-hand", "-s"])
    names = layered.names()
    with pytest.raises(FleetError, match=f"{below}: is not removed: .*/by-hand .*not made by fleet.lxc"):
        call(layered)(name=below, state="absent", cascade=True)
    assert layered.names() == names
    sh(["lxc-destroy", "-P", layered.lxcpath, "-n", "by-hand"])
    layered.clone(source=below, name="up", method="snapshot", state="started")
    with pytest.raises(FleetError, match=f"{below}: is not removed: .*/up .*is running"):
        call(layered)(name=below, state="absent", cascade=True)
    assert layered.names() == sorted({*names, "up"} - {"by-hand"}) and layered.up() == ["up"]


# Results


def test_detail_says_which_records_are_returned_and_the_summary_counts_all(golden):
    golden.clone(source="golden", name="web-[1:3]")
    options = {"source": "golden", "name": "web-[1:5]"}
    for detail, first, next_ in (("full", [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]), ("changed", [4, 5], []), ("summary", [], [])):
        run = golden.clone(**options, detail=detail)
        again = golden.clone(**options, detail=detail)
        for result, shown, (created, unchanged) in ((run, first, (2, 3)), (again, next_, (0, 5))):
            assert [clone["name"] for clone in result["clones"]] == [f"web-{i}" for i in shown]
            assert (result["summary"]["created"], result["summary"]["unchanged"]) == (created, unchanged)
        golden.clone(name="web-[4:5]", state="absent")


def test_detail_changed_shows_what_failed(golden):
    overrides = {"web-2": {"config": {"lxc.init.cmd": "/no/such/init"}}}
    golden.clone(source="golden", name="web-[1:3]", overrides=overrides)
    golden.clone(source="golden", name=["web-1", "web-3"], state="started")
    result = golden.call(source="golden", name="web-[1:3]", overrides=overrides, state="started", detail="changed")
    assert {clone["name"]: clone["state"] for clone in result["clones"]} == {"web-2": "failed"} and result["summary"]["unchanged"] == 2
