# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The option ipv4: which ranges there are, and that a clone keeps what it got, alone, whoever joins or leaves."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from ansible_collections.fleet.lxc.plugins.module_utils.addresses import Assigner, Holder, interfaces, parse
from ansible_collections.fleet.lxc.plugins.module_utils.config import Config
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from hypothesis import given
from hypothesis import strategies as st

P = "/p"
ETH0 = Config.parse("lxc.net.0.type = veth\nlxc.net.0.flags = up\n")


@pytest.mark.parametrize(
    ("text", "gateway", "match"),
    [
        ("10.0.2.11", None, "no range"),
        ("10.0.2.11-10.0.2.12", None, "no range"),
        ("10.0.2.256/24", None, "no range"),
        ("10.0.2.1/33", None, "no range"),
        ("web/24", None, "no range"),
        ("10.0.2.12-10.0.2.11/24", None, "ends before it begins"),
        ("10.0.2.11-10.0.3.54/24", None, "not within one network"),
        ("10.0.2.0-10.0.2.9/24", None, "network address"),
        ("10.0.2.250-10.0.2.255/24", None, "broadcast address"),
        ("127.0.0.2/8", None, "loopback"),
        ("224.0.0.2/8", None, "multicast"),
        ("10.0.2.11/24", "10.0.3.1", "outside of 10.0.2.0/24"),
        ("10.0.2.11-10.0.2.20/24", "10.0.2.12", "within ipv4"),
        ("10.0.2.11/24", "10.0.2.255", "network or broadcast"),
        ("10.0.2.11/24", "eth0", "no address"),
        ("10.0.2.11/24", "10.0.2.1/24", "no address"),
        ("", "10.0.2.1", "stands without ipv4"),
    ],
)
def test_a_range_that_cannot_be_is_refused(text, gateway, match):
    with pytest.raises(FleetError, match=match):
        parse(text, gateway)


def test_a_range_is_inclusive_and_may_be_one_address():
    assert len(parse("10.0.2.11-10.0.3.54/23", "10.0.2.1")) == 300
    assert str(parse(" 10.0.3.7/24 ", "auto")) == "10.0.3.7/24" and len(parse("10.0.3.7/32", "dev")) == 1
    assert len(parse("10.0.3.6-10.0.3.7/31", "")) == 2  # RFC 3021
    assert parse("", None) is None


def assigner(pool, assigned=None, by_hand=None, holders=(), kin=()):
    addresses = {name: IPv4Address(address) for name, address in (assigned or {}).items()}
    return Assigner(parse(pool, None), P, addresses, by_hand or {}, holders, kin)


def given_to(one, name, config=ETH0, by_hand=()):
    return one.keys(name, config, by_hand)["lxc.net.0.ipv4.address"][0]


NAMES = [f"n{number}" for number in range(8)]


@given(st.lists(st.lists(st.sampled_from(NAMES), unique=True), max_size=6), st.lists(st.sampled_from(NAMES), unique=True))
def test_each_keeps_its_address_alone_and_in_the_range(calls, leaving):
    pool = parse("10.0.2.250-10.0.3.9/23", None)
    assigned = {}
    for call in calls:
        before = dict(assigned)
        one = Assigner(pool, P, assigned, {})
        for name in call:
            assigned[name] = IPv4Address(given_to(one, name).partition("/")[0])
        assert all(assigned[name] == address for name, address in before.items())
        assert len(set(assigned.values())) == len(assigned) and all(address in pool for address in assigned.values())
        lowest = sorted(assigned.values())[-1:] if not before else []
        assert all(int(address) - int(pool.first) == len(assigned) - 1 for address in lowest)  # without a gap
        for name in leaving[: len(leaving) // 2]:
            assigned.pop(name, None)


def test_who_is_outside_of_a_changed_range_gets_another():
    one = assigner("10.0.2.20-10.0.2.29/24", {"in": "10.0.2.21", "out": "10.0.2.11"})
    assert [given_to(one, name) for name in ("out", "new", "in")] == ["10.0.2.20/24", "10.0.2.22/24", "10.0.2.21/24"]


def test_kin_are_stepped_over_and_keep_what_they_have_by_other_means():
    holders = [Holder(IPv4Address("10.0.2.11"), P, "golden"), Holder(IPv4Address("10.0.2.13"), P, "dhcp")]
    one = assigner("10.0.2.11-10.0.2.19/24", {"gone": "10.0.2.12"}, {"hand": [IPv4Address("10.0.2.14")]}, holders, {(P, "golden"), (P, "dhcp")})
    assert [given_to(one, name) for name in ("new", "dhcp", "other")] == ["10.0.2.15/24", "10.0.2.13/24", "10.0.2.16/24"]


@pytest.mark.parametrize(("holder", "said"), [(Holder(IPv4Address("10.0.2.12"), "/q", "db"), "/q/db"), (Holder(IPv4Address("10.0.2.12")), "this host")])
def test_a_range_that_holds_the_address_of_another_is_refused(holder, said):
    with pytest.raises(FleetError, match=f"overlaps.*10.0.2.12 of {said}"):
        assigner("10.0.2.11-10.0.2.19/24", holders=[holder])
    assigner("10.0.2.13-10.0.2.19/24", holders=[holder])


def test_a_range_without_a_free_address_is_refused():
    one = assigner("10.0.2.11-10.0.2.12/24", {"a": "10.0.2.11"})
    given_to(one, "b")
    with pytest.raises(FleetError, match="c: gets no address"):
        given_to(one, "c")


def test_an_address_set_by_hand_needs_none_and_is_not_anothers():
    one = assigner("10.0.2.11-10.0.2.12/24", by_hand={"a": [IPv4Address("10.0.2.11")]})
    assert one.keys("a", ETH0, {"lxc.net.0.ipv4.address"}) == {}
    assert given_to(one, "b") == "10.0.2.12/24"
    with pytest.raises(FleetError, match="a: 10.0.2.11 is set by hand, and b has it"):
        assigner("10.0.2.11-10.0.2.12/24", {"b": "10.0.2.11"}, {"a": [IPv4Address("10.0.2.11")]})


def test_the_first_interface_is_the_lowest_that_has_a_device():
    config = Config.parse("lxc.net.3.type = veth\nlxc.net.1.type = macvlan\nlxc.net.0.type = empty\nlxc.net.0.flags = up\n")
    assert assigner("10.0.2.11/24").keys("a", config, ()) == {"lxc.net.1.ipv4.address": ["10.0.2.11/24"]}
    for without in ("", "lxc.net.0.type = none\n", str(ETH0) + "lxc.net.0 =\n", str(ETH0) + "lxc.net.0.type =\n", str(ETH0) + "lxc.net =\n"):
        with pytest.raises(FleetError, match="a: has no network interface"):
            assigner("10.0.2.11/24").keys("a", Config.parse(without), ())


def test_a_gateway_needs_an_interface_that_is_up():
    one = Assigner(parse("10.0.2.11/24", "10.0.2.1"), P, {}, {})
    assert one.keys("a", ETH0, ())["lxc.net.0.ipv4.gateway"] == ["10.0.2.1"]
    with pytest.raises(FleetError, match="flags is not up"):
        one.keys("a", Config.parse("lxc.net.0.type = veth\n"), ())


def test_an_empty_value_clears_those_before_it():
    found = interfaces(Config.parse("lxc.net.0.ipv4.address = 10.0.0.1/8\nlxc.net.0.ipv4.address =\nlxc.net.0.ipv4.address = 10.0.0.2/8\n"))
    assert found == {0: {"ipv4.address": ["10.0.0.2/8"]}}
