"""The Makefile, in a project of stubs: what it passes on, and whose environment it uses."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAYS = """#!/usr/bin/env python3
import os, sys
given = {name: os.environ.get(name, "") for name in ("MODELS", "PAPERS", "PROFILE", "RECORDS")}
print(os.path.basename(sys.argv[0]), sys.argv[1:], given)
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def stub(folder):
    """A project whose set-up is up to date, and whose programs say what they were given."""
    programs = folder / ".venv/bin"
    programs.mkdir(parents=True)
    for name in ("replib", "snakemake", "jupyter-book", "pip"):
        (programs / name).write_text(SAYS)
        (programs / name).chmod(0o755)
    (folder / "workflow").mkdir()
    for name in ("Makefile", "workflow/own_venv.py"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("", "-models", "-gemma"):
        (folder / f"requirements{name}.txt").touch()
    (folder / "pyproject.toml").touch()
    (folder / ".venv/.stamp").touch()
    return folder


def make(folder, *arguments, **variables):
    line = ["make", "-C", str(folder), "--silent", "--no-print-directory", *arguments]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")} | variables
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)


def installed_for(venv, folder):
    """The mark that an editable install of `folder` leaves in an environment."""
    about = venv / "lib/python3.11/site-packages/replib-1.dist-info/direct_url.json"
    about.parent.mkdir(parents=True)
    about.write_text(f'{{"dir_info": {{"editable": true}}, "url": "{folder.as_uri()}"}}')


ODD = ["a: b; touch OUT", "`touch OUT` $(shell touch OUT) {x}", '$$(touch OUT) a" && touch OUT #']


@pytest.mark.parametrize("text", ODD)
def test_what_is_given_is_passed_on_by_the_letter(tmp_path, text):
    folder = stub(tmp_path / "it's {a} #1")
    for way in (
        lambda *target, **given: make(folder, *target, *(f"{k}={v}" for k, v in given.items())),
        lambda *target, **given: make(folder, *target, **given),
    ):
        literal = text.replace("touch OUT", f"touch {tmp_path}/out")
        said = way("book", MODELS=literal, PAPERS=literal, PROFILE=literal).stdout
        assert said.count(repr(literal)) == 3 and "--config" not in said
        assert (
            repr(["book", "stage", "--runs", literal])[:-1] in way("book", RECORDS=literal).stdout
        )
        said = way("run", PAPER=literal, MODEL=literal, DEVICE=literal).stdout
        assert repr(["run", literal, "--model", literal, "--profile", "laptop"])[:-1] in said
        assert not (tmp_path / "out").exists()


def test_an_environment_of_another_folder_is_left_alone(tmp_path):
    first, second = stub(tmp_path / "first"), stub(tmp_path / "a second")
    assert make(first, "book").returncode == 0  # nothing says whose it is
    installed_for(first / ".venv", first)
    assert make(first, "book").returncode == 0
    shutil.rmtree(second / ".venv")
    shutil.copytree(first / ".venv", second / ".venv")
    refused(second, f"belongs to {first}, whose replib it runs", "rm -r .venv")
    shutil.rmtree(second / ".venv")
    (second / ".venv").symlink_to(first / ".venv")
    refused(second, f"belongs to {first}, whose replib it runs", "rm .venv")
    refused(second, "belongs to", "rm .venv", target="setup")
    made_at = f"#!{first}/.venv/bin/python3.11\n"
    (first / ".venv/bin/pip").write_text(made_at)
    assert make(first, "book").returncode == 0
    (second / ".venv").unlink()
    first.rename(tmp_path / "moved")
    refused(tmp_path / "moved", f"was made as {first}/.venv and works only there", "rm -r .venv")
    (second / ".venv").symlink_to(first / ".venv")
    refused(second, "is a link to", "rm .venv")


def test_a_link_to_an_environment_of_one_s_own_is_as_good(tmp_path):
    folder, disk = stub(tmp_path / "project"), tmp_path / "a large disk/replib"
    disk.parent.mkdir()
    (folder / ".venv").rename(disk)
    (folder / ".venv").symlink_to(disk)
    installed_for(disk, folder)
    (disk / "bin/pip").write_text(f'#!/bin/sh\n\'\'\'exec\' "{disk}/bin/python" "$0" "$@"\n')
    assert make(folder, "book").returncode == 0


def refused(folder, why, remove, target="book"):
    """In one line, before any program of the environment runs."""
    found = make(folder, target)
    assert (found.returncode, found.stdout) == (2, "")
    line, end = found.stderr.splitlines()  # the second is make's own
    assert line.startswith("setup: .venv ") and why in line and line.endswith(remove)
    assert "Error 2" in end
