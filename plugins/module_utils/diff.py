# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A plan as Ansible's diff. Pure, like the planner.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

from typing import Iterable

from ansible_collections.fleet.lxc.plugins.module_utils.config import Config
from ansible_collections.fleet.lxc.plugins.module_utils.container import BROKEN, UNFINISHED, Container
from ansible_collections.fleet.lxc.plugins.module_utils.names import abridged
from ansible_collections.fleet.lxc.plugins.module_utils.plan import GROW, START, STOP, Item, Plan

_Change = tuple[str, tuple[str, ...], tuple[str, ...]]  # a key, its lines before, its lines after


def render(plan: Plan) -> dict[str, str]:
    """The plan as Ansible's diff: what each container that changes is, and what it will be.

    Lines of configuration that several containers share, but for their names, come once, at the end.
    """
    before, after = [], []
    changes = {item.name: list(_config_changes(item)) for item in plan.items}
    shared: dict[_Change, list[str]] = {}
    for name, changed in changes.items():
        for change in changed:
            shared.setdefault(_of_any(name, change), []).append(name)
    for item in plan.items:
        if not item.changed:
            continue
        before.append(f"{item.name}: {_described(item.container)}\n")
        after.append(f"{item.name}: {_becomes(item)}\n")
        if GROW in item.steps:
            before.append(f"  size = {item.container.size}\n")
            after.append("  size = larger\n")
        for change in changes[item.name]:
            if len(shared[_of_any(item.name, change)]) == 1:
                before.extend(_lines(change[0], change[1]))
                after.extend(_lines(change[0], change[2]))
    groups: dict[tuple[str, ...], list[_Change]] = {}
    for change, names in shared.items():
        if len(names) > 1:
            groups.setdefault(tuple(names), []).append(change)
    for names, common in groups.items():
        for side, texts in ((1, before), (2, after)):
            lines = [line for change in common for line in _lines(change[0], change[side])]
            if lines:
                texts.append(f"{abridged(names)}:\n")
                texts.extend(lines)
    return {"before": "".join(before), "after": "".join(after), "before_header": "containers", "after_header": "containers"}


def _of_any(name: str, change: _Change) -> _Change:
    key, *sides = change
    return key, *(tuple(value.replace(name, "{name}") for value in values) for values in sides)


def _lines(key: str, values: Iterable[str]) -> list[str]:
    return [f"  {key} = {value}".rstrip() + "\n" for value in values]


def _config_changes(item: Item) -> Iterable[_Change]:
    """Each key that a task changes."""
    if item.creation:
        was, becomes, keys = Config(), item.creation.config, item.creation.provenance.inherited.keys()
    elif item.configured:
        was, becomes, keys = item.container.config, item.configured, {*item.record.inherited, *item.container.provenance.inherited, "lxc.uts.name"}
    else:
        return
    for key in sorted(keys):
        old, new = (tuple(value for name, value in config.items() if name == key) for config in (was, becomes))
        if old != new:
            yield key, old, new


def _becomes(item: Item) -> str:
    if item.creation:
        made = item.creation.provenance
        return f"{item.state}, {made.method} of {made.source}" + (f" generation {made.generation}" if made.generation else "")
    return f"{item.state}{', restarted' if STOP in item.steps and START in item.steps else ''}"


def _described(container: Container | None) -> str:
    if container is None:
        return "absent"
    return {UNFINISHED: "unfinished", BROKEN: f"broken ({container.damage})"}.get(container.kind, container.state)
