# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The job as AWX runs it, through its engine; the job template's code against awx.awx itself and an AWX that remembers."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import ansible_runner
import pytest
import yaml
from checkout import ROOT, published
from conftest import NETWORKLESS

SURVEY = yaml.safe_load((ROOT / "awx/survey.yml").read_text())
PLAY = yaml.safe_load((ROOT / "playbooks/fleet.yml").read_text())[0]
OPTIONS = yaml.safe_load((ROOT / "roles/fleet/meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
DEFAULTS = yaml.safe_load((ROOT / "roles/fleet/defaults/main.yml").read_text())
QUESTIONS = {question["variable"]: question for question in SURVEY["spec"]}

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


# The job


class UnsafeText(yaml.SafeDumper):
    """Text tagged as AWX tags it, because a user typed it."""


UnsafeText.add_representer(str, lambda dumper, text: dumper.represent_scalar("!unsafe", text))


class Job:
    """The sample project's playbook, run by ansible-runner with an answer to each question, "" where none was given."""

    def __init__(self, lxcpath, directory, template_variables):
        self.lxcpath, self.directory, self.template_variables = lxcpath, directory, template_variables

    def run(self, check=False, **answers):
        sent = {**{variable: "" for variable in QUESTIONS}, "survey_lxcpath": self.lxcpath, "survey_wait_for": "running", **answers}
        assert set(sent) == set(QUESTIONS), "an answer without a question"
        private = Path(tempfile.mkdtemp(dir=self.directory))
        (private / "env").mkdir()
        (private / "env/extravars").write_text(yaml.safe_dump(self.template_variables) + yaml.dump(sent, Dumper=UnsafeText))
        run = ansible_runner.run(
            private_data_dir=str(private),
            project_dir=str(ROOT / "awx/project"),
            playbook="fleet.yml",
            inventory={"lxc_hosts": {"hosts": {"localhost": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}}}},
            envvars={
                "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"),
                "LC_ALL": "C.UTF-8",
                "PATH": PATH,
                "ANSIBLE_HOME": str(private / "home"),
                "ANSIBLE_INJECT_INVOCATION": "1",  # ansible-core 2.20 no longer tells the arguments unasked.
            },
            cmdline="--check" if check else None,
            quiet=True,
        )
        return Outcome(run)


class Outcome:
    def __init__(self, run):
        self.status, self.events = run.status, list(run.events)
        self.output = "".join(event["stdout"] for event in self.events)
        stats = next(event["event_data"] for event in self.events if event["event"] == "playbook_on_stats")
        self.changed = sum(stats["changed"].values())
        self.report = stats.get("artifact_data", {}).get("fleet_report", {}).get("localhost")

    def results(self, task):
        return [e["event_data"]["res"] for e in self.events if e["event"] in ("runner_on_ok", "runner_on_failed") and e["event_data"].get("task") == task]

    @property
    def clones(self):
        (result,) = self.results("Make the clones, start them and wait for them")
        return result

    @property
    def refusals(self):
        return [e["event_data"]["res"]["msg"] for e in self.events if e["event"] in ("runner_item_on_failed",)]


@pytest.fixture
def job(fleet, tmp_path):
    return Job(fleet.lxcpath, tmp_path, {"fleet_base_config": NETWORKLESS})


