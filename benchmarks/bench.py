"""Measure how fast training, evaluation and sweeps are, beside the limits of the machine and what we aim at.

All in one process on one thread, or on a GPU, after compilation.  The limits are measured here, too: matrix
products of float32 and of bfloat16 numbers, and copies of memory.  Each section that is measured replaces
its namesake in the file of `--write`; the others stay.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from rwslib import data, files, records
from rwslib.evaluation import importance_estimates
from rwslib.experiments import AIRConfig, GMMConfig, SBNConfig, VAEConfig, air, gmm, sbn, vae
from rwslib.methods import METHODS
from rwslib.models.air import CANVAS, GLIMPSE, MAX_OBJECTS, WHAT_SIZE
from rwslib.noise import Noise
from rwslib.training import Trainer
from rwslib.training.acceleration import can_compile, single_thread

Limits = dict[str, float]
Rows = Iterator[dict[str, Any]]

GMM_RUNS = 10  # replicates together
GMM_AIMS = {  # replicate-iterations a second at K = 2 and 20
    **dict.fromkeys(("ww", "reinforce", "vimco", "dww"), (15_000, 8_000)),
    "ws": (8_000, 2_500),
    "concrete": (6_000, 1_600),
    "relax": (1_400, 350),
}
VAE_AIMS = {8: 0.55, 64: 0.75}  # share of the float32 limit by K
MNIST_STEPS = 1875  # an epoch of MNIST in batches of 32
EVALUATION_AIM = 360  # seconds
EVALUATED_IMAGES, EVALUATED_PARTICLES, TEST_IMAGES = 500, 5000, 10_000
PRECISIONS = {"float32": "flops_per_second", "bfloat16": "bfloat16_flops_per_second"}
SBN_RUNS = 4  # replicates together
SBN_CASES = (  # methods and K
    *product(("ww", "vimco", "rloo", "disarm", "reinmax", "concrete"), (2, 10)),
    *product(("ww", "vimco"), (50,)),
)
AIR_AIMS = {5: 15, 10: None, 20: 6}  # iterations a second by K
VAE_GPU_CASES = (  # precision, K, replicates
    *product(("float32", "bfloat16"), (8, 64), (1, 4)),
    *(("bfloat16", num_particles, 1) for num_particles in (128, 256, 512)),
)
AIR_GPU_CASES = ((5, 3), (10, 3), (20, 2))  # K, replicates
AIR_GPU_AIMS = {5: 400}  # iterations a second of each replicate
SHARED_RUNS, OWN_RUNS, ROWS, RECORDS = 12, 4, 600, 1000
SWEEP_AIMS = {"run": 3, "up to date": 15, "list": 2}  # seconds


def rate(work: Callable[[], Any], seconds: float) -> float:
    """Calls a second of a function, over at least so many seconds, the first call not counted."""
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    work()
    wait()
    calls, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        work()
        wait()
        calls += 1
    return calls / (time.perf_counter() - begun)


LARGE = {"cpu": (1024, 2**26), "cuda": (8192, 2**29)}  # rows of a matrix, numbers of a copy


def machine_limits(seconds: float, device: str = "cpu") -> Limits:
    """Operations a second of large matrix products; bytes a second, read and written, of an uncached copy."""
    size, length = LARGE[device]

    def flops(dtype: torch.dtype) -> float:
        a = torch.randn(size, size, device=device).to(dtype)
        return 2 * size**3 * rate(lambda: a @ a, seconds)

    source, target = torch.zeros(2, length, device=device)
    return {
        "flops_per_second": flops(torch.float32),
        "bfloat16_flops_per_second": flops(torch.bfloat16),
        "bytes_per_second": 2 * source.nbytes * rate(lambda: target.copy_(source), seconds),
    }


def speed(trainer: Trainer, seconds: float) -> float:
    """Iterations of one replicate a second, drawing batches and random numbers included."""
    return rate(trainer.train_block, seconds) * trainer.block * len(trainer.replicates)


def cost(trainer: Trainer) -> tuple[int, int]:
    """Least work of one replicate-iteration: operations of its matrix products, bytes of state and noise."""
    with FlopCounterMode(display=False) as counter:
        parameters = list(trainer.objective.parameters())
        noise = Noise(0, device=trainer.device)
        x = trainer.problem.draw_batch(noise, trainer.draw(1)[2][0, 0])
        loss = trainer.objective(x, noise, trainer.problem.progress(0))
        loss.backward()
    state = 6 * sum(value.numel() for value in parameters)  # parameters and two moments, read and written
    return counter.get_total_flops(), 4 * (state + 2 * sum(trainer.numbers.values()))


# -- sections -----------------------------------------------------------------------------------------


def gmm_rows(seconds: float, limits: Limits) -> Rows:
    """The mixture, ten replicates together."""
    for (method, aims), (i, num_particles) in product(GMM_AIMS.items(), enumerate((2, 20))):
        trainer = Trainer(gmm.problem(GMMConfig(method, num_particles)), range(GMM_RUNS))
        found, (flops, traffic) = speed(trainer, seconds), cost(trainer)
        yield {
            "method": method,
            "num_particles": num_particles,
            "replicate_iterations_per_second": round(found),
            "aim_per_second": aims[i],
            "fraction_of_matmul_limit": found * flops / limits["flops_per_second"],
            "fraction_of_memory_limit": found * traffic / limits["bytes_per_second"],
        }


def vae_rows(seconds: float, limits: Limits) -> Rows:
    """The continuous model, at MNIST's size of image, batch and epoch."""
    for precision, num_particles, method, num_runs in product(PRECISIONS, VAE_AIMS, ("iwae", "ww"), (1, 4)):
        config = VAEConfig(method, num_particles, num_runs=num_runs, precision=precision)
        aim = VAE_AIMS[num_particles] if precision == "float32" else None
        yield vae_row(config, seconds, limits) | {"aim_fraction": aim}


