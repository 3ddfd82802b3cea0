# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""dpkg in a guest: whether it waits for the disk after each file that it unpacks.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

from ansible_collections.fleet.lxc.plugins.module_utils.guest import GuestRoot

# dpkg reads files of this directory whose names have no dot (dpkg(1)).
DIRECTORY = "etc/dpkg/dpkg.cfg.d"
SETTING = f"{DIRECTORY}/fleet-lxc"
_CONTENT = b"""# Written by fleet.lxc (lxc_base, dpkg_unsafe_io). Much faster where fsync is slow; a power failure in the middle of an
# installation may leave empty files behind.
force-unsafe-io
"""


def unsafe_io(guest: GuestRoot) -> bool | None:
    """Whether our setting is there; None for a guest without dpkg."""
    if guest.stat(DIRECTORY) is None:
        return None
    return guest.read(SETTING) == _CONTENT


def set_unsafe_io(guest: GuestRoot, wanted: bool) -> bool:
    """Write or remove our setting.

    :returns: False for a guest without dpkg, which is left as it is.
    """
    if guest.stat(DIRECTORY) is None:
        return False
    if wanted:
        guest.write(SETTING, _CONTENT)
    else:
        guest.remove(SETTING)
    return True
