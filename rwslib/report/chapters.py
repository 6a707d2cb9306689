"""What chapters share: looking runs up, and numbers with their spread."""

from pathlib import Path
from typing import Any

from IPython.display import Markdown, clear_output, display

from rwslib.experiments import run, stored
from rwslib.methods import METHODS
from rwslib.records import RunRecord

Cells = dict[tuple[str, int], Any]  # configurations by method and K


def look_up(configs: Cells, results_dir: str | Path | None) -> dict[tuple[str, int], RunRecord]:
    """The stored records of some configurations, each with the most replicates, up to ``num_runs``."""
    found = {cell: stored(config, results_dir, fewer_runs=True) for cell, config in configs.items()}
    return {cell: record for cell, record in found.items() if record}


def find_or_train(
    configs: Cells, results_dir: str | Path | None, longest: float, length: str, device: str = "cpu"
) -> dict[tuple[str, int], RunRecord]:
    """The record of each configuration by (method, K); says what neither is stored nor short enough to train.

    Of a stored run the record with the most replicates counts, up to ``num_runs``.

    Args:
        longest: runs whose ``length`` is above are looked up and never trained.
        length: the field of the configurations that says how long they train, ``num_...``; the chapter's
            parameter ``live_...`` is ``longest``.
    """
    runs = look_up(configs, results_dir)
    for cell in configs.keys() - runs.keys():
        if getattr(configs[cell], length) <= longest:
            runs[cell] = run(configs[cell], results_dir, device, progress=True)
            clear_output(wait=True)  # of the progress bar
    runs = {cell: runs[cell] for cell in configs if cell in runs}
    missing = [f"{METHODS[method].title}, K = {K}" for method, K in configs if (method, K) not in runs]
    if missing:
        advice = f"Runs with `{length}` above {longest:,} are only looked up; "
        advice += f"with a larger `{length.replace('num_', 'live_')}` they are trained."
        display(Markdown(f"Not run at these settings: {'; '.join(missing)}. {advice}"))
    return runs


def values(record: RunRecord, metric: str, digits: int = 2) -> str:
    """The replicates' values, and the larger of their standard errors over the data: "-88.3, -88.5 (0.2)"."""
    found = ", ".join(f"{value:.{digits}f}" for value in record.metrics[metric])
    return f"{found} ({record.metrics[f'{metric}_se'].max():.{digits}f})"