def vae_row(config: VAEConfig, seconds: float, limits: Limits, device: str = "cpu") -> dict[str, Any]:
    """How fast one configuration of the continuous model trains."""
    config = dataclasses.replace(config, dataset="digits", num_stages=vae.PAPER_STAGES)
    problem = vae.problem(config, device)
    length = problem.num_iterations // MNIST_STEPS * MNIST_STEPS  # whole epochs
    problem = dataclasses.replace(problem, log_every=MNIST_STEPS, num_iterations=length)
    trainer = Trainer(problem, range(config.num_runs))
    decoder, encoder = (
        sum(weight.numel() for weight in trainer.objective.parts[part].parameters() if weight.ndim == 2)
        for part in ("p", "q")
    )
    # forward, and backward twice as much: two operations a weight, for every particle or every image
    flops = 3 * 2 * config.batch_size * (decoder * config.num_particles + encoder)
    found = speed(trainer, seconds)
    return {
        "precision": config.precision,
        "method": config.method,
        "num_particles": config.num_particles,
        "replicates": config.num_runs,
        "replicate_iterations_per_second": round(found, 1),
        "gigaflop_per_iteration": flops / 1e9,
        "fraction_of_matmul_limit": found * flops / limits[PRECISIONS[config.precision]],
    }


def vae_gpu_rows(seconds: float, limits: Limits) -> Rows:
    """The continuous model on a GPU, at MNIST's size of image, batch and epoch."""
    for precision, num_particles, num_runs in VAE_GPU_CASES:
        config = VAEConfig("ww", num_particles, num_runs=num_runs, precision=precision)
        yield vae_row(config, seconds, limits, GPU)


def evaluation_rows(seconds: float, limits: Limits) -> Rows:
    """The final test log marginal of the continuous model: some images, scaled to the whole test set."""
    images = data.load("digits").train[: EVALUATED_IMAGES + 20].flatten(1)
    x, parts = data.binarize(images, Noise(1)), vae.build()

    def timed(x: torch.Tensor) -> float:
        begun = time.perf_counter()
        arguments = (parts["p"], parts["q"], x, EVALUATED_PARTICLES, Noise(2))
        importance_estimates(*arguments, compiled=can_compile())
        return time.perf_counter() - begun

    timed(x[:20])  # compiles
    start = timed(x[:20])
    yield {
        "particles": EVALUATED_PARTICLES,
        "images_measured": EVALUATED_IMAGES,
        "images": TEST_IMAGES,
        "seconds": round(start + (timed(x) - start) * TEST_IMAGES / (len(x) - 20)),
        "aim_seconds": EVALUATION_AIM,
    }


def sbn_rows(seconds: float, limits: Limits) -> Rows:
    """Two hundred coins at MNIST's size of image, four replicates together; last, a plain loop over one."""
    columns = ("method", "num_particles", "replicates", "replicate_iterations_per_second")

    def row(name: str, num_particles: int, replicates: int, found: float, flops: int) -> dict[str, Any]:
        fraction = found * flops / limits["flops_per_second"]
        values = (name, num_particles, replicates, round(found, 1))
        return dict(zip(columns, values, strict=True)) | {"fraction_of_matmul_limit": fraction}

    for method, num_particles in SBN_CASES:
        config = SBNConfig(method, num_particles, "digits")
        trainer = Trainer(sbn.problem(config), range(SBN_RUNS))
        yield row(method, num_particles, SBN_RUNS, speed(trainer, seconds), cost(trainer)[0])
    config = SBNConfig("disarm", 10, "digits")
    trainer = Trainer(sbn.problem(config), range(1), compiled=False)
    yield row("plain loop, disarm", 10, 1, rate(plain_step(config), seconds), cost(trainer)[0])


