"""The workflows of GitHub Actions: valid, pinned, with few rights, and made of make targets."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bookkit.project import list_papers

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def content(path):
    return yaml.load(path.read_text(), Loader=yaml.BaseLoader)  # "on" stays a word


def steps(path):
    for name, job in content(path)["jobs"].items():
        for step in job["steps"]:
            yield name, step


def valid(*paths):
    command = [sys.executable, "-m", "check_jsonschema"]
    command += ["--builtin-schema", "vendor.github-workflows", *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True)


def test_there_is_one_for_pull_requests_and_one_for_a_gpu():
    assert [path.name for path in WORKFLOWS] == ["check.yml", "gpu.yml"]
    check, gpu = map(content, WORKFLOWS)
    assert "pull_request" in check["on"] and "self-hosted" not in WORKFLOWS[0].read_text()
    assert set(gpu["on"]) == {"workflow_dispatch", "schedule", "pull_request"}
    assert set(gpu["on"]["workflow_dispatch"]["inputs"]) == {"model", "profile"}
    assert gpu["on"]["pull_request"] == {"types": ["labeled"]}
    assert "head.repo.full_name == github.repository" in gpu["jobs"]["papers"]["if"]


def test_they_fit_the_schema_and_a_broken_one_does_not(tmp_path):
    result = valid(*WORKFLOWS)
    assert result.returncode == 0, result.stdout
    broken = tmp_path / "broken.yml"
    broken.write_text(WORKFLOWS[0].read_text().replace("runs-on", "run-on"))
    assert valid(broken).returncode != 0


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_rights_are_few_and_jobs_end(path):
    for _, step in steps(path):
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"]), step
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] == "false"
    whole = content(path)
    assert whole["permissions"] == {"contents": "read"}
    for name, job in whole["jobs"].items():
        assert int(job["timeout-minutes"]) > 0
        allowed = {"pages": "write", "id-token": "write"} if name == "deploy" else {}
        assert job.get("permissions", {}) == allowed


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_shell_steps_are_make_targets_and_take_no_input_as_code(path):
    makefile = (ROOT / "Makefile").read_text()
    for _, step in steps(path):
        if "run" not in step:
            continue
        target = re.fullmatch(r"make (\w+)( [A-Z]+=[\w/]+)?( >> \"\$GITHUB_OUTPUT\")?", step["run"])
        assert target, step["run"]
        assert re.search(rf"^{target[1]}:", makefile, re.M)


def test_the_list_of_papers_is_what_the_workflow_reads():
    out = subprocess.run(
        ["make", "-s", "papers"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    name, _, value = out.strip().partition("=")
    assert name == "papers" and json.loads(value) == list_papers(ROOT)
