"""The playground computes what the library computes, and runs in a browser."""

import json
import re
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import CHROMIUM, NODE, needs_chromium, needs_node
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from rwslib import estimators, methods
from rwslib.models.gmm import GMM, InferenceNetwork
from rwslib.noise import Noise, Tape
from rwslib.report import plotting
from rwslib.training.optimizers import adam

ROOT = Path(__file__).resolve().parent.parent
STATIC = ROOT / "book/_static"
METHODS = {
    "ws": methods.wake_sleep,
    "ww": methods.wake_wake,
    "dww": methods.defensive_wake_wake,
    "reinforce": methods.reinforce,
    "vimco": methods.vimco,
}
ESTIMATORS = {
    "wakeTheta": estimators.wake_theta_loss,
    "wakePhi": estimators.wake_phi_loss,
    "sleepPhi": lambda log_p, log_q: estimators.sleep_phi_loss(log_q),
    "reinforce": estimators.reinforce_loss,
    "vimco": estimators.vimco_loss,
}
PRELUDE = """
const P = require(process.argv[1]);
const input = JSON.parse(require("fs").readFileSync(0, "utf8"));
function tape(values) {
  let i = 0;
  return () => { if (i === values.length) throw Error("no numbers are left"); return values[i++]; };
}
"""


def javascript(body: str, **given: object) -> object:
    """What a script prints, as JSON; it finds the playground in `P` and its arguments in `input`."""
    command = [NODE, "-e", f"{PRELUDE}\nconsole.log(JSON.stringify((() => {{ {body} }})()))"]
    command.append(str(STATIC / "playground.js"))
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def mixture(seed: int = 0) -> tuple[GMM, InferenceNetwork]:
    """A mixture and a network away from their starts, so that q is neither flat nor saturated."""
    torch.manual_seed(seed)
    p, q = GMM("near").double(), InferenceNetwork().double()
    with torch.no_grad():
        p.theta.normal_()
        q.layers[0].weight.mul_(0.05)
        q.layers[1].weight.mul_(6)
    return p, q


def tape(num_particles: int, batch: int, seed: int = 1) -> Tape:
    """More numbers than any method takes in one step."""
    noise = Noise(seed)
    count = 5 * num_particles * batch + 5 * batch
    return Tape(noise.uniform(count).double(), noise.normal(count).double())


def close(actual, expected, rtol=1e-8):
    expected = expected.detach().numpy() if isinstance(expected, torch.Tensor) else np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


# -- the numbers -------------------------------------------------------------------------------------


@needs_node
def test_the_playgrounds_estimators_are_the_librarys(double):
    generator = torch.Generator().manual_seed(0)
    cases = []
    for num_particles in (2, 5, 20):
        for scale in (1.0, 30.0):  # 30: one particle takes all the weight
            log_p, log_q = scale * torch.randn(2, num_particles, generator=generator)
            cases.append((log_p.tolist(), log_q.tolist()))
    results = javascript(
        "return input.names.map((name) => input.cases.map(([p, q]) => P.estimators[name](p, q)))",
        names=list(ESTIMATORS),
        cases=cases,
    )
    for loss, per_case in zip(ESTIMATORS.values(), results, strict=True):
        for case, result in zip(cases, per_case, strict=True):
            log_p, log_q = (torch.tensor(values)[:, None].requires_grad_() for values in case)
            expected = loss(log_p, log_q).sum()
            grads = torch.autograd.grad(expected, (log_p, log_q), materialize_grads=True, allow_unused=True)
            close(result["loss"], expected)
            close(result["p"], grads[0][:, 0])
            close(result["q"], grads[1][:, 0])


@needs_node
@pytest.mark.parametrize("num_particles", [2, 20])
@pytest.mark.parametrize("name", METHODS)
def test_the_playgrounds_gradients_are_autograds(double, name, num_particles):
    """Same parameters, same observations, same random numbers: same particles, loss and gradients."""
    p, q = mixture()
    noise = tape(num_particles, batch=7)
    x = GMM("true").double().sample(7, Noise(3))[1].detach().double()
    loss = METHODS[name](p, q, x, num_particles, noise).mean()
    theta, *phi = torch.autograd.grad(loss, [p.theta, *q.parameters()])
    result = javascript(
        """const noise = { uniform: tape(input.uniform), normal: tape(input.normal) };
        const [theta, phi] = [input.theta, input.phi].map((values) => Float64Array.from(values));
        const result = P.lossAndGradients(input.method, theta, phi, input.x, input.K, noise, 0.2);
        return { loss: result.loss, theta: [...result.theta], phi: [...result.phi] };""",
        method=name,
        theta=p.theta.tolist(),
        phi=parameters_to_vector(q.parameters()).tolist(),
        x=x.tolist(),
        K=num_particles,
        uniform=noise.tapes["uniform"].tolist(),
        normal=noise.tapes["normal"].tolist(),
    )
    close(result["loss"], loss)
    close(result["theta"], theta)
    close(result["phi"], parameters_to_vector(phi))