def plain_step(config: SBNConfig) -> Callable[[], None]:
    """A step as one writes it without the trainer: one replicate, PyTorch's own Adam, nothing compiled."""
    parts, images = sbn.build(config), data.load(config.dataset).train.flatten(1)
    p, q = parts["p"], parts["q"]
    adam = torch.optim.Adam([*p.parameters(), *q.parameters()], config.learning_rate)
    noise = Noise(0)

    def step() -> None:
        x = data.binarize(images[torch.randint(len(images), (config.batch_size,))], noise)
        adam.zero_grad()
        METHODS[config.method].function(p, q, x, config.num_particles, noise).mean().backward()
        adam.step()

    return step


def air_rows(seconds: float, limits: Limits) -> Rows:
    """Attend, infer, repeat, one replicate from its start, where its work is much as later.

    With $PYRO_AIR_EXAMPLE, a copy of the folder `examples/air` of Pyro's repository, Pyro's own, too.
    """
    example = files.from_environment("PYRO_AIR_EXAMPLE")
    pyro_step = pyro_example(example) if example else None  # says at once what is missing
    for method, (num_particles, aim) in product(("ww", "vimco"), AIR_AIMS.items()):
        row = air_row(AIRConfig(method, num_particles, num_runs=1), seconds, limits)
        yield row | {"aim_per_second": aim}
    if pyro_step:
        row = {"method": "Pyro's example", "num_particles": 1}
        row["iterations_per_second"] = round(rate(pyro_step, seconds), 1)
        yield row | dict.fromkeys(("aim_per_second", "gigaflop_per_iteration", "fraction_of_matmul_limit"))


def air_row(config: AIRConfig, seconds: float, limits: Limits, device: str = "cpu") -> dict[str, Any]:
    """How fast one configuration of attend, infer, repeat trains, its aim to be filled in."""
    config = dataclasses.replace(config, dataset="digits", dream_iterations=0)
    trainer = Trainer(air.problem(config, device), range(config.num_runs))
    flops, found = cost(trainer)[0], speed(trainer, seconds)
    return {
        "method": config.method,
        "num_particles": config.num_particles,
        **({"replicates": config.num_runs} if device == GPU else {}),
        "iterations_per_second": round(found / config.num_runs, 1),
        "aim_per_second": None,
        "gigaflop_per_iteration": flops / 1e9,
        "fraction_of_matmul_limit": found * flops / limits["flops_per_second"],
    }


def air_gpu_rows(seconds: float, limits: Limits) -> Rows:
    """Attend, infer, repeat on a GPU, where all objects that could be there are worked on."""
    for method, (num_particles, num_runs) in product(("ww", "vimco"), AIR_GPU_CASES):
        row = air_row(AIRConfig(method, num_particles, num_runs=num_runs), seconds, limits, GPU)
        yield row | {"aim_per_second": AIR_GPU_AIMS.get(num_particles)}


def pyro_example(folder: Path) -> Callable[[], float]:
    """One step of Pyro's example on our scenes: its method, one particle, networks as wide as ours."""
    sys.path.insert(0, str(folder))
    try:
        import pyro
        from air import AIR
    except ImportError as error:
        needs = "pyro-ppl installed and the folder examples/air of Pyro's repository"
        raise SystemExit(f"PYRO_AIR_EXAMPLE={folder} needs {needs}: {error}") from None
    scenes = data.scenes("digits", "train").images.float() / 255
    wide = [256, 256]
    nets = {"encoder_net": wide, "decoder_net": wide, "predict_net": wide, "embed_net": wide}
    model = AIR(MAX_OBJECTS, CANVAS, GLIMPSE, WHAT_SIZE, 256, bl_predict_net=wide, **nets)
    adam, elbo = pyro.optim.Adam({"lr": 1e-4}), pyro.infer.TraceGraph_ELBO()
    svi = pyro.infer.SVI(model.model, model.guide, adam, loss=elbo)
    return lambda: svi.step(scenes, batch_size=AIRConfig("ww", 5).batch_size)


