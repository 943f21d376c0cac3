"""The workflows of GitHub Actions: valid, pinned, with few rights, and made of make targets."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def content(path):
    return yaml.load(path.read_text(), Loader=yaml.BaseLoader)  # "on" stays a word


def test_there_is_one_for_pull_requests_and_one_for_a_gpu():
    check, gpu = map(content, WORKFLOWS)
    assert "pull_request" in check["on"] and "self-hosted" not in WORKFLOWS[0].read_text()
    assert set(gpu["on"]) == {"workflow_dispatch", "schedule", "pull_request"}
    assert gpu["on"]["pull_request"] == {"types": ["labeled"]}
    assert "head.repo.full_name == github.repository" in gpu["jobs"]["papers"]["if"]


def test_they_fit_the_schema():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    command += ["vendor.github-workflows", *map(str, WORKFLOWS)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_rights_are_few_and_steps_are_pinned_actions_or_make_targets(path):
    """And no input of a person is taken as code."""
    whole, makefile = content(path), (ROOT / "Makefile").read_text()
    assert whole["permissions"] == {"contents": "read"}
    for name, job in whole["jobs"].items():
        assert int(job["timeout-minutes"]) > 0
        allowed = {"pages": "write", "id-token": "write"} if name == "deploy" else {}
        assert job.get("permissions", {}) == allowed
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] == "false"
            if "uses" in step:
                assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"]), step
            if (line := step.get("run")) is not None:
                target = re.fullmatch(
                    r"make ([\w-]+)( [A-Z]+=[\w/]+)?( >> \"\$GITHUB_OUTPUT\")?", line
                )
                assert target and re.search(rf"^{target[1]}:", makefile, re.M), line