@needs_node
def test_a_playground_run_is_training_with_the_librarys_adam(double):
    """Twenty steps of WW from the far start, the run's own random numbers handed to the library."""
    result = javascript(
        """const run = new P.Run(5, "far"), start = [...run.phi];
        const noise = run.noise, used = { uniform: [], normal: [] };
        run.noise = {};
        for (const kind of ["uniform", "normal"]) {
          run.noise[kind] = () => { const value = noise[kind](); used[kind].push(value); return value; };
        }
        const losses = Array.from({ length: 20 }, () => run.step("ww", 2, 0.2, 0.01));
        return { start, used, losses, theta: [...run.theta], phi: [...run.phi], metrics: run.metrics() };"""
    )
    truth, p, q = GMM("true").double(), GMM("far").double(), InferenceNetwork().double()
    vector_to_parameters(torch.tensor(result["start"]), q.parameters())
    noise = Tape(*(torch.tensor(result["used"][kind]) for kind in ("uniform", "normal")))
    params = {"theta": p.theta, **dict(q.named_parameters())}
    moments = tuple({name: torch.zeros_like(value) for name, value in params.items()} for _ in range(2))
    for step, expected in enumerate(result["losses"], start=1):
        loss = methods.wake_wake(p, q, truth.sample(100, noise)[1].detach(), 2, noise).mean()
        grads = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
        assert loss.item() == pytest.approx(expected, rel=1e-6)
        with torch.no_grad():
            new, moments = adam(params, grads, moments, torch.tensor(float(step)), 0.01)
            for name, value in params.items():
                value.copy_(new[name])
    close(result["theta"], p.theta, rtol=1e-6)
    close(result["phi"], parameters_to_vector(q.parameters()), rtol=1e-6)
    error = (p.log_prior().exp() - truth.log_prior().exp()).norm().item()
    assert result["metrics"]["prior"] == pytest.approx(error, rel=1e-6)


@needs_node
def test_the_playgrounds_posterior_and_errors_are_exact(double):
    x = torch.tensor([-7.0, 0.0, 95.0, 133.3, 190.0])
    result = javascript(
        """const posteriors = input.x.map((x) => P.exactPosterior(P.TRUE_LOG_PRIOR, x));
        const run = new P.Run(2, "far"), { posterior, prior, left } = run.metrics(input.x, posteriors);
        const plain = posteriors.map((log) => [...log]);
        return { posteriors: plain, phi: [...run.phi], posterior, prior, left };""",
        x=x.tolist(),
    )
    truth, q = GMM("true").double(), InferenceNetwork().double()
    vector_to_parameters(torch.tensor(result["phi"]), q.parameters())
    log_joint = truth.log_joint(torch.arange(20)[:, None].expand(-1, len(x)), x).T
    log_posterior = torch.log_softmax(log_joint, dim=-1)
    close(result["posteriors"], log_posterior)
    close(result["posterior"], (q.log_probs(x).exp() - log_posterior.exp()).norm(dim=-1).mean())
    assert result["prior"] == pytest.approx(0.69392, abs=1e-5)
    assert result["left"] == list(range(7))


@needs_node
def test_the_playgrounds_random_numbers_have_the_right_moments():
    count = 40_000
    draws = javascript(
        """const seeds = [1, 1, 2].map((seed) => new P.Random(seed));
        return seeds.map((r) => ({
          uniform: Array.from({ length: input.count }, () => r.uniform()),
          normal: Array.from({ length: input.count }, () => r.normal()),
        }))""",
        count=count,
    )
    assert draws[0] == draws[1]
    for kind, mean, std, kurtosis in (("uniform", 0.5, 12**-0.5, 1.8), ("normal", 0, 1, 3)):
        a, b = np.array(draws[0][kind]), np.array(draws[2][kind])
        z = (a - mean) / std
        for value, expected, spread in (
            (z, 0, 1),
            (z**2, 1, (kurtosis - 1) ** 0.5),
            (z**3, 0, 15**0.5),
            (z**4, kurtosis, 96**0.5),
            (z[1:] * z[:-1], 0, 1),  # one after the other
            (z * (b - mean) / std, 0, 1),  # one seed and the next
        ):
            assert abs(value.mean() - expected) < 5 * spread / count**0.5
    uniform = np.array(draws[0]["uniform"])
    assert uniform.min() > 0
    assert uniform.max() < 1
    counts = np.bincount((uniform * 100).astype(int), minlength=100)
    assert ((counts - count / 100) ** 2 / (count / 100)).sum() < 99 + 5 * 198**0.5


