# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The planner, held against the design's state table and two laws: applied to its outcome it is empty, and it removes nothing foreign."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from ansible_collections.fleet.lxc.plugins.module_utils import diff
from ansible_collections.fleet.lxc.plugins.module_utils import plan as planner
from ansible_collections.fleet.lxc.plugins.module_utils.config import Config
from ansible_collections.fleet.lxc.plugins.module_utils.container import BROKEN, COMPLETE, FOREIGN, UNFINISHED, Container, Provenance, Rootfs
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.names import Name
from hypothesis import given
from hypothesis import strategies as st

STATES = ["present", "started", "stopped", "frozen", "restarted", "absent"]
P = "/p"


def provenance(name, origin="cloned", family="golden", inherited=None):
    return Provenance("id", name, P, origin, f"overlay:{P}/golden/rootfs:{P}/{name}/overlay/delta", family, inherited=inherited or {})


def container(name, kind=COMPLETE, state="stopped", family="golden", origin="cloned"):
    config = Config.parse(f"lxc.uts.name = {name}\nlxc.environment = A=0\n")
    rootfs = Rootfs("overlay", f"{P}/{name}/overlay/delta", f"{P}/golden/rootfs")
    record = None if kind == FOREIGN else provenance(name, origin, family)
    return Container(name, P, kind, state, 1 if state != "stopped" else None, config, rootfs, record)


def golden():
    return Container(
        "golden", P, COMPLETE, "stopped", None, Config.parse("lxc.uts.name = golden\n"), Rootfs("dir", f"{P}/golden/rootfs"), provenance("golden", "created")
    )


def make():
    counter = itertools.count()
    return planner.Make(
        "snapshot", lambda name: Rootfs("overlay", f"{P}/{name}/overlay/delta", f"{P}/golden/rootfs"), lambda: f"id{next(counter)}", lambda: "", "", "1"
    )


def plan(containers, state, names=("web",), config=None, dependents=None, **more):
    clones = tuple(planner.WantedClone(Name(name), config or {}) for name in names)
    return planner.plan(planner.Wanted(clones, state, P, golden(), "golden", **more), {c.name: c for c in containers}, dependents or {}, make())


TABLE = {
    None: ["create", "create start", "create", "create start freeze", "create start", ""],
    "stopped": ["", "start", "", "start freeze", "start", "remove"],
    "running": ["", "", "stop", "freeze", "stop start", "stop remove"],
    "frozen": ["", "unfreeze", "unfreeze stop", "", "unfreeze stop start", "unfreeze stop remove"],
}


@pytest.mark.parametrize(("found", "state", "steps"), [(found, state, steps) for found, row in TABLE.items() for state, steps in zip(STATES, row)])
def test_the_state_table(found, state, steps):
    existing = [container("web", state=found)] if found else []
    assert " ".join(plan(existing, state).items[0].steps) == steps


@pytest.mark.parametrize("state", STATES)
def test_an_unfinished_clone_is_swept_and_made_anew(state):
    steps = plan([container("web", UNFINISHED)], state).items[0].steps
    assert steps[0] == "sweep" and (steps[1:2] == ("create",)) == (state != "absent")


@pytest.mark.parametrize("state", STATES[:-1])
@pytest.mark.parametrize(
    "found", [container("web", BROKEN), container("web", FOREIGN), container("web", family="other"), container("web", origin="created")], ids=lambda c: c.kind
)
def test_what_is_broken_or_not_a_clone_of_the_family_is_refused(found, state):
    with pytest.raises(FleetError, match="web"):
        plan([found], state)


def test_absent_removes_the_broken_and_refuses_the_foreign_and_bases():
    assert plan([container("web", BROKEN)], "absent").items[0].steps == ("remove",)
    assert plan([container("web", FOREIGN)], "absent", foreign=True).items[0].steps == ("remove",)
    for found in (container("web", FOREIGN), container("web", family="other"), container("web", origin="adopted")):
        with pytest.raises(FleetError, match="web"):
            plan([found], "absent")


def test_dependents_block_a_removal_or_go_first_with_cascade():
    one, two = container("one"), container("two")
    with pytest.raises(FleetError, match="two"):
        plan([one, two], "absent", ["one"], dependents={"one": [two]})
    assert [i.name for i in plan([one, two], "absent", ["one"], dependents={"one": [two]}, cascade=True).items] == ["two", "one"]
    assert [i.name for i in plan([one, two], "absent", ["one", "two"], dependents={"one": [two]}).items] == ["two", "one"]


@pytest.mark.parametrize("two", [container("two", FOREIGN), container("two", state="running")], ids=["foreign", "running"])
def test_cascade_spares_what_is_foreign_or_runs(two):
    with pytest.raises(FleetError, match="two"):
        plan([container("one"), two], "absent", ["one"], dependents={"one": [two]}, cascade=True)


def test_a_changed_config_is_drift_and_a_dropped_key_gets_its_lines_back():
    first = plan([container("web", state="running")], "present", config={"lxc.environment": ["A=1"]}).items[0]
    assert first.steps == ("configure",) and first.restart_required
    left = planner.outcome(first)
    assert left.config.get_all("lxc.environment") == ["A=1"]
    dropped = planner.outcome(plan([left], "present").items[0])
    assert dropped.config.get_all("lxc.environment") == ["A=0"]


FOUND = st.sampled_from([None, *(container("web", state=s) for s in ("stopped", "running", "frozen")), container("web", UNFINISHED)])
CONFIG = st.dictionaries(st.sampled_from(["lxc.environment", "lxc.start.auto", "lxc.cap.drop"]), st.lists(st.sampled_from(["1", "2", "A=0"]), max_size=3))


@given(FOUND, st.sampled_from([s for s in STATES if s != "restarted"]), CONFIG)
def test_a_plan_applied_to_its_own_outcome_is_empty(found, state, config):
    item = plan([found] if found else [], state, config=config).items[0]
    left = planner.outcome(item)
    assert not plan([left] if left else [], state, config=config).changed


@given(st.lists(st.sampled_from([COMPLETE, FOREIGN, BROKEN, UNFINISHED]), min_size=1, max_size=6), st.data())
def test_no_step_removes_what_is_not_ours(kinds, data):
    existing = [container(f"c{i}", kind) for i, kind in enumerate(kinds)]
    names = data.draw(st.lists(st.sampled_from([c.name for c in existing]), min_size=1, unique=True))
    try:
        result = plan(existing, data.draw(st.sampled_from(STATES)), names, cascade=data.draw(st.booleans()))
    except FleetError:
        return
    for item in result.items:
        if {"remove", "sweep"} & set(item.steps):
            assert item.container.kind != FOREIGN and item.name in names


def test_the_diff_names_exactly_what_changes():
    result = diff.render(plan([container("one")], "present", ["one", "two", "three"]))
    assert [line.split(":")[0] for line in result["after"].splitlines()] == ["two", "three"]


def test_a_volume_grows_and_is_never_made_smaller():
    found = dataclasses.replace(container("web"), size=100 << 20, granule=4 << 20)

    def grow(size):
        return plan([found], "present", size=size << 20).items[0].steps

    assert (grow(99), grow(100), grow(101)) == ((), (), ("grow",))
    with pytest.raises(FleetError, match="web: has 104857600 bytes and is not made smaller"):
        grow(96)
    with pytest.raises(FleetError, match="no size of its own"):
        plan([container("web")], "present", size=1 << 30)
