"""What a run of each experiment is, and the one call that loads a run's record or trains it."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rwslib import records
from rwslib.experiments import air, gmm, sbn, vae
from rwslib.experiments.air import AIRConfig
from rwslib.experiments.gmm import GMMConfig
from rwslib.experiments.sbn import SBNConfig
from rwslib.experiments.vae import VAEConfig
from rwslib.records import RunRecord
from rwslib.training import Problem, Trainer
from rwslib.training.acceleration import check_device, single_thread
from rwslib.training.probe import metric_values

Config = GMMConfig | VAEConfig | AIRConfig | SBNConfig


@dataclass(frozen=True)
class Experiment:
    """All that anything must know of an experiment.

    Attributes:
        title: in tables of the book.
        config: type of its configurations.
        problem: what is trained, of a configuration and a device.
        networks: the modules of one replicate, of a configuration.
        headline: names of the final values that tell most.
        length: how long a run trains, of a configuration's plain values.
        unit: of that length.
        paper_length: the paper's; None where it has no such experiment.
        source: of that length.
        section: of the paper; None where it has no such experiment, and so no claims.
        chapter: name of its notebook, if there is one.
        small: whether starting Python takes longer than many a run, so that short runs share a job.
    """

    title: str
    config: type
    problem: Callable[[Any, str], Problem]
    networks: Callable[[Any], dict[str, nn.Module]]
    headline: tuple[str, ...]
    length: Callable[[Mapping[str, Any]], int] = itemgetter("num_iterations")
    unit: str = "iterations"
    paper_length: int | None = None
    source: str = "the paper"
    section: str | None = None
    chapter: str | None = None
    small: bool = False


# Laid out by hand: title, configuration, problem, networks, headline; then what is not as usual.
# fmt: off
EXPERIMENTS = {
    "gmm": Experiment("Gaussian mixture", GMMConfig, gmm.problem, gmm.build, ("prior_l2", "posterior_l2"),
                      paper_length=100_000, section="4.3", chapter="02_gmm", small=True),
    "vae": Experiment("continuous model", VAEConfig, vae.problem, lambda config: vae.build(),
                      ("log_marginal", "kl_q_p"), unit="epochs",
                      length=lambda plain: vae.epochs_after(plain["num_stages"]),
                      paper_length=vae.epochs_after(vae.PAPER_STAGES),  # it says "about 3000"
                      source="the schedule that the paper follows", section="4.2", chapter="03_vae"),
    "air": Experiment("attend, infer, repeat", AIRConfig, air.problem, air.build,
                      ("log_marginal", "count_accuracy"),
                      paper_length=2_000_000, section="4.1", chapter="04_air"),
    "sbn": Experiment("sigmoid belief network", SBNConfig, sbn.problem, sbn.build, ("log_marginal", "kl_q_p"),
                      paper_length=1_000_000, chapter="06_coins"),  # length of Dong, Mnih & Tucker (2020)
}
# fmt: on


def configuration(plain: dict[str, Any]) -> Config:
    """The configuration of a record, from its plain values; the inverse of ``records.plain``."""
    config = EXPERIMENTS[plain["experiment"]].config
    before = {f.name: f.metadata["before"] for f in fields(config) if "before" in f.metadata}
    return config(**before | plain)


def stored(
    config: Config, results_dir: str | Path | None = None, fewer_runs: bool = False
) -> RunRecord | None:
    """The record of a run if there is one; never trains.

    Args:
        fewer_runs: take the record with the most replicates, up to ``config.num_runs``.
    """
    counts = range(config.num_runs, 0, -1) if fewer_runs else [config.num_runs]
    found = (records.find(records.plain(replace(config, num_runs=count)), results_dir) for count in counts)
    return next(filter(None, found), None)


def modules(record: RunRecord, replicate: int = 0) -> dict[str, nn.Module]:
    """The trained networks of one replicate of a record, computing in float32.

    Raises:
        FileNotFoundError: the record was published without its weights.
        ValueError: the weights are damaged.
    """
    arrays = record.weights()
    config = configuration(record.config)
    parts = EXPERIMENTS[config.experiment].networks(config)
    with torch.no_grad():
        for name, part in parts.items():
            for key, value in part.named_parameters():
                value.copy_(torch.as_tensor(arrays[f"{name}.{key}"][replicate]))
    return parts


def run(
    config: Config, results_dir: str | Path | None = None, device: str = "cpu", progress: bool | None = None
) -> RunRecord:
    """The record of a run: the stored one if there is one, else train, store and return it.

    Interrupted, the same call goes on from the last checkpoint and gives the same final numbers, on a
    GPU up to their last digits.

    Args:
        results_dir: where a new record goes; None is ``$RWSLIB_RESULTS`` or ``results``.
        device: where to train, "cpu" or a CUDA device; each has random numbers of its own.
        progress: show a progress bar; None shows it in a terminal only.

    Raises:
        ValueError: ``device`` is none, ``results_dir`` cannot be written, or a record or checkpoint there
            is damaged.
    """
    record = None
    while record is None:  # the first turn of the loop is enough, unless another process is at it, too
        record = stored(config, results_dir) or train(config, results_dir, device, progress)
    return record


def train(
    config: Config,
    results_dir: str | Path | None = None,
    device: str = "cpu",
    progress: bool | None = None,
    wait: bool = True,
) -> RunRecord | None:
    """Train a run and store it, unless another process did or, without ``wait``, does: then None.

    For the arguments see ``run``.
    """
    device, store, plain = check_device(device), records.writable(results_dir), records.plain(config)
    with records.lock(plain, store, wait) as held:
        if not held or records.find(plain, store):
            return None
        records.source()  # now, because the checkout may change while this trains
        problem = EXPERIMENTS[config.experiment].problem(config, device)
        trainer = Trainer(problem, range(config.num_runs))
        # fields that change nothing before the end: a longer run goes on where a shorter one ended
        trained = {name: plain[name] for name in plain if name not in problem.extensible}
        checkpoint = records.folder(trained, store).with_suffix(".checkpoint")
        curves = trainer.train(checkpoint, sys.stderr.isatty() if progress is None else progress)
        finals = {f"{name}_final": value[:, -1] for name, value in curves.items() if value.ndim == 2}
        with single_thread(device):
            finals |= metric_values(problem.finish(trainer.networks), config.num_runs, {}, "finish")
        # distributions are for pictures: half precision keeps the published records small
        curves = {name: v.astype(np.float16) if v.ndim > 2 else v for name, v in curves.items()}
        weights = {name.removeprefix("parts."): v.cpu().numpy() for name, v in trainer.params.items()}
        provenance = records.provenance(trainer.seconds, device, compiled=trainer.compiled)
        record = records.save(plain, curves | finals, provenance, store, weights)
        if not problem.extensible:
            checkpoint.unlink(missing_ok=True)
        return record
