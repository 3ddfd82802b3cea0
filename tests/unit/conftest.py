# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How long an example takes is a matter of what else the machine does."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile("fleet", deadline=None)
hypothesis.settings.load_profile("fleet")
