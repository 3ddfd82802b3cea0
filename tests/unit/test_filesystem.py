# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is refused before a device grows, for afterwards it is too late."""

from __future__ import annotations

import pytest
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.storage.filesystem import require_growth

MIB = 1 << 20


class Runner:
    """Every tool is there."""

    def require(self, *tools):
        pass


@pytest.fixture
def device(tmp_path):
    def make(magic=b"", at=0):
        path = tmp_path / "device"
        with open(path, "wb") as file:
            file.truncate(MIB)
            file.seek(at)
            file.write(magic)
        return str(path)

    return make


def test_btrfs_is_not_resized_to_less_than_the_kernel_does(device):
    path = device(b"_BHRfS_M", 0x10040)
    with pytest.raises(FleetError, match="256 MiB"):
        require_growth(Runner(), path, 255 * MIB)
    require_growth(Runner(), path, 256 * MIB)


def test_what_is_no_known_filesystem_is_not_grown(device):
    with pytest.raises(FleetError, match="neither ext4 nor XFS nor btrfs"):
        require_growth(Runner(), device(), 512 * MIB)
    require_growth(Runner(), device(b"XFSB"), 512 * MIB)
    require_growth(Runner(), device(b"\x53\xef", 0x438), 512 * MIB)
