# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.names import expand
from hypothesis import given
from hypothesis import strategies as st


def names(*patterns):
    return [name.name for name in expand(patterns)]


def test_a_plain_name_is_itself():
    assert names("web") == ["web"]


def test_a_range_keeps_its_zeros():
    assert names("web-[098:101]") == ["web-098", "web-099", "web-100", "web-101"]


def test_a_range_has_steps_letters_and_combinations():
    assert names("n[1:9:4]") == ["n1", "n5", "n9"]
    assert names("db-[a:c]") == ["db-a", "db-b", "db-c"]
    assert names("r[1:2]-[a:b]") == ["r1-a", "r1-b", "r2-a", "r2-b"]


def test_index_is_the_number_of_the_last_range_and_set_the_text_before_the_first():
    last = expand(["r[1:2]-n[07:08]"])[-1]
    assert (last.index, last.set) == (8, "r")
    assert expand(["web"])[0].index is None


@pytest.mark.parametrize(
    "bad",
    ["", "a/b", "..", "a..b", "a b", "a\nb", "-a", "a" * 64, "web-[5:1]", "web-[1:10001]", "web-[1:99999999999999999]",
     "[1:2", "web-[]", "web-[1]", "web-[1:]", "web-[1:2:0]", "web-[01:100]", "web-[b:a]", "web-[a:1]", "é", ".hidden"],
)  # fmt: skip
def test_a_bad_name_is_refused(bad):
    with pytest.raises(FleetError):
        expand([bad])


def test_a_name_twice_in_one_call_is_refused():
    with pytest.raises(FleetError, match="twice"):
        expand(["web-[1:3]", "web-2"])


def test_ten_thousand_names_are_the_limit_over_all_patterns():
    assert len(expand(["n[1:10000]"])) == 10_000
    with pytest.raises(FleetError, match="10,000"):
        expand(["n[1:9999]", "m[1:2]"])


@given(st.integers(0, 9000), st.integers(0, 300), st.integers(1, 7))
def test_a_range_is_what_python_says_it_is(first, length, step):
    assert names(f"n[{first}:{first + length}:{step}]") == [f"n{i}" for i in range(first, first + length + 1, step)]
