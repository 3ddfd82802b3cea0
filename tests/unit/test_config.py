# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import itertools

import pytest
from ansible_collections.fleet.lxc.plugins.module_utils.config import Config, Includes, check_legacy, derive, mapped_root, split_line, with_keys
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.keys import check_options, fill
from hypothesis import assume, given
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
    return derive(Config.parse(BASE), "/p/golden", "web-1", "/q/web-1", "overlay:/p/golden/rootfs:/q/web-1/overlay/delta", lambda *_interface: next(macs))


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


def derived_from(text, **options):
    return derive(
        Config.parse(text), "/p/golden", "web-1", "/q/web-1", "dir:/q/web-1/rootfs", lambda _name, _index, old: old and "00:16:3e:00:00:01", **options
    )


def test_name_rootfs_and_fstab_go_to_the_end_in_liblxcs_order():
    config, files = derived_from(
        "lxc.mount.fstab = /old\nlxc.uts.name=golden\nlxc.mount.fstab = /etc/fstab\nlxc.rootfs.path=/p/golden/rootfs\nlxc.start.auto = 1\n"
    )
    assert config.lines == ["lxc.start.auto = 1", "lxc.rootfs.path = dir:/q/web-1/rootfs", "lxc.uts.name = web-1", "lxc.mount.fstab = /q/web-1/fstab"]
    assert files == {"/etc/fstab": "/q/web-1/fstab"}


def test_an_fstab_that_an_include_names_moves_along():
    config, files = derived_from("lxc.include = /x\n", expanded=Config.parse("lxc.mount.fstab = /p/golden/mounts\n"))
    assert config.get("lxc.mount.fstab") == "/q/web-1/mounts" and files == {"/p/golden/mounts": "/q/web-1/mounts"}


def test_an_fstab_that_depends_on_the_working_directory_is_refused():
    with pytest.raises(FleetError, match="no absolute path"):
        derived_from("lxc.mount.fstab = fstab\n")


def test_a_rewritten_line_keeps_its_spacing_and_quotes():
    config, _files = derived_from("lxc.hook.stop='/p/golden/h'  \n\tlxc.net.0.hwaddr =\t00:16:3E:xx:xx:xx\n")
    assert config.lines[:2] == ["lxc.hook.stop='/q/web-1/h'  ", "\tlxc.net.0.hwaddr =\t00:16:3e:00:00:01"]


def test_a_hooks_file_is_never_copied_out_of_the_clones_directory():
    lines = ["lxc.hook.stop = /p/golden/../other/h", "lxc.hook.stop = /p/golden/./../../etc/h arg"]
    config, files = derived_from("\n".join(lines) + "\n")
    assert config.lines[:2] == lines and files == {}


def test_a_hook_that_was_cleared_is_not_copied():
    assert derived_from("lxc.hook.stop = /p/golden/h\nlxc.hook =\n")[1] == {}


def test_includes_are_read_where_they_stand(tmp_path):
    (tmp_path / "more.d").mkdir()
    for name, text in (("one", f"lxc.include = {tmp_path}/more.d\nlxc.a = 2\n"), ("more.d/x.conf", "lxc.a = 1\n"), ("more.d/x", "lxc.a = 9\n")):
        (tmp_path / name).write_text(text)
    config = Config.parse(f"lxc.a = 0\nlxc.include = {tmp_path}/one\nlxc.include = {tmp_path}/absent.d/\nlxc.a = 3\n")
    assert config.expanded().get_all("lxc.a") == ["0", "1", "2", "3"]


def test_an_include_that_is_missing_or_endless_is_refused(tmp_path):
    (tmp_path / "self").write_text(f"lxc.include = {tmp_path}/self\n")
    for name, match in (("self", "without end"), ("missing", "cannot be read")):
        with pytest.raises(FleetError, match=match):
            Config.parse(f"lxc.include = {tmp_path}/{name}\n").expanded()


@pytest.mark.parametrize(
    "line", ["lxc.utsname = a", "lxc.rootfs=/a", "lxc.network.type = veth", " lxc.network.0.hwaddr = x", "lxc.limit.nofile = 1", "lxc.seccomp = /x"]
)
def test_keys_of_lxc_2_are_told_with_their_mend(line):
    with pytest.raises(FleetError, match="lxc-update-config"):
        check_legacy(Config([line]), "golden")


@pytest.mark.parametrize(
    "line", ["lxc.uts.name = a", "lxc.rootfs.path = dir:/a", "lxc.net.0.type = veth", "lxc.mount.entry = a b", "lxc.seccomp.profile = /x", "# lxc.utsname = a"]
)
def test_keys_of_today_are_not_taken_for_old_ones(line):
    check_legacy(Config([line]), "golden")


def test_the_root_of_an_unprivileged_container():
    assert mapped_root(Config.parse("lxc.idmap = u 0 100000 65536\nlxc.idmap = g 0 200000 65536\n")) == (100000, 200000)
    assert mapped_root(Config.parse("lxc.idmap = u 1000 1000 1\n")) is None


@pytest.fixture(scope="module")
def included(tmp_path_factory):
    """Files to include, as a base's template has them."""
    directory = tmp_path_factory.mktemp("included")
    texts = {
        "drops": "lxc.cap.drop = mac_admin\nlxc.cap.drop = sys_time\nlxc.hook.stop = /included\n",
        "clears": "lxc.hook =\nlxc.cap.drop =\nlxc.arch = amd64\n",
        "other": "lxc.pty.max = 9\n",
    }
    for name, text in texts.items():
        (directory / name).write_text(text)
    (directory / "nested").write_text(f"lxc.include = {directory}/drops\nlxc.start.auto = 0\n")
    return directory


