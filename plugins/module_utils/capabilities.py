# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a backing store can do, as one plain record.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Capabilities:
    snapshot: bool = False
    reflink: bool = False  # a copy shares blocks where the filesystem can
    source_writable_with_clones: bool = True  # clones do not mind when what they were made of runs or changes
    parallel: bool = True  # several clones may be made at once
    parallel_start: bool = True  # several containers may be started at once
