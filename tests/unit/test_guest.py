# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import stat
import subprocess

import pytest
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.guest import ABSENT, SAME, WRITTEN, GuestRoot

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="overlay mounts and device nodes need root")


@pytest.fixture
def root(tmp_path):
    guest = tmp_path / "guest"
    (guest / "etc").mkdir(parents=True)
    (guest / "etc/hostname").write_text("golden\n")
    (guest / "etc/passwd").write_text("root:x:0:0\n")
    return guest


def replace(data, *layers, path="etc/hostname"):
    with GuestRoot([str(layer) for layer in layers]) as guest:
        return guest.replace(path, data)


def test_a_file_is_replaced_and_keeps_owner_and_mode(root):
    os.chmod(root / "etc/hostname", 0o640)
    assert replace(b"web\n", root) == WRITTEN
    assert (root / "etc/hostname").read_bytes() == b"web\n"
    assert stat.S_IMODE((root / "etc/hostname").stat().st_mode) == 0o640
    assert replace(b"web\n", root) == SAME
    assert sorted(os.listdir(root / "etc")) == ["hostname", "passwd"]


def test_an_absent_file_is_not_made(root):
    (root / "etc/hostname").unlink()
    assert replace(b"web\n", root) == ABSENT
    assert replace(b"web\n", root, path="no/such/file") == ABSENT


def test_a_hard_link_is_broken_and_not_written_through(root):
    os.link(root / "etc/hostname", root / "etc/other")
    replace(b"web\n", root)
    assert (root / "etc/other").read_text() == "golden\n"


@pytest.mark.parametrize("kind", ["link", "host link", "fifo", "directory"])
def test_what_is_no_regular_file_is_refused_and_nothing_written(root, tmp_path, kind):
    host, target = tmp_path / "host", root / "etc/hostname"
    host.write_text("host")
    target.unlink()
    {
        "link": lambda: target.symlink_to("/etc/passwd"),
        "host link": lambda: target.symlink_to(host),
        "fifo": lambda: os.mkfifo(target),
        "directory": target.mkdir,
    }[kind]()
    with pytest.raises(FleetError, match="regular"):
        replace(b"web\n", root)
    assert (root / "etc/passwd").read_text() == "root:x:0:0\n" and host.read_text() == "host"


@pytest.mark.parametrize("target", ["/", "../../..", "../../../../../etc"])
def test_a_directory_that_is_a_symlink_stays_within_the_guest(root, target):
    before = open("/etc/hostname", "rb").read() if os.path.exists("/etc/hostname") else None
    for name in ("hostname", "passwd"):
        (root / "etc" / name).unlink()
    (root / "etc").rmdir()
    (root / "etc").symlink_to(target)
    if target == "../../../../../etc":
        with pytest.raises(FleetError, match="loop"):
            replace(b"web\n", root)
    else:
        (root / "hostname").write_text("in the guest\n")
        assert replace(b"web\n", root) == WRITTEN
        assert (root / "hostname").read_text() == "web\n"
    assert before is None or open("/etc/hostname", "rb").read() == before


def test_a_loop_of_symlinks_ends(root):
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    with pytest.raises(FleetError, match="loop"):
        replace(b"", root, path="a/x")


@needs_root
@pytest.mark.parametrize("merged_usr", [False, True])
def test_a_write_into_a_delta_looks_through_overlay_as_if_the_guest_had_made_it(root, tmp_path, merged_usr):
    delta, work, point = (tmp_path / name for name in ("delta", "work", "point"))
    for path in (delta, work, point):
        path.mkdir()
    if merged_usr:
        (root / "usr").mkdir()
        (root / "etc").rename(root / "usr/etc")
        (root / "etc").symlink_to("usr/etc")
    real = root / ("usr/etc" if merged_usr else "etc")
    os.chown(real, 5, 6)
    os.chmod(real, 0o751)
    os.setxattr(real, "user.mark", b"x")
    assert replace(b"web\n", delta, root) == WRITTEN
    subprocess.run(["mount", "-t", "overlay", "-o", f"lowerdir={root},upperdir={delta},workdir={work}", "overlay", point], check=True)
    try:
        assert (point / "etc/hostname").read_text() == "web\n"
        assert (point / "etc/passwd").read_text() == "root:x:0:0\n"
        seen = (point / "etc").stat()
        assert (seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode)) == (5, 6, 0o751)
        assert os.getxattr(point / "etc", "user.mark") == b"x"
        assert os.path.islink(point / "etc") == merged_usr
    finally:
        subprocess.run(["umount", point], check=True)
    assert (real / "hostname").read_text() == "golden\n"


@needs_root
def test_whiteouts_and_opaque_directories_hide_what_is_below(root, tmp_path):
    delta = tmp_path / "delta"
    (delta / "etc").mkdir(parents=True)
    os.mknod(delta / "etc/hostname", stat.S_IFCHR, os.makedev(0, 0))
    assert replace(b"web\n", delta, root) == ABSENT
    with GuestRoot([str(delta), str(root)]) as guest:
        assert guest.read("etc/passwd") == b"root:x:0:0\n"
        os.setxattr(delta / "etc", "trusted.overlay.opaque", b"y")
    with GuestRoot([str(delta), str(root)]) as guest:
        assert guest.read("etc/passwd") is None