def test_a_fleet_is_made_kept_and_removed_by_answers(job, fleet):
    answers = {
        "survey_clones": "web-[1:2]\r\n\r\n  db  \r\n",
        "survey_wait_timeout": "30",
        "survey_workers": 2,
        "survey_clone_config": "lxc.environment = NODE={name}\nlxc.environment=B = 1\n\nlxc.start.order = 3\n",
        "survey_clone_autostart": "no",
        "survey_wait_for": "command",
        "survey_wait_command": "test -d /proc/1",
    }
    made = job.run(**answers)
    assert (made.status, made.changed) == ("successful", 3)
    assert fleet.up() == ["db", "web-1", "web-2"]
    assert made.report == {
        "state": "present",
        "base": "golden",
        "summary": {"created": 3, "started": 3, "stopped": 0, "removed": 0, "unchanged": 0, "failed": 0},
        "addresses": {"web-1": [], "web-2": [], "db": []},
    }
    lines = Path(fleet.path("web-2", "config")).read_text().splitlines()
    assert {"lxc.environment = NODE=web-2", "lxc.environment = B = 1", "lxc.start.order = 3", "lxc.start.auto = 0", "lxc.net.0.type = empty"} <= set(lines)
    options = made.clones["invocation"]["module_args"]
    assert (options["wait_timeout"], options["workers"]) == (30, 2)
    assert (options["wait_for"], options["wait_command"], options["ipv4"]) == (["command"], "test -d /proc/1", "")

    for check in (True, False):
        again = job.run(check=check, **answers)
        assert (again.status, again.changed, again.report["summary"]["unchanged"]) == ("successful", 0, 3)

    grown = job.run(check=True, **{**answers, "survey_clones": ["web-[1:2]", "db", "cache"]})
    assert (grown.status, grown.clones["summary"]["created"]) == ("successful", 1)
    assert "cache" not in fleet.names()

    for changed in (2, 0):
        gone = job.run(survey_state="absent", survey_clones="web-[1:2]\ndb", survey_remove_base="yes")
        assert (gone.status, gone.changed, gone.report["addresses"]) == ("successful", changed, {})
    assert fleet.names() == []


def test_addresses_out_of_a_range_are_given_kept_and_taken_back(fleet, tmp_path, bridge):
    network = {"lxc.net.0.type": "veth", "lxc.net.0.link": bridge, "lxc.net.0.name": "lan0", "lxc.net.0.flags": "up"}
    job = Job(fleet.lxcpath, tmp_path, {"fleet_base_config": network})
    answers = {"survey_clones": "web-[1:2]", "survey_wait_for": "network", "survey_ipv4": "203.0.113.10-203.0.113.20/24", "survey_ipv4_gateway": "203.0.113.1"}
    made = job.run(**answers)
    assert made.report["addresses"] == {"web-1": ["203.0.113.10"], "web-2": ["203.0.113.11"]}
    assert "lxc.net.0.ipv4.gateway = 203.0.113.1" in Path(fleet.path("web-2", "config")).read_text()
    assert job.run(**answers).changed == 0
    without = job.run(**{**answers, "survey_ipv4": "", "survey_ipv4_gateway": "", "survey_wait_for": "running"})
    assert without.clones["clones"][0]["actions"] == ["configure"] and "ipv4" not in Path(fleet.path("web-2", "config")).read_text()


def test_blank_answers_leave_the_defaults_of_the_role(job):
    (base,) = (made := job.run(survey_clones="one")).results("Make the base")
    options = base["invocation"]["module_args"]
    assert [options[key] for key in ("name", "template", "backing_store")] == [DEFAULTS[f"fleet_base_{key}"] for key in ("name", "template", "backing_store")]
    assert options["template_options"] is None
    options = made.clones["invocation"]["module_args"]
    assert (options["method"], options["state"]) == (DEFAULTS["fleet_clone_method"], DEFAULTS["fleet_clone_state"])
    assert (options["wait_timeout"], options["detail"]) == (DEFAULTS["fleet_wait_timeout"], DEFAULTS["fleet_detail"])
    assert options["workers"] is None and options["config"] == {} and set(options["autostart"].values()) == {None}


def test_what_the_template_sets_stays_whatever_is_answered(job):
    job.template_variables.update(fleet_base_name="silver", fleet_clone_state="present", fleet_detail="changed", fleet_clones=["one", "two"])
    made = job.run()
    assert (made.status, made.report["base"], sorted(made.report["addresses"])) == ("successful", "silver", ["one", "two"])
    again = job.run(survey_base_name="bronze")
    assert (again.changed, again.report["summary"]["unchanged"], again.report["addresses"]) == (0, 2, {})


