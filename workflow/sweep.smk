# The jobs of a sweep; called by `replib sweep FILE`, which checks the file first.
#
# A job is made again when its notebook, its claims, its parameters, a module it computes with, the
# pinned packages, its stored trainings or the weights change.

import json
import os
import sys
from pathlib import Path

from bookkit import sweep
from replib.errors import UsageError
from replib.files import find_root
from replib.hashes import pins_hash
from snakemake.exceptions import WorkflowError

os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


envvars:  # not --config, which is read as YAML
    "REPLIB_SWEEP",


ROOT = find_root()
try:
    SWEEP = sweep.read_sweep(ROOT, os.environ["REPLIB_SWEEP"])
except UsageError as error:
    raise WorkflowError(str(error)) from None
OUT = (sweep.FOLDER / SWEEP.name).as_posix()
LOCK = pins_hash(ROOT / "requirements.txt")
WEIGHTS = {
    model: sweep.weights(model) for model in {job.run.model for job in SWEEP.jobs.values()}
}
sweep.drop_stale_stamps(
    (Path(OUT, "stamps", f"{name}.ok"), job.run.folder) for name, job in SWEEP.jobs.items()
)


def job_of(wildcards):
    return SWEEP.jobs[f"{wildcards.variant}/{wildcards.paper}/{wildcards.model}"]


def settings(wildcards):
    """The job's parameters as words of a command line."""
    return [word for pair in job_of(wildcards).settings.items() for word in ("-p", "=".join(pair))]


wildcard_constraints:
    variant="[^/]+",
    paper="[^/]+",
    model="[^/]+",


rule sweep:
    default_target: True
    localrule: True
    input:
        [f"{OUT}/stamps/{name}.ok" for name in SWEEP.jobs],


rule run:
    input:
        lambda wildcards: sweep.inputs(job_of(wildcards).run),
    output:
        touch(OUT + "/stamps/{variant}/{paper}/{model}.ok"),
    params:
        model=lambda wildcards: job_of(wildcards).run.model,
        profile=SWEEP.profile,
        device=SWEEP.device,
        settings=settings,
        parameters=lambda wildcards: json.dumps(
            dict(job_of(wildcards).run.parameters), sort_keys=True
        ),
        lock=LOCK,
        weights=lambda wildcards: WEIGHTS[job_of(wildcards).run.model],
        files=lambda wildcards: sweep.own_files(job_of(wildcards).run),
    threads: SWEEP.threads
    resources:
        gpu=1 if SWEEP.device in ("cuda", "mps") else 0,
        mem_mb=SWEEP.memory_mb,
    shell:
        "REPLIB_THREADS={threads} replib run {wildcards.paper} --model {params.model:q}"
        " --profile {params.profile} --device {params.device} {params.settings:q}"
        f" --out {OUT}/{{wildcards.variant}} --refusal {{output}}"
