# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Twenty clones in one call against the commands by hand in a loop, on LVM and ZFS. Ratios only: machines differ.

The module's call is timed without the start of Python before it, which in the storage lab takes a second or two.
"""

from __future__ import annotations

import functools
import os
import time

import pytest
from conftest import sh

COUNT = 20
# What works by hand on thin LVM, where lxc-copy -s does not.
BY_HAND = """
i=1; while [ $i -le {count} ]; do
  lvcreate -q -y -s -kn -ay -n n$i {vg}/golden
  mkdir -p {lxcpath}/n$i/rootfs
  sed "s/golden/n$i/" {lxcpath}/golden/config >{lxcpath}/n$i/config
  i=$((i+1))
done
"""
LXC_COPY = "i=1; while [ $i -le {count} ]; do lxc-copy -P {lxcpath} -n golden -N n$i -s -B zfs; i=$((i+1)); done"


@pytest.fixture
def compare(record_property, volumes):
    """Times two ways in turn, removes what each made, and holds their ratio to a bound; what misses it is timed once more, and the best of each counts."""

    def timed(fleet, work, undo):
        os.sync()
        begin = time.perf_counter()
        work()
        taken = time.perf_counter() - begin
        made = [name for name in os.listdir(fleet.lxcpath) if name != "golden"]
        assert len(made) == COUNT and len([path for path in volumes.present() if "@" not in path]) == COUNT + 1
        undo()
        sh(["rm", "-rf", *map(fleet.path, made)])
        return taken

    def run(fleet, what, theirs, undo, at_most):
        ours = functools.partial(fleet.clone, source="golden", name=[f"n[1:{COUNT}]"], method="snapshot")
        pairs = []
        for _run in range(2):
            pairs.append((timed(fleet, ours, undo), timed(fleet, theirs, undo)))
            mine, others = map(min, zip(*pairs))
            if mine / others <= at_most:
                break
        figure = f"{what}: {mine:.1f} s against {others:.1f} s, a ratio of {mine / others:.2f}, at most {at_most}"
        record_property("figure", figure)
        assert mine / others <= at_most, f"{figure}: {pairs}"

    return run


def test_twenty_clones_on_thin_lvm_against_a_loop_of_lvcreate(base_on, volumes, compare):
    fleet, vg = base_on({"thinpool": "pool", "size": "64M"}), volumes.use("volume_group")
    compare(
        fleet,
        "lxc_clone of 20 on thin LVM against lvcreate -s and a configuration file, 20 times",
        lambda: sh(["sh", "-euc", BY_HAND.format(count=COUNT, vg=vg, lxcpath=fleet.lxcpath)]),
        lambda: sh(["lvremove", "-q", "-f", *(path for path in volumes.present() if not path.endswith("/golden"))]),
        at_most=1.1,
    )


def test_twenty_clones_on_zfs_against_a_loop_of_lxc_copy(base_on, compare):
    fleet = base_on()
    compare(
        fleet,
        "lxc_clone of 20 on ZFS against lxc-copy -s, 20 times",
        lambda: sh(["sh", "-euc", LXC_COPY.format(count=COUNT, lxcpath=fleet.lxcpath)]),
        lambda: sh(["zfs", "destroy", "-R", f"{fleet.rootfs('golden').path}@%"]),
        at_most=0.6,
    )
