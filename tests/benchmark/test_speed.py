# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whole commands, as a user types them, against what the same user would do by hand. Ratios only: machines differ."""

from __future__ import annotations

import json

import pytest
import yaml
from checkout import published, run
from conftest import ROWS, Row, seconds

LOOP = 'i=1; while [ $i -le {count} ]; do lxc-copy -P "$P" -n golden -N n$i -s -B overlay; i=$((i+1)); done'


def made(bench, count):
    def check():
        assert len(bench.names()) == count + 1

    return check


def test_a_thousand_clones_against_a_loop_of_lxc_copy(bench, compare):
    compare(
        "1,000 stopped overlay clones: ansible -m lxc_clone (detail=summary)",
        lambda: bench.clone(source="golden", name="n[1:1000]", detail="summary"),
        "a serial shell loop of lxc-copy -s, which tells nothing either",
        lambda: bench.shell(LOOP.format(count=1000)),
        at_most=0.4,
        check=made(bench, 1000),
    )


def test_a_thousand_clones_against_the_loop_in_one_shell_task(bench, compare):
    compare(
        "1,000 stopped overlay clones: ansible -m lxc_clone",
        lambda: bench.clone(source="golden", name="n[1:1000]"),
        "the same loop in ansible -m shell",
        lambda: bench.ansible("-m", "shell", "-a", LOOP.format(count=1000).replace('"$P"', bench.lxcpath)),
        at_most=0.5,
        runs=1,
        check=made(bench, 1000),
    )


def test_an_unchanged_run_over_a_thousand_against_a_ping(bench, compare):
    bench.clone(source="golden", name="n[1:1000]")
    compare(
        "1,000 clones, nothing to do: ansible -m lxc_clone",
        lambda: assert_unchanged(bench.clone(source="golden", name="n[1:1000]")),
        "ansible -m ping",
        lambda: bench.ansible("-m", "ping"),
        at_most=2,
        runs=5,
        clean=False,
    )
    bench.empty()


def assert_unchanged(said):
    assert '"unchanged": 1000' in said and "SUCCESS" in said


def test_the_removal_of_many_against_a_loop_of_lxc_destroy(bench, compare):
    compare(
        "removal of 1,000 clones: ansible -m lxc_clone state=absent",
        lambda: bench.clone(name="n[1:1000]", state="absent"),
        "a serial shell loop of lxc-destroy",
        lambda: bench.shell('i=1; while [ $i -le 1000 ]; do lxc-destroy -P "$P" -n n$i; i=$((i+1)); done'),
        at_most=1.5,
        runs=1,
        prepare=lambda: bench.clone(source="golden", name="n[1:1000]"),
        check=made(bench, 0),
    )


STARTED = """
i=1; while [ $i -le 100 ]; do
  lxc-copy -P "$P" -n golden -N n$i -s -B overlay
  lxc-start -P "$P" -n n$i
  until [ -n "$(lxc-info -P "$P" -n n$i -iH)" ]; do sleep 0.05; done
  i=$((i+1))
done
"""
# The same by a user in a hurry: nothing is waited for before all have been started.
STARTED_THEN_AWAITED = STARTED.replace("  until", "  i=$((i+1))\ndone\ni=1; while [ $i -le 100 ]; do\n  until")


@pytest.fixture(scope="module")
def networked(bench, bridge):
    network = {"lxc.net.0.type": "veth", "lxc.net.0.link": bridge, "lxc.net.0.flags": "up"}
    bench.ansible("-m", "lxc_base", "-a", json.dumps({"name": "golden", "state": "present", "lxcpath": bench.lxcpath, "config": network}))
    return bench


@pytest.mark.parametrize(
    ("loop", "described", "at_most"), [(STARTED, "each awaited", 0.8), (STARTED_THEN_AWAITED, "all started, then awaited", 1.3)], ids=["serial", "hurried"]
)
def test_a_hundred_started_clones_with_addresses_against_a_loop(networked, compare, loop, described, at_most):
    compare(
        "100 started clones with addresses: ansible -m lxc_clone",
        lambda: networked.clone(source="golden", name="n[1:100]", state="started", wait_for="network"),
        f"a serial loop of lxc-copy, lxc-start, lxc-info ({described})",
        lambda: networked.shell(loop),
        at_most=at_most,
        runs=1,
        check=made(networked, 100),
    )


@pytest.mark.parametrize(("count", "state"), [(1000, "present"), (100, "started")])
def test_identity_costs_at_most_a_millisecond_a_clone(networked, count, state):
    """Whole calls in turn, with identity and without; random MAC addresses in both, for equal ones get no addresses of their own.

    Starting a hundred containers takes some tenths of a second more or less each time, which is more than what is looked for: that row
    is for information, and a thousand that are not started tell.
    """
    items = ("hostname", "machine_id", "ssh_host_keys", "random_seed", "dhcp", "cloud_init")
    times = {True: [], False: []}
    for wanted in (True, False, False, True) * 2:
        options = {"source": "golden", "name": f"n[1:{count}]", "state": state, "wait_for": "network", "lxcpath": networked.lxcpath, "detail": "summary"}
        options["identity"] = {**dict.fromkeys(items, wanted), "hwaddr": "random"}
        times[wanted].append(seconds(lambda: networked.ansible("-m", "lxc_clone", "-a", json.dumps(options))))  # noqa: B023
        networked.empty()
    own, shared = min(times[True]), min(times[False])
    each = (own - shared) * 1000 / count
    ROWS.append(Row(f"{count} clones, {state}, each itself", own, "the same without identity", shared, own / shared, f"{each:.2f} ms a clone ≤ 1"))
    assert each <= 1 or state == "started", times


def test_a_hundred_clones_against_a_module_in_a_loop(bench, compare, tmp_path):
    collections = published("community.general")
    task = {
        "name": "Clone",
        "community.general.lxc_container": {
            "name": "golden",
            "clone_name": "n{{ item }}",
            "clone_snapshot": True,
            "backing_store": "overlayfs",
            "lxc_path": bench.lxcpath,
            "state": "stopped",
        },
        "loop": "{{ range(1, 101) | list }}",
    }
    playbook = tmp_path / "loop.yml"
    playbook.write_text(yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "tasks": [task]}]))
    compare(
        "100 stopped overlay clones: ansible -m lxc_clone",
        lambda: bench.clone(source="golden", name="n[1:100]"),
        "community.general.lxc_container in a loop",
        lambda: run("ansible-playbook", "-e", "ansible_python_interpreter=/usr/bin/python3", playbook, ANSIBLE_COLLECTIONS_PATH=collections),
        at_most=1 / 15,
        runs=1,
        check=made(bench, 100),
    )
