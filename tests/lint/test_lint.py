# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Linters over the whole checkout, each a test of its own."""

from __future__ import annotations

import pytest
from checkout import ROOT, run

LAB = [f"tests/storage_lab/{name}" for name in ("lab", "init", "build-kernel", "build-image")]
SCRIPTS = ["test", "quickstart", ".ci/run", *LAB, *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("roles/*/files/*.sh"))]
LINTERS = {
    "ansible-lint": ["ansible-lint", "--offline", "--profile", "production"],
    "yamllint": ["yamllint", "--strict", "."],
    "shellcheck": ["shellcheck", *SCRIPTS],
    "antsibull-changelog": ["antsibull-changelog", "lint"],
    "antsibull-docs": ["antsibull-docs", "lint-collection-docs", "--plugin-docs", "."],
    "reuse": ["reuse", "lint", "--lines"],
}


@pytest.mark.parametrize("linter", LINTERS)
def test_is_clean(collection, linter):
    run(*LINTERS[linter], cwd=collection, ANSIBLE_COLLECTIONS_PATH=collection.parents[2])
