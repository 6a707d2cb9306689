"""Measure the training speed of every method on the mixture, and write the table that the book shows.

Replicate-iterations a second, ten replicates together, one process on one thread, after compilation;
beside them the share of two limits of the machine, both measured here: its matrix-multiply rate and
its memory bandwidth.
"""

import argparse
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from rwslib import records
from rwslib.experiments import GMMConfig, gmm
from rwslib.methods import METHODS
from rwslib.noise import Noise
from rwslib.training import Trainer

REPLICATES = 10
TARGETS = {  # least replicate-iterations a second at K = 2 and 20
    "ww": (15_000, 8_000),
    "reinforce": (15_000, 8_000),
    "vimco": (15_000, 8_000),
    "dww": (15_000, 8_000),
    "ws": (8_000, 2_500),
    "concrete": (6_000, 1_600),
    "relax": (1_400, 350),
}


def rate(work, seconds: float) -> float:
    """Calls a second of a function, over at least so many seconds, the first call not counted."""
    work()
    calls, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        work()
        calls += 1
    return calls / (time.perf_counter() - begun)


def matmul_limit() -> float:
    """Floating-point operations a second of a large float32 matrix product."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 * rate(lambda: a @ a, 1.0)


def memory_limit() -> float:
    """Bytes a second of a copy that no cache holds, read and written."""
    source, target = torch.zeros(2, 2**26)
    return 2 * source.nbytes * rate(lambda: target.copy_(source), 1.0)


def cost(trainer: Trainer) -> tuple[float, float]:
    """Least work of one replicate-iteration: operations of its matrix products, bytes of state and noise."""
    with FlopCounterMode(display=False) as counter:
        parameters = list(trainer.objective.parameters())
        noise = Noise(0)
        x = trainer.problem.draw_batch(noise, trainer._rows(1)[0, 0])
        loss = trainer.objective(x, noise, torch.tensor(0.5))
        torch.autograd.grad(loss, parameters, allow_unused=True)
    state = 6 * sum(value.numel() for value in parameters)  # parameters and two moments, read and written
    return counter.get_total_flops(), 4 * (state + 2 * sum(trainer.numbers.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=list(TARGETS), choices=METHODS)
    parser.add_argument("--num-particles", nargs="+", type=int, default=[2, 20])
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each measurement")
    parser.add_argument("--write", type=Path, help="also write the table as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    flops_limit, bytes_limit = matmul_limit(), memory_limit()
    print(f"limits of one thread: {flops_limit / 1e9:.0f} Gflop/s, {bytes_limit / 1e9:.1f} GB/s")
    print(f"{'method':10} {'K':>3} {'replicate-iterations/s':>23} {'target':>8} {'matmul':>8} {'memory':>8}")
    rows = []
    for method in arguments.methods:
        for num_particles in arguments.num_particles:
            trainer = Trainer(gmm.problem(GMMConfig(method, num_particles)), range(REPLICATES))
            speed = rate(trainer.train_block, arguments.seconds) * trainer.block * REPLICATES
            flops, traffic = cost(trainer)
            target = dict(zip((2, 20), TARGETS.get(method, ()), strict=False)).get(num_particles)
            matmul, memory = speed * flops / flops_limit, speed * traffic / bytes_limit
            print(
                f"{method:10} {num_particles:3} {speed:23,.0f} {target or '':>8} {matmul:8.1%} {memory:8.1%}",
                flush=True,
            )
            rows.append(
                {
                    "method": method,
                    "num_particles": num_particles,
                    "replicate_iterations_per_second": round(speed),
                    "fraction_of_matmul_limit": round(matmul, 4),
                    "fraction_of_memory_limit": round(memory, 4),
                }
            )
    if arguments.write:
        provenance = records.provenance(0, "cpu")
        table = {
            "date": datetime.now(UTC).date().isoformat(),
            "hardware": provenance["hardware"],
            "limits": {
                "flops_per_second": round(flops_limit),
                "bytes_per_second": round(bytes_limit),
            },
            "rows": rows,
        }
        arguments.write.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
