"""Make Snakemake's Slurm plug-in wait until Slurm answers, and not for jobs that Slurm has forgotten.

If Slurm does not answer, as while its controller starts anew, version 2.8.0 of the plug-in turns to sacct,
which may have no accounting, and then forgets all its jobs; and it waits for ever for a job that squeue shows
no more.  Either way the sweep would hang.
"""

import asyncio
import math
import sys

from snakemake_interface_common.exceptions import WorkflowError

SECONDS, TIMES = 10, 360  # between two questions, and how often to ask
plugin = sys.modules.get("snakemake_executor_plugin_slurm")  # Snakemake has imported it if it is installed


class Known(dict):
    """The states of the jobs that squeue shows; of any other it is unknown how it ended, but not whether."""

    def __contains__(self, job):
        return True

    def __missing__(self, job):
        return "UNKNOWN"  # the plug-in then takes it for done, and Snakemake looks for its output


async def states(command, logger):
    """Ask until there is an answer; the states by job, and how long the question took."""
    for _ in range(TIMES):
        found, seconds = await ask_once(command, logger)
        if found is not None:
            return Known(found) if command.startswith("squeue") else found, seconds
        await asyncio.sleep(SECONDS)
    raise WorkflowError(
        "Slurm has not said for an hour or more how its jobs are; start the sweep again later."
    )


if plugin:
    ask_once = plugin.query_job_status
    plugin.query_job_status = states
    plugin.get_min_job_age = lambda: math.inf  # so that it never turns to sacct
