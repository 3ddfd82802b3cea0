# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who may import whom, as docs/ARCHITECTURE.md says."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

UTILS = Path(__file__).resolve().parents[2] / "plugins" / "module_utils"
PREFIX = "ansible_collections.fleet.lxc.plugins.module_utils"
FILES = {str(path.relative_to(UTILS).with_suffix("")).replace("/", "."): path for path in UTILS.rglob("*.py") if path.name != "__init__.py"}
DRIVERS = {"storage.directory", "storage.overlay", "storage.btrfs", "storage.loop", "storage.lvm", "storage.zfs"}
# From the ground up; a file may import those of lower layers and its own.
LAYERS = [
    {"errors"},
    {"command", "locks", "mounts"},
    {"names", "keys", "config", "capabilities", "guest", "disk", "dpkg", "cgroups", "identity"},
    {"container", "addresses"},
    {"records", "merge"},
    {"bookkeeping"},
    {"storage.driver", "storage.filesystem", "storage.libzfs", "storage.lvm_report"},
    DRIVERS,
    {"storage.registry", "readiness", "plan", "diff"},
    {"host", "seal", "neighbours"},
    {"wanted", "apply", "waiting"},
    {"fleet", "base_plan", "base_apply", "pool"},
    {"pool_btrfs", "pool_lvm", "pool_zfs"},
    {"bases", "pools"},
]


def imported(path):
    """The modules that a file imports: (ours, others)."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module in (PREFIX, f"{PREFIX}.storage") else [node.module]
        for name in names:
            if name.startswith(f"{PREFIX}."):
                ours.add(name[len(PREFIX) + 1 :])
            else:
                others.add(name.split(".")[0])
    return ours, others


def test_every_file_has_its_layer():
    assert set().union(*LAYERS) == set(FILES)


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_file_imports_upward(name):
    layer = next(index for index, files in enumerate(LAYERS) if name in files)
    allowed = set().union(*LAYERS[: layer + 1]) - {name}
    if name in DRIVERS:
        # One driver may use another's pieces only through the interface's file.
        allowed -= DRIVERS
    assert imported(FILES[name])[0] <= allowed


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_managed_host_needs_the_standard_library_only(name):
    assert imported(FILES[name])[1] <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("name", ["plan", "merge", "addresses"])
def test_the_planner_is_pure(name):
    assert imported(FILES[name])[0] <= {"config", "container", "names", "errors", "capabilities", "merge", "addresses"}
    assert not imported(FILES[name])[1] & {"os", "subprocess", "pathlib", "shutil", "socket"}


def test_one_place_starts_processes():
    assert {name for name, path in FILES.items() if imported(path)[1] & {"subprocess"}} == {"command"}
