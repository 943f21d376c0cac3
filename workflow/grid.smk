# One job for every cell of the copying chapter's grid. Called by `replib train copying-mamba`, which
# says which cells are needed; a cell that was stored is not trained again when this is stopped and
# started anew.
#
# Marks are the outputs: Snakemake removes a job's outputs before it starts, and an earlier training
# must stay until the new one is complete.

import os
import sys
from pathlib import Path

os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


rule cell:
    output:
        touch("build/grid/{study}/{cell}.done"),
    params:
        device=config.get("device", "cpu"),
    threads: 1
    shell:
        "replib train copying-mamba --cell {wildcards.study}/{wildcards.cell}"
        " --device {params.device}"
