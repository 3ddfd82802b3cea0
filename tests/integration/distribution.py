# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A real distribution: Debian 12 with systemd, DHCP and Python, made once from this machine's own mirror and kept in the cache directory."""

from __future__ import annotations

import hashlib
import os
import uuid

from checkout import CACHE
from conftest import sh

PACKAGES = "systemd-sysv,dbus,ifupdown,isc-dhcp-client,iproute2,python3,python3-apt"
# What the host needs to reach its mirror, the guest needs, too.
FURNISH = r"""
cd "$1"
apt-config dump | grep -E '^Acquire::(Check|http|https)' >etc/apt/apt.conf.d/90-as-on-the-host || :
printf 'auto lo\niface lo inet loopback\nauto eth0\niface eth0 inet dhcp\n' >etc/network/interfaces
echo debian >etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 debian\n' >etc/hosts
rm -f etc/resolv.conf
"""


def debian_with_systemd():
    """The path of a tar archive."""
    archive = CACHE / f"debian-systemd-{hashlib.sha256((PACKAGES + FURNISH).encode()).hexdigest()[:8]}.tar"
    if not archive.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        part = CACHE / f"debian-systemd.{uuid.uuid4().hex[:8]}.part.tar"
        mirrors = sh(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Label: Debian", "Codename: bookworm", "Component: main"]).split()
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", f"--customize-hook={FURNISH}", "bookworm"]
        sh(["timeout", "240", *command, str(part), *sorted(set(mirrors))[:1]])
        os.rename(part, archive)
    return str(archive)
