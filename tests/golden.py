"""Short seeded runs, and what is kept of them in ``golden.json``.

``python tests/golden.py`` runs them all and writes the file anew (a minute).
"""

import hashlib
import json
import platform
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from rwslib import data, records
from rwslib.experiments import air, configuration, gmm, sbn, vae
from rwslib.noise import Noise
from rwslib.training import Trainer
from rwslib.training.acceleration import single_thread

FILE = Path(__file__).with_name("golden.json")

# Every field, so that a new default changes nothing here.
GMM = {"num_particles": 3, "num_iterations": 2000, "num_runs": 2, "batch_size": 20, "learning_rate": 1e-3}
GMM |= {"init": "far", "hidden": [16], "seed": 5, "delta": None, "wake_weight": None, "temperature": None}
VAE = {"num_particles": 3, "dataset": "digits", "num_stages": 1, "num_runs": 2, "batch_size": 32}
VAE |= {"learning_rate": 1e-3, "eval_particles": 10, "precision": "float32", "seed": 5, "wake_weight": None}
AIR = {"num_particles": 3, "dataset": "digits", "num_iterations": 4, "num_runs": 2, "batch_size": 4}
AIR |= {"optimizer": "adam", "learning_rate": 5e-4, "decay_at": [0.5], "eval_particles": 10}
AIR |= {"eval_scenes": 10, "seed": 5, "warmup_iterations": 2, "presence_logit": 0.5, "shift_sd": 0.5}
AIR |= {"scale_prior": [-0.4, 0.1], "background": -5.0, "learn_count": True, "pixel_sd": None}
AIR |= {"center_weights": None, "delta": None, "wake_weight": None}
AIR |= {"dream_iterations": 0, "sorted_dreams": False}
SBN = {"num_particles": 4, "dataset": "digits", "latents": [6], "hidden": [], "num_iterations": 40}
SBN |= {"num_runs": 2, "batch_size": 20, "learning_rate": 1e-3, "eval_particles": 10, "eval_images": 10}
SBN |= {"seed": 5, "center_weights": None, "delta": None, "wake_weight": None, "gamma": None}
SBN |= {"temperature": None}
FIELDS = {"gmm": GMM, "vae": VAE, "air": AIR, "sbn": SBN}
OPTIONS = {
    "dww": {"delta": 0.2},
    "wws": {"wake_weight": 0.3},
    "concrete": {"temperature": [3.0, 0.5]},
    "sbn ws": {"latents": [3, 5], "hidden": [4]},
    "sbn ovis": {"gamma": 1.0},
    "air ww": {"center_weights": True, "pixel_sd": 0.3},
    "air nvil": {"optimizer": "rmsprop"},
    ", dreams": {"dream_iterations": 2, "sorted_dreams": True, "warmup_iterations": 0},
}
METHODS = {
    "gmm": ("ww", "ws", "wws", "dww", "vimco", "relax", "rebar", "concrete", "nvil", "reinforce", "tvo"),
    "vae": ("iwae", "ww", "wws", "dreg", "vimco"),
    "air": ("ww", "ws", "wws", "dww", "vimco", "nvil"),
    "sbn": ("ww", "ws", "vimco", "rloo", "ovis", "disarm_bound", "muprop", "reinmax", "gumbel_st", "relax"),
}
CASES = [f"{experiment} {method}" for experiment, methods in METHODS.items() for method in methods]
CASES += ["air vimco, dreams", "air ws, dreams"]  # two steps on dreams, then two of the method
OTHER_WAY = ["gmm ww, one by one", "gmm nvil, one by one", "vae ww, one by one", "air ww, mapped"]
OTHER_WAY += ["sbn ww, one by one"]
COMPILED = ["gmm ww, compiled", "gmm relax, compiled", "gmm nvil, one by one, compiled"]
PATHS = [(0,), (0, 1), (0, 2), (5, 1)]  # one for each use: evaluation, initial values, blocks, epochs
PATHS += [(5, 0, 0, 3), (5, 1, 0, 4), (5, 1, 0, 5), (5, 1, 20), (5, 1, 20, 1), (5, 1, 2, 2)]


def config(case: str):
    """The configuration of a case such as "gmm ww, one by one"."""
    name = case.partition(",")[0]
    experiment, method = name.split()
    options = OPTIONS.get(method, {}) | OPTIONS.get(name, {})
    options |= OPTIONS[", dreams"] if ", dreams" in case else {}
    return configuration({"experiment": experiment, "method": method, **FIELDS[experiment], **options})