def applied(config, keys, before=None, kept=()):
    return with_keys(config, keys, before or {}, Includes(), kept)


def test_a_key_goes_where_its_lines_stood_unless_an_include_after_them_sets_it(included):
    config = Config([f"lxc.cap.drop = a{n}" if n else "lxc.pty.max = 1" for n in range(2)] + [f"lxc.include = {included}/drops", "lxc.start.auto = 1"])
    config.set("lxc.pty.max", ["2"])
    config.set("lxc.cap.drop", ["b"])
    assert config.lines == ["lxc.pty.max = 2", "lxc.cap.drop = a1", f"lxc.include = {included}/drops", "lxc.start.auto = 1", "lxc.cap.drop = b"]


def test_what_an_include_set_is_replaced_and_comes_back(included):
    base = Config([f"lxc.include = {included}/nested", "lxc.cap.drop = sys_nice"])
    for values in ([], ["x"], ["x", "y"]):
        config, inherited = applied(base, {"lxc.cap.drop": values})
        assert config.expanded().get_all("lxc.cap.drop") == values
        assert applied(config, {}, inherited)[0] == base


def test_an_unset_key_that_nothing_sets_leaves_no_trace(included):
    base = Config([f"lxc.include = {included}/drops"])
    assert applied(base, {"lxc.pty.max": []})[0] == base


def test_no_empty_line_is_written_where_lxc_would_not_load_it(included):
    config, _inherited = applied(Config([f"lxc.include = {included}/clears"]), {"lxc.arch": ["i686"]})
    assert config.lines[1:] == ["lxc.arch = i686"]


def test_keys_that_a_task_does_not_speak_of_stay():
    config, inherited = applied(Config(["lxc.a = 0"]), {"lxc.a": ["1"], "lxc.b": ["2"]})
    config, inherited = applied(config, {"lxc.c": ["3"]}, inherited, kept={"lxc.a", "lxc.b"})
    assert config.lines == ["lxc.a = 1", "lxc.b = 2", "lxc.c = 3"] and inherited == {"lxc.a": ["0"], "lxc.b": [], "lxc.c": []}


KEYS = ["lxc.cap.drop", "lxc.hook", "lxc.hook.stop", "lxc.pty.max", "lxc.start.auto"]
VALUES = st.sampled_from(["", "1", "2", "'q'"])
TASK = st.dictionaries(st.sampled_from(KEYS), st.lists(VALUES, max_size=3), max_size=4)


def effective(config):
    config = config.expanded()
    return {key: config.get_all(key) for key in KEYS}


@given(st.lists(st.tuples(st.sampled_from([*KEYS, "lxc.include"]), st.integers(0, 3)), max_size=7), TASK, TASK)
def test_tasks_replace_each_other_and_the_last_dropped_key_leaves_what_was_there(included, lines, first, second):
    files = ["drops", "clears", "other", "nested"]
    base = Config(f"{key} = {included}/{files[n]}" if key == "lxc.include" else f"{key} = {['', '1', '3', 'x'][n]}".rstrip() for key, n in lines)
    one, inherited = applied(base, first)
    # A lxc.hook that clears the hooks before it has its place among them, and a line that was taken out loses that.
    assume(not ("lxc.hook" in {**first, **second} and any(line.startswith("lxc.hook =") for line in base.lines)))
    for key, values in first.items():
        assert effective(one)[key] == Config([f"{key} = {value}" for value in values]).get_all(key)
    assert applied(one, first, inherited) == (one, inherited)
    two, inherited = applied(one, second, inherited)
    assert (effective(two), inherited) == (effective(applied(base, second)[0]), applied(base, second)[1])
    none, inherited = applied(two, {}, inherited)
    assert effective(none) == effective(base) and sorted(none.lines) == sorted(base.lines) and inherited == {}


def test_an_empty_value_clears_what_was_before():
    assert Config.parse("lxc.cap.drop = a\nlxc.cap.drop =\nlxc.cap.drop = b\n").get_all("lxc.cap.drop") == ["b"]


@given(st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"])))
def test_a_configuration_survives_the_round_trip(text):
    expected = text if not text or text.endswith("\n") else text + "\n"
    assert str(Config.parse(text)) == expected


@given(st.from_regex(r"lxc\.[a-z.]{1,20}", fullmatch=True), st.lists(st.from_regex(r"[a-z0-9=/:]{1,20}", fullmatch=True), max_size=4))
def test_what_is_set_is_read_back(key, values):
    config = Config.parse(BASE.replace("lxc.include", "# lxc.include"))
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


@pytest.mark.parametrize(
    ("key", "today"),
    [
        ("lxc.aa_profile", "lxc.apparmor.profile"),
        ("lxc.network.type", "lxc.net.0.type"),
        ("lxc.network.1.ipv4", "lxc.net.1.ipv4.address"),
        ("lxc.limit.nofile", "lxc.prlimit.nofile"),
        ("lxc.kmsg", "nothing took its place"),
    ],
)
def test_a_key_of_lxc_2_is_refused_with_its_name_of_today(key, today):
    with pytest.raises(FleetError, match=today):
        check_options({key: "x"})


def test_values_may_be_strings_numbers_lists_or_null():
    assert check_options({"lxc.start.auto": True, "lxc.a": [1, "b"], "lxc.b": None}) == {"lxc.start.auto": ["1"], "lxc.a": ["1", "b"], "lxc.b": []}


def test_placeholders_are_filled_and_doubled_braces_kept():
    assert fill("{name}-{index}-{{x}", "web-7", 7) == "web-7-7-{x}"
    for bad in ("{nam}", "{", "{index}"):
        with pytest.raises(FleetError):
            fill(bad, "web", None)