@pytest.mark.parametrize(
    ("variable", "answer", "told"),
    [
        ("survey_wait_timeout", "soon", "soon"),
        ("survey_wait_timeout", "-5", "-5"),
        ("survey_workers", "2.5", "2.5"),
        ("survey_workers", 0, "0"),
        ("survey_clone_autostart", "maybe", "maybe"),
        ("survey_remove_base", "perhaps", "perhaps"),
        ("survey_prepare_host", "later", "later"),
        ("survey_clone_config", "lxc.start.order = 1\nmemory 5", "memory 5"),
        ("survey_base_template_options", "release", "release"),
        ("survey_clones", " \n ", "nothing"),
    ],
)
def test_a_wrong_answer_is_refused_by_its_question(job, fleet, variable, answer, told):
    outcome = job.run(**{"survey_clones": "one", variable: answer})
    (refusal,) = outcome.refusals
    assert outcome.status == "failed"
    assert f'"{QUESTIONS[variable]["question_name"]}"' in refusal and refusal.endswith(f'not "{told}".')
    assert fleet.names() == []


@pytest.mark.parametrize(
    ("variable", "answer"), [("survey_clones", "{{ 6 * 7 }}"), ("survey_base_name", "{{ 6 * 7 }}"), ("survey_clone_method", "{{ 'co' ~ 'py' }}")]
)
def test_a_template_in_an_answer_stays_text(job, fleet, variable, answer):
    outcome = job.run(**{"survey_clones": "one", variable: answer})
    assert outcome.status == "failed"
    assert answer in outcome.output.replace("\\", "")
    assert set(fleet.names()) <= {"golden"}


# The survey


def survey_error(spec):
    """What AWX says to a survey, or None."""
    types = {"text": str, "textarea": str, "password": str, "multiplechoice": str, "multiselect": str, "integer": int, "float": float}
    for field, kind in (("name", str), ("description", str), ("spec", list)):
        if not isinstance(spec.get(field), kind):
            return f"{field} is no {kind.__name__}"
    if not spec["spec"]:
        return "no questions"
    seen = set()
    for question in spec["spec"]:
        for field, kind in (("type", str), ("question_name", str), ("variable", str), ("required", bool)):
            if not isinstance(question.get(field), kind):
                return f"{field} is no {kind.__name__}"
        if question["variable"] in seen:
            return f"{question['variable']} twice"
        seen.add(question["variable"])
        if question["type"] not in types:
            return f"no type {question['type']}"
        default = question.get("default", "")
        if default != "" and not isinstance(default, types[question["type"]]):
            return "default of another type"
        if any(question.get(limit) is not None and not isinstance(question[limit], int) for limit in ("min", "max")):
            return "a limit that is no number"
        if question["type"] in ("multiplechoice", "multiselect"):
            choices = question.get("choices")
            choices = choices.splitlines() if isinstance(choices, str) else choices
            if not choices or not all(isinstance(choice, str) and choice for choice in choices):
                return "no choices"
            if not set(default.splitlines()) <= set(choices):
                return "default is no choice"
    return None


def test_awx_accepts_the_survey():
    assert survey_error(SURVEY) is None


@pytest.mark.parametrize(
    ("variable", "change"),
    [
        ("survey_state", {"choices": None}),
        ("survey_state", {"choices": [True, False]}),
        ("survey_state", {"default": "gone"}),
        ("survey_clones", {"required": "yes"}),
        ("survey_clones", {"variable": "survey_state"}),
        ("survey_clones", {"type": "paragraph"}),
        ("survey_workers", {"default": "5"}),
        ("survey_workers", {"max": "9"}),
    ],
)
def test_awx_refuses_a_broken_survey(variable, change):
    broken = copy.deepcopy(SURVEY)
    next(question for question in broken["spec"] if question["variable"] == variable).update(change)
    assert survey_error(broken)


