"""The kernel of a run: IPython's, that reads no configuration and runs no start-up files but those
of the empty folder that it is given. `python -m bookkit.run.kernel -f CONNECTION`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    if Path(sys.path[0]) == Path.cwd():  # as ipykernel's own launcher does
        del sys.path[0]

    from ipykernel import kernelapp
    from IPython.core.application import ENV_CONFIG_DIRS, SYSTEM_CONFIG_DIRS

    ENV_CONFIG_DIRS.clear()  # those of the environment and of the machine, such as /etc/ipython
    SYSTEM_CONFIG_DIRS.clear()
    kernelapp.launch_new_instance()
