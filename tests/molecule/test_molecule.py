# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The scenario in extensions/molecule: the role fleet twice, the second run without a change."""

from __future__ import annotations

import re

from checkout import run


def test_default_scenario(collection, tmp_path):
    said = run(
        "molecule", "test", "--scenario-name", "default", cwd=collection, ANSIBLE_COLLECTIONS_PATH=collection.parents[2], MOLECULE_EPHEMERAL_DIRECTORY=tmp_path
    )
    for step in ("create", "converge", "idempotence", "verify", "destroy"):
        assert re.search(rf"{step}.*Executed: Successful", said), said
