# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Makes ansible_collections.fleet.lxc importable from the checkout."""

from __future__ import annotations

import sys

import pytest
from checkout import ROOT, build_in, copy_to

sys.path.insert(0, str(ROOT / ".collections"))


@pytest.fixture(scope="session")
def collection(tmp_path_factory):
    """A copy of the checkout at a path that ends in ansible_collections/fleet/lxc."""
    return copy_to(tmp_path_factory.mktemp("copy"))


@pytest.fixture(scope="session")
def artefact(tmp_path_factory):
    """The tar archive that would be published."""
    return build_in(tmp_path_factory.mktemp("artefact"))
