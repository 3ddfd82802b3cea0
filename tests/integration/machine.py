# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A place where a test may mount and write settings as the host's root does, and nothing of it is seen or left outside."""

from __future__ import annotations

import subprocess

from checkout import ROOT
from conftest import sh


class Machine:
    """This machine, with mounts, sockets (which LXC finds running containers by) and an /etc of its own."""

    def __init__(self, directory):
        self.directory = directory
        self.holder = subprocess.Popen(["unshare", "--mount", "--net", "sh", "-c", "echo; exec sleep infinity"], stdout=subprocess.PIPE)
        self.holder.stdout.readline()
        for name in ("upper", "work"):
            (directory / name).mkdir()
        self.sh(f"mount -t overlay -o lowerdir=/etc,upperdir={directory}/upper,workdir={directory}/work overlay /etc")

    def command(self, *argv):
        return ["nsenter", "--mount", "--net", "--target", str(self.holder.pid), "sh", "-c", f'cd {ROOT}; exec "$@"', "sh", *map(str, argv)]

    def sh(self, command):
        return sh(self.command("sh", "-c", command))

    def end(self):
        self.holder.kill()
        self.holder.wait()
