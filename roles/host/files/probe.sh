#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: 2026 fleet.lxc contributors
# Says in JSON what this machine offers to LXC: probe.sh BRIDGE [LXCPATH]
export PATH="$PATH:/usr/sbin:/sbin"
bridge=$1
lxcpath=${2:-$(lxc-config lxc.lxcpath 2>/dev/null)}
lxcpath=${lxcpath:-/var/lib/lxc}

yes() { if "$@" >/dev/null 2>&1; then echo true; else echo false; fi; }
list() { [ $# -eq 0 ] || { printf '"%s"' "$1"; shift; for each; do printf ', "%s"' "$each"; done; }; }

missing=
for tool in lxc-create lxc-start lxc-info dnsmasq ip rsync busybox; do
  command -v "$tool" >/dev/null || missing="$missing $tool"
done
for each in /usr/libexec/lxc /usr/lib/lxc /usr/lib/*/lxc; do
  [ -x "$each/lxc-net" ] && lxc_net=$each/lxc-net && break
done
[ -n "$lxc_net" ] || missing="$missing lxc-net"

dhcp() { grep -q dnsmasq "/proc/$(cat /run/lxc/dnsmasq.pid)/cmdline"; }
up() { [ -e /run/lxc/network_up ] && [ -d "/sys/class/net/$bridge" ] && dhcp; }
# The bridge that lxc-net keeps up.
# shellcheck source=/dev/null
keeps=$([ ! -r /etc/default/lxc ] || . /etc/default/lxc; echo "${LXC_BRIDGE:-lxcbr0}")
[ -e /run/lxc/network_up ] && [ -d "/sys/class/net/$keeps" ] || keeps=
ports=$(ls "/sys/class/net/$bridge/brif" 2>/dev/null)
address=$(ip -4 -o address show dev "$bridge" 2>/dev/null | sed -n 's/.* inet \([^ ]*\).*/\1/p' | head -1)

case $(stat -f -c %T /sys/fs/cgroup 2>/dev/null) in
  cgroup2fs) cgroup=v2 ;;
  *) cgroup=none
     grep -q ' cgroup ' /proc/mounts && cgroup=v1
     grep -q ' cgroup .* cgroup2 \| cgroup2 ' /proc/mounts && [ $cgroup = v1 ] && cgroup=hybrid ;;
esac

overlay() {
  mkdir "$scratch/lower" "$scratch/upper" "$scratch/work" "$scratch/merged" &&
    unshare --mount mount -t overlay -o "lowerdir=$scratch/lower,upperdir=$scratch/upper,workdir=$scratch/work" overlay "$scratch/merged"
}
reflink() { echo x >"$scratch/a" && cp --reflink=always "$scratch/a" "$scratch/b"; }
scratch=$(mktemp -d "$lxcpath/.probe.XXXXXX" 2>/dev/null) && trap 'rm -rf "$scratch"' EXIT
writable=$(yes [ -n "$scratch" ])
[ "$writable" = true ] && overlay=$(yes overlay) reflink=$(yes reflink)

# shellcheck disable=SC2086  # the lists are words
cat <<END
{"lxc": "$(lxc-info --version 2>/dev/null)", "missing": [$(list $missing)], "lxc_net": "$lxc_net", "cgroup": "$cgroup",
 "bridge": $(yes [ -d "/sys/class/net/$bridge" ]), "address": "$address", "keeps": "$keeps", "ports": [$(list $ports)],
 "dhcp": $(yes dhcp), "flag": $(yes [ -e /run/lxc/network_up ]), "up": $(yes up),
 "lxcpath": "$lxcpath", "writable": $writable, "overlay": ${overlay:-false}, "reflink": ${reflink:-false},
 "filesystem": "$(stat -f -c %T "$lxcpath" 2>/dev/null)", "free": "$(df -h --output=avail "$lxcpath" 2>/dev/null | tail -1 | tr -d ' ')"}
END
