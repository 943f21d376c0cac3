# One job for every cell of a chapter's grid of trainings. Called by `replib train PAPER`, which says
# which cells are needed; a cell that was stored is not trained again when this is stopped and started
# anew.
#
# Marks are the outputs: Snakemake removes a job's outputs before it starts, and an earlier training
# must stay until the new one is complete.

import os
import sys
from pathlib import Path

os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


rule cell:
    output:
        touch("build/grid/{paper}/{cell}.done"),
    wildcard_constraints:
        paper="[^/]+",
    params:
        device=config.get("device", "cpu"),
    threads: 1
    shell:
        "replib train {wildcards.paper} --cell {wildcards.cell} --device {params.device}"