@contextmanager
def few_data():
    """Little to look at: how well a metric is estimated does not matter here."""
    with ExitStack() as stack:
        for module, name, value in [
            (data, "NUM_SCENES", {"train": 60, "test": 30}),
            (air, "CURVE_SCENES", 10),
            (vae, "CURVE_IMAGES", 20),
            (sbn, "CURVE_IMAGES", 20),
        ]:
            stack.enter_context(mock.patch.object(module, name, value))
        data._scenes.cache_clear()
        stack.callback(data._scenes.cache_clear)
        yield


def trainer(case: str) -> Trainer:
    """The trainer of a case, nothing trained yet; needs ``few_data``."""
    settings = config(case)
    problem = {"gmm": gmm, "vae": vae, "air": air, "sbn": sbn}[settings.experiment].problem(settings)
    if ", one by one" in case:
        problem = replace(problem, mapped=False)
    elif ", mapped" in case:
        problem = replace(problem, mapped=True, build=lambda: air.build(settings, packed=False))
    return Trainer(problem, range(settings.num_runs), compiled=case.endswith(", compiled"))


def run(case: str) -> dict:
    """What is kept of a case: the same in JSON as in memory."""
    with few_data(), single_thread("cpu"):
        run = trainer(case)
        uniform, normal, rows = run.draw(run.block)
        streams = {
            "block": run.block,
            "uniform": uniform[:, -1, :3].tolist(),
            "normal": normal[:, -1, :3].tolist(),
            "rows": rows[:, -1, :5].tolist(),
            "digest": digest([uniform]),
        }
        start = run.params
        run.log()
        first = run.block + sum(phase.iterations for phase in run.problem.phases)
        end = min(first, run.problem.num_iterations)
        while run.iteration < end:
            run.train_block()
        run.log()
        tensors = [*run.params.values(), *(value for moment in run.moments for value in moment.values())]
        numbers = [values for name, values in run.curves.items() if name != "iteration"]
        return {
            "config": records.plain(config(case)),
            "streams": streams,
            "before": {name: summary(values[0]) for name, values in run.curves.items()},
            "after": {name: summary(values[1]) for name, values in run.curves.items()},
            "gradients": by_part(run.moments[0]),
            "steps": by_part({name: run.params[name] - start[name] for name in start}),
            "bits": digest([*tensors, *(torch.from_numpy(np.stack(values)) for values in numbers)]),
        }


def by_part(tensors: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    """A summary each of p, q and the control variate."""
    parts = {}
    for name, value in tensors.items():
        parts.setdefault(name.split(".")[1], []).append(value.flatten())
    return {name: summary(torch.cat(values)) for name, values in parts.items()}


def summary(values) -> list[float]:
    """Length of an array, and its projection on a fixed direction: together they see every change."""
    values = np.asarray(values, dtype=np.float64).ravel()
    found = [np.linalg.norm(values), values @ np.cos(np.arange(len(values)))]
    return [float(f"{value:.9g}") for value in found]


def digest(tensors) -> str:
    """Of the bits of tensors."""
    content = b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(content).hexdigest()[:16]


def stream(path: tuple[int, ...]) -> dict:
    """The first numbers of the noise source of a path."""
    return {
        "uniform": Noise(*path).uniform(4).tolist(),
        "normal": Noise(*path).normal(4).tolist(),
        "permutation": Noise(*path).permutation(1000)[:6].tolist(),
    }


def kernels() -> str:
    """What decides which kernels run: where it is the same, so are the bits."""
    processor = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        wanted = ("vendor_id", "cpu family", "model", "model name")
        facts = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
        processor = ", ".join(facts.get(name, "?") for name in wanted)
    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, numpy {np.__version__}, {capability}, {processor}"


def write() -> None:
    """Run all cases and write the file."""
    kept = {
        "kernels": kernels(),
        "streams": {" ".join(map(str, path)): stream(path) for path in PATHS},
        "cases": {case: run(case) for case in CASES + OTHER_WAY},
    }
    lines = [f'"kernels": {json.dumps(kept["kernels"])}']
    for part in ("streams", "cases"):  # a line each, so that a difference says where it is
        rows = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in kept[part].items()]
        lines.append(f'"{part}": {{\n' + ",\n".join(rows) + "\n}")
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    write()
