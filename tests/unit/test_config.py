# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import itertools

import pytest
from ansible_collections.fleet.lxc.plugins.module_utils.config import Config, check_options, derive, fill, split_line
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from hypothesis import given
from hypothesis import strategies as st

BASE = """# a comment
lxc.include = /usr/share/lxc/config/common.conf
lxc.uts.name = "golden"
lxc.rootfs.path = dir:/p/golden/rootfs
lxc.net.0.type = veth
lxc.net.0.hwaddr = 00:16:3e:aa:bb:cc
lxc.hook.pre-start = /p/golden/fleet.lxc.guard
lxc.hook.pre-start = /p/golden/hooks/start.sh arg
lxc.hook.mount = /usr/share/hook
lxc.hook.post-stop = /p/golden2/stop.sh
lxc.mount.fstab = /p/golden/fstab
lxc.mount.entry = /a b overlay lowerdir=/l,upperdir=/p/golden/u,workdir=/p/golden/w 0 0

lxc.environment = A=1
"""


def derived():
    macs = (f"00:16:3e:00:00:{n:02x}" for n in itertools.count())
    return derive(Config.parse(BASE), "/p/golden", "web-1", "/q/web-1", "overlay:/p/golden/rootfs:/q/web-1/overlay/delta", lambda: next(macs))


def test_a_clone_gets_its_own_name_rootfs_and_mac():
    config, _files = derived()
    assert config.get("lxc.uts.name") == "web-1"
    assert config.get("lxc.rootfs.path") == "overlay:/p/golden/rootfs:/q/web-1/overlay/delta"
    assert config.get("lxc.net.0.hwaddr") == "00:16:3e:00:00:00"


def test_hooks_and_fstab_under_the_base_move_along_and_the_guard_stays_behind():
    config, files = derived()
    assert config.get_all("lxc.hook.pre-start") == ["/q/web-1/hooks/start.sh arg"]
    assert files == {"/p/golden/hooks/start.sh": "/q/web-1/hooks/start.sh", "/p/golden/fstab": "/q/web-1/fstab"}
    assert config.get("lxc.mount.fstab") == "/q/web-1/fstab"
    assert "upperdir=/q/web-1/u,workdir=/q/web-1/w" in config.get("lxc.mount.entry")


def test_what_is_not_the_bases_stays_comments_included():
    config, _files = derived()
    assert config.get("lxc.hook.post-stop") == "/p/golden2/stop.sh"
    assert config.get("lxc.hook.mount") == "/usr/share/hook"
    assert {"# a comment", "", "lxc.environment = A=1"} <= set(config.lines)


def test_a_key_that_an_include_could_override_goes_to_the_end():
    config = Config.parse("lxc.a = 1\nlxc.include = x\n")
    config.set("lxc.a", ["2"])
    assert config.lines == ["lxc.include = x", "lxc.a = 2"]


def test_an_empty_value_clears_what_was_before():
    assert Config.parse("lxc.cap.drop = a\nlxc.cap.drop =\nlxc.cap.drop = b\n").get_all("lxc.cap.drop") == ["b"]


@given(st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"])))
def test_a_configuration_survives_the_round_trip(text):
    expected = text if not text or text.endswith("\n") else text + "\n"
    assert str(Config.parse(text)) == expected


@given(st.from_regex(r"lxc\.[a-z.]{1,20}", fullmatch=True), st.lists(st.from_regex(r"[a-z0-9=/:]{1,20}", fullmatch=True), max_size=4))
def test_what_is_set_is_read_back(key, values):
    config = Config.parse(BASE)
    config.set(key, values)
    assert config.get_all(key) == values


def test_lines_are_read_as_liblxc_reads_them():
    assert split_line("  lxc.uts.name = 'a b' ") == ("lxc.uts.name", "a b")
    assert split_line("# lxc.uts.name = a") is None
    assert split_line("foo = bar") is None


@pytest.mark.parametrize(
    "options",
    [{"lxc.rootfs.path": "x"}, {"lxc.rootfs.mount": "x"}, {"lxc.uts.name": "x"}, {"lxc.idmap": "x"}, {"lxc.include": "x"}, {"foo": "x"},
     {"lxc.a\nlxc.b": "x"}, {"lxc.environment": "a\nlxc.rootfs.path = b"}, {"lxc.environment": {"a": 1}}, {"lxc.hook.pre-start": "/x/fleet.lxc.guard"}],
)  # fmt: skip
def test_config_that_is_not_the_users_to_set_is_refused(options):
    with pytest.raises(FleetError):
        check_options(options)


def test_values_may_be_strings_numbers_lists_or_null():
    assert check_options({"lxc.start.auto": True, "lxc.a": [1, "b"], "lxc.b": None}) == {"lxc.start.auto": ["1"], "lxc.a": ["1", "b"], "lxc.b": []}


def test_placeholders_are_filled_and_doubled_braces_kept():
    assert fill("{name}-{index}-{{x}", "web-7", 7) == "web-7-7-{x}"
    for bad in ("{nam}", "{", "{index}"):
        with pytest.raises(FleetError):
            fill(bad, "web", None)