def sweep_rows(seconds: float, limits: Limits) -> Rows:
    """Whole commands, the start of Python included, on one core."""
    with tempfile.TemporaryDirectory() as folder:
        grid = Path(folder) / "grid.yaml"
        environment = os.environ | {"RWSLIB_PUBLISHED": str(Path(folder) / "none"), "OMP_NUM_THREADS": "1"}

        def timed(store: str, *command: str) -> float:
            begun = time.perf_counter()
            arguments = [*command, "--results-dir", str(Path(folder) / store)]
            done = subprocess.run(
                [sys.executable, "-m", "rwslib", *arguments], env=environment, capture_output=True, text=True
            )
            if done.returncode:
                raise SystemExit(f"rwslib {' '.join(command)} failed: {done.stderr}")
            return time.perf_counter() - begun

        def overhead(store: str, entry: dict[str, Any]) -> float:
            grid.write_text(yaml.safe_dump([entry]), encoding="utf-8")
            took = timed(store, "sweep", str(grid), "--cores", "1")
            trained = [record.provenance["seconds"] for record in records.iterate(Path(folder) / store)]
            return (took - sum(trained)) / len(trained)

        tiny = {"experiment": "gmm", "method": "ww", "num_particles": 2, "num_iterations": 20, "num_runs": 2}
        own = {"experiment": "vae", "method": "ww", "num_particles": 2, "dataset": "digits"}
        own |= {"num_stages": 1, "num_runs": 1, "eval_particles": 1}
        for what, store, entry, number in (
            ("a run beyond its training, in a job with others", "shared", tiny, SHARED_RUNS),
            ("a run beyond its training, in a job of its own", "own", own, OWN_RUNS),
        ):
            found = overhead(store, entry | {"seed": list(range(1, number + 1))})
            yield {"what": what, "seconds": round(found, 2), "aim_seconds": SWEEP_AIMS["run"]}
        seeds = fill(Path(folder) / "full", RECORDS)
        fields = seeds[0] | {"seed": list(range(1, ROWS + 1))}
        grid.write_text(
            yaml.safe_dump([{k: v if k == "seed" else [v] for k, v in fields.items()}]), encoding="utf-8"
        )
        found = timed("full", "sweep", str(grid))
        what = f"a sweep of {ROWS} rows that are all done"
        yield {"what": what, "seconds": round(found, 2), "aim_seconds": SWEEP_AIMS["up to date"]}
        found = timed("full", "list")
        what = f"list over {RECORDS:,} records"
        yield {"what": what, "seconds": round(found, 2), "aim_seconds": SWEEP_AIMS["list"]}


def fill(store: Path, number: int) -> list[dict[str, Any]]:
    """Copies of a published record that differ by their seeds; returns their configurations."""
    source = next(r for r in records.iterate(records.published_dir()) if r.config["experiment"] == "gmm")
    configs = [source.config | {"seed": seed} for seed in range(1, number + 1)]
    for config in configs:
        target = records.folder(config, store)
        shutil.copytree(source.path, target, ignore=shutil.ignore_patterns("weights.safetensors"))
        (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return configs


SECTIONS = {
    "gmm": gmm_rows,
    "vae": vae_rows,
    "evaluation": evaluation_rows,
    "sbn": sbn_rows,
    "air": air_rows,
    "sweep": sweep_rows,
    "vae_gpu": vae_gpu_rows,
    "air_gpu": air_gpu_rows,
}
ON_GPU, GPU = ("vae_gpu", "air_gpu"), "cuda"


# -- output -------------------------------------------------------------------------------------------


def cell(name: str, value: Any) -> str:
    """A value for the terminal, at least as wide as its header."""
    if isinstance(value, float):
        value = f"{value:.1%}" if "fraction" in name else f"{value:,.4g}"
    return f"{'' if value is None else value!s:>{len(header(name))}}"


def header(name: str) -> str:
    """The name of a column for the terminal."""
    short = name.replace("_per_second", "/s").replace("_per_iteration", "").replace("fraction_of_", "")
    return f"{short.replace('_', ' '):>9}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    possible = [name for name in SECTIONS if name not in ON_GPU or torch.cuda.is_available()]
    parser.add_argument("--only", nargs="+", default=possible, choices=SECTIONS, metavar="SECTION")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each measurement of training")
    parser.add_argument("--write", type=files.expanded, help="also write the tables as JSON")
    chosen = parser.parse_args(arguments)
    limits: dict[str, Limits] = {}
    for section in chosen.only:
        device = GPU if section in ON_GPU else "cpu"
        with single_thread(device):
            if device not in limits:
                limits[device] = machine_limits(min(1.0, chosen.seconds), device)
                found = (
                    f"{value / 1e9:.4g} G{header(name).strip()}" for name, value in limits[device].items()
                )
                print(f"{device}: {', '.join(found)}")
            print(f"\n{section}: {SECTIONS[section].__doc__.splitlines()[0]}")
            rows = []
            for row in SECTIONS[section](chosen.seconds, limits[device]):
                if not rows:
                    print("  ".join(map(header, row)))
                print("  ".join(cell(name, value) for name, value in row.items()), flush=True)
                rows.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
        if chosen.write:
            write(chosen.write, section, device, limits[device], rows)


def write(path: Path, section: str, device: str, limits: Limits, rows: list[dict[str, Any]]) -> None:
    """Replace one section of the file, or add it."""
    measured = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    measured[section] = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": records.provenance(0, device)["hardware"],
        "limits": {name: round(value) for name, value in limits.items()},
        "rows": rows,
    }
    path.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