@needs_node
def test_the_playground_has_the_books_names_and_colours():
    table = javascript("return P.METHODS")
    assert table.keys() == METHODS.keys()
    for name, row in table.items():
        style = plotting.method_style(name)
        assert (row["title"], row["color"]) == (style["label"], style["color"])
        assert bool(row["dash"]) == (style["linestyle"] == "--")
        assert methods.METHODS[name].function is METHODS[name]


# -- the page ----------------------------------------------------------------------------------------


@needs_node
def test_seeds_are_whole_numbers_of_32_bits_and_nothing_else_is_taken():
    typed = ["0", "1", "4294967295", "-1", "1.5", "", "99999999999", "4294967296", "1e3", " 2", "seed"]
    assert javascript("return input.typed.map(P.seedOf)", typed=typed) == [0, 1, 2**32 - 1, *[None] * 8]


@needs_node
def test_a_run_is_told_without_settings_that_were_only_passed_through():
    def story(*segments):
        named = [{"name": name, "steps": steps} for name, steps in segments]
        return javascript("return P.story(input.segments)", segments=named)

    assert story(("WW", 900), ("WS", 3), ("VIMCO", 12), ("δ-WW", 1)) == "WW, then δ-WW"
    assert story(("WW", 900), ("WS", 3), ("WW", 400)) == "WW"
    assert story(*((name, 100) for name in "abcde")) == "a, then …, then d, then e"
    assert story() == ""


@needs_node
def test_the_axis_of_errors_reaches_what_runs_reach():
    axis = javascript("return P.AXIS")
    assert axis["low"] <= 0.002 and axis["high"] >= 2**0.5 * 0.98  # two distributions are no farther apart
    assert axis["ticks"] == sorted(axis["ticks"])
    assert axis["low"] <= axis["ticks"][0] and axis["ticks"][-1] < axis["high"]


@needs_node
def test_every_experiment_of_the_page_is_a_preset_and_chapter_2_leads_to_it():
    page, chapter = ((ROOT / name).read_text() for name in ("book/playground.md", "notebooks/02_gmm.ipynb"))
    found = javascript("const { PRESETS, PARTICLES, STOP } = P; return { PRESETS, PARTICLES, STOP }")
    presets = found["PRESETS"]
    assert re.findall(r"^\((play-\w+)\)=\n### (.*)", page, re.MULTILINE) == [
        (name, preset["title"]) for name, preset in presets.items()
    ]
    for name, preset in presets.items():
        assert f"{{ref}}`{name}`" in chapter and f"[load it](#{name})" in page
        assert f"{found['STOP']:,} steps" in preset["prompt"]
        for settings in (preset["A"], preset["B"], preset["then"].get("A", {}), preset["then"].get("B", {})):
            assert settings.get("method", "ww") in METHODS
            assert settings.get("K", "2") in found["PARTICLES"]
            assert settings.get("start", "far") in ("far", "near")


def test_the_playground_asks_no_other_host():
    page = (ROOT / "book/playground.md").read_text()
    for text in (page, (STATIC / "playground.js").read_text(), (STATIC / "playground.css").read_text()):
        assert not re.search(r"https?:|//\w+\.\w|fetch\(|XMLHttp|import\(|@import", text)


class Host(BaseHTTPRequestHandler):
    """Serves one page and the static files; `/wait` answers after the page has asked for `/done`.

    An image at `/wait` keeps the page loading, so that headless Chromium writes it out when it is done.
    """

    def do_GET(self):
        self.send_response(200 if self.path == "/" or self.path.startswith("/_static/") else 204)
        content = b""
        if self.path == "/":
            self.send_header("Content-Type", "text/html; charset=utf-8")
            content = self.server.page.encode()
        elif self.path.startswith("/_static/"):
            kind = {".js": "text/javascript", ".css": "text/css"}[Path(self.path).suffix]
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            content = (STATIC / Path(self.path).name).read_bytes()
        elif self.path == "/done":
            self.server.done.set()
        elif self.path == "/wait":
            self.server.done.wait(60)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


