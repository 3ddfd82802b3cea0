# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The examples of docs/storage are run, and their commands say what the pages say.

A block after ``<!-- run -->`` is a list of tasks, or a session of root's: what follows a command is its output, ``…`` whatever there is
more. ``<!-- run: lvm -->`` needs a kernel with LVM.
"""

from __future__ import annotations

import os
import re
import subprocess
import uuid

import pytest
import yaml
from checkout import ROOT, run
from conftest import need_lvm, need_zfs, sh
from machine import Machine

PAGES = sorted(path for path in ROOT.glob("docs/storage/*.md") if path.name != "README.md")
BLOCK = re.compile(r"<!-- run(?:: (\w+))? -->\n```(yaml|console)\n(.*?)```", re.S)
NEEDS = {"": lambda: None, "lvm": need_lvm, "zfs": need_zfs}


class Host(Machine):
    """A host whose LXC has no containers yet."""

    def __init__(self, directory):
        super().__init__(directory)
        for name in ("lxc", "srv"):
            (directory / name).mkdir()
        self.sh(f"mount --bind {directory}/lxc /var/lib/lxc")
        self.pools = {name: f"{name}{uuid.uuid4().hex[:6]}" for name in ("vg0", "tank")}

    def own(self, text):
        """The page's text with our own names for what this whole machine sees, and its template's outcome where there is one already."""
        for theirs, ours in [*self.pools.items(), ("/srv/", f"{self.directory}/srv/")]:
            text = text.replace(theirs, ours)
        archive = os.environ.get("FLEET_LXC_BUSYBOX")
        if archive:
            text = text.replace("template: busybox", f"rootfs_archive: {archive}")
        return text

    def yaml(self, text):
        playbook = self.directory / "play.yml"
        play = {"hosts": "localhost", "gather_facts": False, "tasks": yaml.safe_load(text)}
        playbook.write_text(yaml.safe_dump([play], sort_keys=False))
        said = run(*self.command("ansible-playbook", "--inventory", "localhost,", "--connection", "local", playbook))
        assert re.search(rf"ok={len(play['tasks'])} +changed={len(play['tasks'])} ", said), said

    def console(self, text):
        sessions = re.split(r"^# ", text, flags=re.M)[1:]
        assert sessions
        for session in sessions:
            command, _newline, expected = session.partition("\n")
            done = subprocess.run(self.command("sh", "-c", command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            pattern = ".*".join(re.escape(" ".join(part.split())) for part in expected.split("…"))
            assert re.fullmatch(pattern, " ".join(done.stdout.split())), f"{command} ended with {done.returncode}\n{done.stdout}"
            # A command may fail where the page shows how.
            assert done.returncode == 0 or expected, command

    def end(self):
        for mounted in sorted(self.sh(f"findmnt --noheadings --list --output TARGET | grep {self.directory}/srv || true").split(), reverse=True):
            self.sh(f"umount {mounted}")
        super().end()
        if (self.directory / "srv" / "lvm").exists():
            sh(["vgremove", "-q", "-f", "-y", self.pools["vg0"]], check=False)
            sh(f"losetup --noheadings --output NAME -j {self.directory}/srv/lvm | xargs -r losetup --detach")
        if (self.directory / "srv" / "zpool").exists():
            sh(["zpool", "destroy", "-f", self.pools["tank"]], check=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run_and_say_what_it_says(page, tmp_path):
    blocks = BLOCK.findall(page.read_text())
    assert len(blocks) == page.read_text().count("<!-- run") >= 2
    for needs, _kind, _text in blocks:
        NEEDS[needs]()
    host = Host(tmp_path)
    try:
        for _needs, kind, text in blocks:
            getattr(host, kind)(host.own(text))
    finally:
        host.end()
