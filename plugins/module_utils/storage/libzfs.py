# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""ZFS without a process for each dataset: libzfs_core, which the command zfs stands on and which promises to stay as it is.

Starting ``zfs`` takes longer than what it does then, and a fleet does it twice for each clone. The library only says yes or no: after
a no the command is asked, which has words for it.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import ctypes
from typing import Mapping, Union

# Numbers of the properties that have names in the command (sys/fs/zfs.h); they are on disk, so they stay.
CANMOUNT_NOAUTO, ACLTYPE_POSIX, XATTR_SA = 2, 1, 2
Properties = Mapping[str, Union[str, int]]


class LibZfs:
    """:raises OSError: there is no such library here, or no ZFS in the kernel."""

    def __init__(self) -> None:
        self._pairs, self._core = ctypes.CDLL("libnvpair.so.3"), ctypes.CDLL("libzfs_core.so.3")
        if self._core.libzfs_core_init() != 0:
            raise OSError("libzfs_core_init")

    def snapshot(self, name: str, properties: Properties) -> bool:
        """Make a snapshot; whether it was made."""
        names, given, errors = self._list({}, flag=name), self._list(properties), ctypes.c_void_p()
        try:
            return self._core.lzc_snapshot(names, given, ctypes.byref(errors)) == 0
        finally:
            for one in (names, given, errors):
                self._pairs.nvlist_free(one)

    def clone(self, name: str, snapshot: str, properties: Properties) -> bool:
        """Make a dataset that stands on a snapshot; whether it was made."""
        given = self._list(properties)
        try:
            return self._core.lzc_clone(name.encode(), snapshot.encode(), given) == 0
        finally:
            self._pairs.nvlist_free(given)

    def _list(self, values: Properties, flag: str = "") -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        if self._pairs.nvlist_alloc(ctypes.byref(made), 1, 0) != 0:  # NV_UNIQUE_NAME
            raise MemoryError
        for key, value in values.items():
            if isinstance(value, int):
                self._pairs.nvlist_add_uint64(made, key.encode(), ctypes.c_uint64(value))
            else:
                self._pairs.nvlist_add_string(made, key.encode(), value.encode())
        if flag:
            self._pairs.nvlist_add_boolean(made, flag.encode())
        return made
