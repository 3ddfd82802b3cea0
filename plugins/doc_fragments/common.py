# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  lxcpath:
    description:
      - The directory that holds the containers.
      - Default is LXC's own, as C(lxc-config lxc.lxcpath) tells it, usually C(/var/lib/lxc).
    type: path
  timeout:
    description:
      - How many seconds one command of LXC or of the backing store may take for one container.
    type: int
    default: 600
  lock_timeout:
    description:
      - How many seconds to wait for another run that works in the same O(lxcpath) or on the same base.
    type: int
    default: 300
  stop_timeout:
    description:
      - How many seconds an orderly shutdown of one container may take.
    type: int
    default: 30
  force_stop:
    description:
      - Kill a container that has not shut down within O(stop_timeout). Otherwise that is an error.
    type: bool
    default: false
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying target.
    support: full
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in C(check_mode)), when in diff mode.
    support: full
  platform:
    description: Target OS families that can be operated against.
    support: full
    platforms: linux
  action_group:
    description: Use C(group/fleet.lxc.lxc) in C(module_defaults) to set defaults for this module.
    support: full
    membership: [fleet.lxc.lxc]
requirements:
  - Linux with LXC 4.0 or later
  - Python 3.9 or later
  - rsync for full copies without reflinks and for overlay snapshots of overlay clones
  - btrfs-progs for btrfs, lvm2 for LVM, zfsutils-linux for ZFS
author:
  - fleet.lxc contributors (@fleet-lxc)
"""