def test_survey_and_playbook_know_the_same_questions():
    assert set(re.findall(r"\bsurvey_\w+", (ROOT / "playbooks/fleet.yml").read_text())) - {"survey_"} == set(QUESTIONS)
    checked = {item["question"]: item["wrong"] for item in PLAY["tasks"][0]["loop"]}
    titles = {question["question_name"]: question for question in SURVEY["spec"]}
    assert set(checked) <= set(titles)
    for title, question in titles.items():
        if question["type"] == "integer" or question.get("choices") == ["yes", "no"]:
            assert question["variable"].replace("survey_", "answer_") in checked[title]


def test_choices_are_those_of_the_role():
    asked = {variable: question["choices"] for variable, question in QUESTIONS.items() if question.get("choices") not in (None, ["yes", "no"])}
    assert asked == {variable: OPTIONS[variable.replace("survey_", "fleet_")]["choices"] for variable in asked}


def test_the_survey_restates_no_default():
    assert not [variable for variable, question in QUESTIONS.items() if "default" in question]


# The job template


@pytest.fixture(scope="session")
def awx_collection():
    """The directory with ansible_collections/awx/awx in it."""
    return published("awx.awx")


class Awx(ThreadingHTTPServer):
    """As much of AWX's API as its modules use: objects that are found by their fields, changed, and put together."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), AwxRequest)
        self.objects, self.surveys, self.together, self.writes = {}, {}, {}, []
        self.add("organizations", {"name": "Default"})
        self.add("credentials", {"name": "ssh"})
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def add(self, kind, fields):
        kept = self.objects.setdefault(kind, [])
        url = f"/api/v2/{kind}/{len(kept) + 1}/"
        item = {
            "id": len(kept) + 1,
            "url": url,
            "type": kind[:-1],
            "related": {"survey_spec": f"{url}survey_spec/"},
            "summary_fields": {},
            "kind": "",
            "scm_revision": "",
        }
        kept.append({**item, **self.filled(fields)})
        return kept[-1]

    @staticmethod
    def filled(fields):
        return {key: "" if value is None else value for key, value in fields.items()}

    def one(self, kind, name):
        (found,) = [item for item in self.objects[kind] if item["name"] == name]
        return found


class AwxRequest(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, status, body=None):
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def respond(self):
        awx, url = self.server, urlsplit(self.path)
        kind, *rest = url.path.removeprefix("/api/v2/").strip("/").split("/")
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        if self.command != "GET":
            awx.writes.append((self.command, url.path, body))
        if not rest and self.command == "GET":
            wanted = parse_qsl(url.query)
            found = [item for item in awx.objects.get(kind, []) if all(str(item.get(key)) == value for key, value in wanted)]
            return self.answer(200, {"count": len(found), "next": None, "results": found})
        if not rest:
            return self.answer(201, awx.add(kind, body))
        item = awx.objects[kind][int(rest[0]) - 1]
        if len(rest) == 1:
            item.update(awx.filled(body))
            return self.answer(200, item)
        if rest[1] == "survey_spec":
            if self.command == "POST":
                if error := survey_error(body):
                    return self.answer(400, {"error": error})
                awx.surveys[item["name"]] = body
            return self.answer(200, awx.surveys.get(item["name"], {}))
        together = awx.together.setdefault((item["name"], rest[1]), [])
        if self.command == "GET":
            return self.answer(200, {"count": len(together), "next": None, "results": [{"id": each} for each in together]})
        together.append(body["id"])
        return self.answer(204)

    do_GET = do_POST = do_PATCH = respond


@pytest.fixture
def awx():
    server = Awx()
    yield server
    server.shutdown()
    server.server_close()


def configure(awx, collection, directory, **variables):
    (directory / "variables.json").write_text(json.dumps(variables))
    environment = {
        **{key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")},
        "PATH": PATH,
        "LC_ALL": "C.UTF-8",
        "HOME": str(directory),
        "ANSIBLE_COLLECTIONS_PATH": str(collection),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        "CONTROLLER_HOST": f"http://127.0.0.1:{awx.server_port}",
        "CONTROLLER_OAUTH_TOKEN": "a token",
    }
    command = ["ansible-playbook", "-i", "localhost,", str(ROOT / "awx/configure.yml"), "-e", f"@{directory}/variables.json"]
    done = subprocess.run([shutil.which(command[0], path=PATH), *command[1:]], env=environment, capture_output=True, text=True, cwd=directory, check=False)
    recap = re.search(r"changed=(\d+) .*failed=(\d+)", done.stdout)
    return done, int(recap.group(1)) if recap else None


def test_the_job_template_is_made_and_stays(awx, awx_collection, tmp_path):
    variables = {
        "awx_project_url": "https://git.example.com/fleet.git",
        "awx_image": "images.example.com/fleet-lxc:1",
        "awx_lxc_hosts": {"lxc-1": {"ansible_host": "192.0.2.11"}, "lxc-2": {}},
        "awx_credential": "ssh",
        "awx_variables": {"fleet_detail": "changed"},
    }
    done, changed = configure(awx, awx_collection, tmp_path, **variables)
    assert (done.returncode, changed) == (0, 6), done.stdout + done.stderr

    template, project, inventory = awx.one("job_templates", "Fleet"), awx.one("projects", "fleet.lxc"), awx.one("inventories", "LXC hosts")
    assert (template["project"], template["inventory"]) == (project["id"], inventory["id"])
    assert template["execution_environment"] == awx.one("execution_environments", "fleet.lxc")["id"]
    assert template["survey_enabled"] and awx.surveys["Fleet"] == SURVEY
    assert template["ask_limit_on_launch"] and template["ask_job_type_on_launch"] and template["ask_job_slice_count_on_launch"]
    assert json.loads(template["extra_vars"]) == {"fleet_detail": "changed"}
    assert (ROOT / "awx/project" / template["playbook"]).is_file()
    assert awx.together["Fleet", "credentials"] == [awx.one("credentials", "ssh")["id"]]
    assert sorted(awx.together["lxc_hosts", "hosts"]) == [awx.one("hosts", name)["id"] for name in ("lxc-1", "lxc-2")]
    assert PLAY["hosts"] == "{{ fleet_hosts | default('lxc_hosts') }}" and awx.one("groups", "lxc_hosts")

    before = copy.deepcopy((awx.objects, awx.surveys, awx.together))
    done, changed = configure(awx, awx_collection, tmp_path, **variables)
    assert (done.returncode, changed) == (0, 0), done.stdout + done.stderr
    assert (awx.objects, awx.surveys, awx.together) == before


def test_little_is_enough_for_a_job_template(awx, awx_collection, tmp_path):
    done, changed = configure(awx, awx_collection, tmp_path, awx_project_url="https://git.example.com/fleet.git")
    assert (done.returncode, changed) == (0, 4), done.stdout + done.stderr
    assert "execution_environments" not in awx.objects and "hosts" not in awx.objects
    assert not awx.one("job_templates", "Fleet").get("execution_environment")


def test_without_a_project_nothing_is_made(awx, awx_collection, tmp_path):
    done, _changed = configure(awx, awx_collection, tmp_path)
    assert done.returncode != 0 and "awx_project_url" in done.stdout
    assert awx.writes == []


# The execution environment


def builder(*arguments):
    return subprocess.run([shutil.which("ansible-builder", path=PATH), *map(str, arguments)], capture_output=True, text=True, check=False)


def test_ansible_builder_takes_the_execution_environment(tmp_path):
    done = builder("create", "--file", ROOT / "awx/execution-environment.yml", "--context", tmp_path, "--output-filename", "Containerfile")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FROM" in (tmp_path / "Containerfile").read_text()
    assert (tmp_path / "_build/requirements.yml").read_text() == (ROOT / "awx/project/collections/requirements.yml").read_text()


def test_ansible_builder_finds_what_the_collection_needs():
    done = builder("introspect", ROOT / ".collections")
    assert done.returncode == 0, done.stdout + done.stderr
    found = yaml.safe_load(done.stdout.split("\n---", 1)[-1])
    assert sorted(str(line).split()[0] for line in found["system"]) == ["openssh-client", "openssh-clients"]
    assert not found["python"]