SCRIPT = """
const one = (selector) => document.querySelector(`.playground ${selector}`), { dataset } = document.body;
const plain = (node) => node.textContent.replaceAll(",", "");
const state = () => [...document.querySelectorAll(".playground td")].map(plain).join(" | ");
const change = (name, value) => {
  const node = one(`[name=${name}]`);
  node.value = value;
  node.dispatchEvent(new Event("change"));
};
const play = one(".playground-buttons button"), method = one("[name=A-method]");
const inputs = [...document.querySelectorAll("select, input")];
const places = () => inputs.map((node) => Math.round(node.getBoundingClientRect().top)).join();
dataset.unlabelled = inputs.filter((node) => !node.labels.length).length;
dataset.pressed = [...document.querySelectorAll("[aria-pressed=true]")].map((node) => node.textContent);
setTimeout(() => {
  dataset.before = state();
  change("seed", "1.5");
  dataset.refused = one("[name=seed]").getAttribute("aria-invalid") + one("small").textContent;
  change("seed", "7");
  dataset.taken = one("[name=seed]").getAttribute("aria-invalid") + one("small").textContent;
  one("[name=speed]").value = "5";
  play.click();
}, 300);
const timer = setInterval(() => {
  const steps = parseInt(state());
  if (steps >= 10 && method.value === "ww") {
    const before = places();
    change("A-method", "dww");
    dataset.moved = before !== places();
  } else if (steps >= 20) {
    clearInterval(timer);
    const { step } = Playground.Run.prototype, root = document.querySelector(".playground");
    let steps = 0;
    Playground.Run.prototype.step = function (...settings) { steps++; return step.apply(this, settings); };
    // Asked every 300 ms, as long as a busy machine needs, but no longer than 12 s.
    const until = (done, next, tries = 40) => setTimeout(() => {
      if (done() || tries === 0) next(); else until(done, next, tries - 1);
    }, 300);
    const taken = () => { const before = steps; steps = 0; return before; };
    root.style.cssText = "position: fixed; top: 9999px";
    until(() => taken() === 0, () => setTimeout(() => {
      dataset.hidden = steps;
      root.style.cssText = "";
      until(() => steps > 0, () => {
        dataset.shown = steps;
        play.click();
        dataset.after = state();
        setTimeout(() => {
          dataset.later = state();
          addEventListener("hashchange", () => {
            const chosen = ["A-method", "A-K", "B-method", "B-K"].map((name) => one(`[name=${name}]`).value);
            dataset.linked = [...chosen, parseInt(state())];
            new Image().src = "/done";
          });
          location.hash = "play-network";
        }, 300);
      });
    }, 300));
  }
}, 50);
"""


@needs_chromium
@pytest.mark.parametrize("reduced_motion", [False, True])
def test_the_playground_trains_in_a_browser(tmp_path, reduced_motion):
    """The page's own markup: still before *Play* and off the screen, trains otherwise, no errors."""
    source = (ROOT / "book/playground.md").read_text()
    (markup,) = re.findall(r"```\{raw\} html\n(.*?)```", source, re.DOTALL)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.done = threading.Event()
    body = markup.replace("../_static", "/_static") + f"<script>{SCRIPT}</script><img src='/wait' alt=''>"
    server.page = f"<!doctype html><html><head><title>.</title></head><body>{body}</body></html>"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    command += ["--force-prefers-reduced-motion"] if reduced_motion else []
    command += [f"http://127.0.0.1:{server.server_port}/"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    finally:
        server.shutdown()
        server.server_close()
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not [line for line in said if "source: chrome" not in line], done.stderr  # the browser's own pages
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', done.stdout))
    assert found["unlabelled"] == "0"
    assert found["pressed"] == "Lost, and found again"
    run_a, run_b = found["before"].split(" | ")[:4], found["before"].split(" | ")[4:]
    assert run_a == run_b and run_a[:2] == ["0", "0.694"]
    assert found["refused"].startswith("trueA seed is a whole number") and found["taken"] == "false"
    assert found["moved"] == "false"
    after_a, after_b = found["after"].split(" | ")[:4], found["after"].split(" | ")[4:]
    assert int(after_a[0]) >= 20 and after_a[0] == after_b[0]
    assert after_a[1:3] not in (run_a[1:3], after_b[1:3])  # the second has stayed with WW
    assert found["hidden"] == "0" and int(found["shown"]) > 0, "trains off the screen, or not on it"
    assert found["later"] == found["after"]
    assert found["linked"] == "vimco,20,ww,20,0"
    status = re.search(r'role="status"[^>]*>([^<]*)', done.stdout)[1]
    assert status.startswith("Ready. Step 0. A: VIMCO, K = 20, far start: ")
