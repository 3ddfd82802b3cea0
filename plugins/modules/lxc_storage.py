#!/usr/bin/python
# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lxc_storage
short_description: Prepare a btrfs filesystem, an LVM volume group or a ZFS dataset for LXC containers
version_added: 0.1.0
description:
  - Makes the storage that containers are kept on, on a block device, or for trials on a sparse file.
  - A device that is not empty is refused, with what is on it and what uses it. Empty is one without a signature or partition, that nothing
    uses and whose first and last MiB are zero. Nothing is ever overwritten or forced.
  - After a reboot a filesystem is mounted again by C(/etc/fstab) and a pool on a device is found by its own services.
    A VG on a file is attached again by the next run of this module, and a pool that was not imported is imported.
  - The role P(fleet.lxc.host#role) calls this module, after it has installed what it needs.
options:
  state:
    description:
      - V(present) sees that the storage is there.
      - V(absent) removes storage that this module made. That is refused while anything is on it, in any subvolume of a filesystem
        and any dataset of a pool, and when the device or file that is named is not what it lies on.
    type: str
    choices: [present, absent]
    default: present
  btrfs:
    description:
      - A btrfs filesystem, mounted now and by C(/etc/fstab) at each boot. Another's line for the same mountpoint is used if it mounts
        this filesystem, and refused otherwise.
    type: dict
    suboptions:
      mountpoint:
        description: The empty or missing directory that it is mounted on.
        type: path
        required: true
      device: &device
        description:
          - The block device that it is made on, which must be empty. It is not needed for what exists.
          - With O(state=absent) what it lies on is left empty, as the first and last MiB are overwritten with zeros, whether or not it is named here.
        type: path
      file: &file
        description:
          - In place of a device, a sparse file that is made if it is missing. For trials.
          - With O(state=absent) it is removed. Where it is not named a filesystem or pool on a file is refused, and the file of a VG stays.
        type: path
      size: &size
        description:
          - The size of the file when it is made, such as V(10G). More than the disk has free is possible, and dangerous.
        type: str
  lvm:
    description:
      - An LVM volume group, and a thin pool in it.
    type: dict
    suboptions:
      vg:
        description: The name of the volume group.
        type: str
        required: true
      thinpool:
        description: The name of a thin pool. Without one, containers get thick volumes.
        type: str
      thinpool_size:
        description:
          - The size of the thin pool when it is made, such as V(100G). Default is 90 % of the volume group;
            the rest lets its metadata grow.
        type: str
      device: *device
      file: *file
      size: *size
  zfs:
    description:
      - A ZFS dataset, and the pool that it is in.
    type: dict
    suboptions:
      dataset:
        description:
          - The dataset below which containers get theirs, such as V(tank/lxc). Its first part names the pool.
          - It is made with POSIX ACLs, which guests need, and without a mountpoint.
        type: str
        required: true
      device: *device
      file: *file
      size: *size
  timeout:
    description:
      - How many seconds one command may take.
    type: int
    default: 600
  lock_timeout:
    description:
      - How many seconds to wait for another run of this module.
    type: int
    default: 300
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
requirements:
  - Linux, Python 3.9 or later
  - btrfs-progs for btrfs, lvm2 and thin-provisioning-tools for LVM, zfsutils-linux and its kernel module for ZFS
author:
  - fleet.lxc contributors (@fleet-lxc)
seealso:
  - module: fleet.lxc.lxc_base
"""

EXAMPLES = r"""
- name: A btrfs filesystem on a file, for trials
  fleet.lxc.lxc_storage:
    btrfs:
      mountpoint: /srv/lxc
      file: /srv/lxc.btrfs
      size: 10G

- name: A volume group with a thin pool
  fleet.lxc.lxc_storage:
    lvm:
      vg: containers
      thinpool: thin
      device: /dev/sdb

- name: A dataset in a pool of its own
  fleet.lxc.lxc_storage:
    zfs:
      dataset: tank/lxc
      device: /dev/sdc

- name: No filesystem any more, if nothing is on it
  fleet.lxc.lxc_storage:
    state: absent
    btrfs:
      mountpoint: /srv/lxc
      file: /srv/lxc.btrfs
      size: 10G
"""

RETURN = r"""
actions:
  description: The steps taken.
  returned: success
  type: list
  elements: str
  sample: [make the VG containers on /dev/sdb, make the thin pool containers/thin]
diff:
  description: The steps that are missing from what is wanted.
  returned: in diff mode
  type: dict
  sample: {before: "", after: "make the VG containers on /dev/sdb\n"}
kind:
  description: The kind of the error, as in M(fleet.lxc.lxc_clone).
  returned: failure
  type: str
  sample: conflict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.pools import STORAGE_ARGUMENTS, StorageCall


def main() -> None:
    module = AnsibleModule(argument_spec=STORAGE_ARGUMENTS, supports_check_mode=True)
    try:
        result = StorageCall(module.params).run(module.check_mode)
    except FleetError as error:
        module.fail_json(msg=str(error), kind=error.kind)
    if not module._diff:  # pylint: disable=protected-access
        del result["diff"]
    module.exit_json(**result)


if __name__ == "__main__":
    main()
