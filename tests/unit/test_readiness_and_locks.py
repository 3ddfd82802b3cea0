# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import subprocess
import threading
import time

import pytest
from ansible_collections.fleet.lxc.plugins.module_utils import locks, readiness
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture
def namespace():
    process = subprocess.Popen(["unshare", "--net", "sleep", "30"])
    own = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{process.pid}/ns/net") == own:
        time.sleep(0.005)
    yield process
    process.kill()
    process.wait()


def give_address(process, address="192.0.2.77/32"):
    subprocess.run(["nsenter", "-t", str(process.pid), "-n", "sh", "-c", f"ip link set lo up && ip addr add {address} dev lo"], check=True)


def test_an_address_that_comes_later_wakes_the_wait(namespace):
    threading.Timer(0.2, give_address, [namespace]).start()
    outcome = readiness.await_network({"web": namespace.pid}, time.monotonic() + 10)["web"]
    assert (outcome.state, outcome.ipv4) == (readiness.READY, ["192.0.2.77"])


def test_an_address_that_is_there_needs_no_event(namespace):
    give_address(namespace, "192.0.2.78/32")
    assert readiness.await_network({"web": namespace.pid}, time.monotonic() + 5)["web"].ipv4 == ["192.0.2.78"]


def test_the_time_limit_holds(namespace):
    begin = time.monotonic()
    assert readiness.await_network({"web": namespace.pid}, begin + 0.2)["web"].state == readiness.TIMED_OUT
    assert time.monotonic() - begin < 2


def test_a_death_is_noticed(namespace):
    threading.Timer(0.1, namespace.kill).start()
    assert readiness.await_network({"web": namespace.pid}, time.monotonic() + 10)["web"].state == readiness.DIED


def test_a_lock_is_refused_with_its_holder_and_free_again_afterwards(tmp_path):
    lock = locks.lxcpath_lock(str(tmp_path))
    with locks.hold([lock], 1):
        with pytest.raises(FleetError, match=f"pid {os.getpid()}.*lock_timeout"):
            with locks.hold([lock], 0):
                pass
    with locks.hold([lock], 0):
        pass


def test_a_base_is_shared_by_cloners_and_closed_to_them_while_it_is_changed(tmp_path):
    shared, exclusive = (locks.base_lock(str(tmp_path), "golden", exclusive=e) for e in (False, True))
    with locks.hold([shared], 0), locks.hold([shared], 0):
        with pytest.raises(FleetError, match="golden"):
            with locks.hold([exclusive], 0):
                pass


def test_free_locks_are_taken_at_once_and_none_of_them_while_one_is_held(tmp_path):
    wanted = [locks.lxcpath_lock(str(tmp_path)), locks.base_lock(str(tmp_path), "golden", exclusive=False)]
    with locks.hold_if_free(wanted) as held:
        assert len(held) == 2
        with locks.hold_if_free(wanted[1:]) as shared, locks.hold_if_free(wanted) as none:
            assert shared and none is None
    with locks.hold([locks.base_lock(str(tmp_path), "golden", exclusive=True)], 0):
        with locks.hold_if_free(wanted) as none:
            assert none is None
        with locks.hold(wanted[:1], 0):
            pass  # the first one was given back
