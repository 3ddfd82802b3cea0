# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The collection as it is published: what is in the artefact, and what it does where it is installed."""

from __future__ import annotations

import json
import tarfile

import pytest
from checkout import ROOT, run
from conftest import sh

DEVELOPMENT = {"tests", "test", "quickstart", "extensions", "awx", "ansible.cfg", "pyproject.toml", "REUSE.toml"}
MODULES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py"))
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())


@pytest.fixture(scope="module")
def installed(artefact, tmp_path_factory):
    """Runs commands beside an empty configuration of Ansible, with the collection installed."""
    directory = tmp_path_factory.mktemp("elsewhere")
    (directory / "ansible.cfg").touch()
    run("ansible-galaxy", "collection", "install", artefact, "--offline", "--collections-path", directory, cwd=directory)

    def ansible(*command, collections=directory):
        return run(*command, cwd=directory, ANSIBLE_COLLECTIONS_PATH=collections, ANSIBLE_LIBRARY="", ANSIBLE_CONFIG=directory / "ansible.cfg")

    return ansible


def test_holds_what_a_user_needs_and_nothing_of_development(artefact):
    with tarfile.open(artefact) as archive:
        files = archive.getnames()
    tops = {name.split("/")[0] for name in files}
    assert not [name for name in tops if name.startswith(".") or name in DEVELOPMENT]
    assert not [name for name in files if "__pycache__" in name or name.endswith((".pyc", ".tar.gz"))]
    for needed in ("README.md", "CHANGELOG.md", "COPYING", "LICENSES/GPL-3.0-or-later.txt", "meta/runtime.yml"):
        assert needed in files
    for module in MODULES:
        assert f"plugins/modules/{module}.py" in files


@pytest.mark.parametrize("kind,name", [*(("module", name) for name in MODULES), *(("role", name) for name in ROLES), ("connection", "lxc_attach")])
def test_documents_itself(installed, kind, name):
    said = installed("ansible-doc", "--json", "--type", kind, f"fleet.lxc.{name}")
    # ansible-core 2.20 warns, before it answers, of a collection of its own that has no version.
    documented = json.loads(said[said.index("{\n") :])[f"fleet.lxc.{name}"]
    assert (documented["entry_points"]["main"]["options"] if kind == "role" else documented["doc"]["options"]).keys()


def test_clones_where_it_is_installed(installed, golden):
    arguments = f"source=golden name=web-[1:3] lxcpath={golden.lxcpath}"
    assert "CHANGED" in installed("ansible", "localhost", "-m", "fleet.lxc.lxc_clone", "-a", arguments)
    assert "SUCCESS" in installed("ansible", "localhost", "-m", "fleet.lxc.lxc_clone", "-a", arguments)
    assert golden.names() == ["golden", "web-1", "web-2", "web-3"]


def test_is_not_found_where_it_is_not_installed(installed, golden, tmp_path):
    with pytest.raises(AssertionError, match="fleet.lxc.lxc_clone"):
        installed("ansible", "localhost", "-m", "fleet.lxc.lxc_clone", "-a", f"source=golden name=web lxcpath={golden.lxcpath}", collections=tmp_path)


def test_pytest_ansible_reaches_the_modules(localhost_module, golden):
    arguments = {"source": "golden", "name": ["web-1"], "state": "started", "lxcpath": golden.lxcpath}
    first, second = localhost_module("fleet.lxc.lxc_clone", **arguments), localhost_module("fleet.lxc.lxc_clone", **arguments)
    assert (first["changed"], first["clones"][0]["actions"]) == (True, ["create", "start"])
    assert (second["changed"], second["summary"]["unchanged"]) == (False, 1)
    assert sh(["lxc-info", "-P", golden.lxcpath, "-n", "web-1", "-sH"]).strip() == "RUNNING"
    refused = localhost_module("fleet.lxc.lxc_clone", source="nothing", name=["web-2"], lxcpath=golden.lxcpath)
    assert refused["failed"] and "nothing" in refused["msg"]
