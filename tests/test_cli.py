"""The command line as a user meets it: what is printed, what is written, and how it ends."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from typer.testing import CliRunner

from ppl_gen import compile_spec
from ppl_gen.cli import app
from ppl_gen.infer.plan import plan
from ppl_gen.infer.status import Status
from ppl_gen.results.fit import Fit
from ppl_gen.results.storage import load

ROOT = Path(__file__).parent.parent
FAITHFUL = ROOT / "examples" / "data" / "faithful.csv"


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])  # type: ignore[return-value]


def ran(*words: object) -> str:
    result = run(*words)
    assert result.exit_code == 0, result.stderr or result.exception
    return result.stdout


@pytest.fixture(scope="module")
def faithful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fits") / "faithful"
    ran("fit", "gaussian_mixture", FAITHFUL, "--set", "z.k=2", "--out", folder)
    return folder


def saved(tmp_path: Path, spec: str, rows: pd.DataFrame, *more: str) -> Path:
    """The folder of a fit of a written spec to rows."""
    (tmp_path / "spec.yaml").write_text(spec)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    ran("fit", tmp_path / "spec.yaml", tmp_path / "rows.csv", "--out", tmp_path / "fit", *more)
    return tmp_path / "fit"


def test_help_and_version_do_not_wait_for_torch() -> None:
    probe = (
        "import sys\nfrom ppl_gen.cli import main\nsys.argv = ['ppl-gen', '--help']\n"
        "try:\n    main()\nfinally:\n    print('heavy:', sorted({'torch', 'pyro', 'arviz'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT)
    assert "heavy: []" in done.stdout, done.stdout + done.stderr
    for command in ("fit", "check", "show", "bootstrap", "predict", "impute", "sample", "select"):
        assert re.search(rf"^  {command} ", done.stdout, re.MULTILINE)
    assert ran("--version").startswith("ppl-gen ")


def test_a_fit_tells_its_roles_and_route_first_then_its_outcome_and_certificate() -> None:
    result = run("fit", "gaussian_mixture", FAITHFUL, "--set", "z.k=2")
    parts = [
        "rows      272",
        "observed  x (eruptions, waiting)",
        "latent    z",
        "inputs    none",
        "route     EM: every latent is discrete",
        Status.CONVERGED.value,
        "-1130.26",  # the maximum that mclust reports for these data and model
        "x.cov",
        "responsibilities",
        "not saved",
    ]
    places = [result.stdout.find(part) for part in parts]
    assert places == sorted(places)
    assert min(places) >= 0
    assert result.stderr == ""  # no bar where nobody looks


def test_a_saved_fit_is_shown_with_what_was_fitted_and_how(faithful: Path) -> None:
    shown = ran("show", faithful)
    for part in (
        "z: Categorical(2)",
        "observed   x",
        "EM(max_steps=2000",
        "seed       0",
        "z.probs",
        "gradient",
    ):
        assert part in shown


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        (
            "gaussian_mixture",
            ["graph     z → x", "p(x, z) = p(z) · p(x | z)", "z: exact, every value", "route     EM: every"],
        ),
        (
            "vae_bernoulli",
            ["q(z | x)", "z_trunk: MLP(x, [256])", "(derived)", "route     SVI: 'z' is a continuous latent"],
        ),
        ("vae", ["q(z | x)", "(as written)"]),
        (
            "model:\n  u: Input(k=3)\n  c: Categorical(2)\n  z: Normal(1, loc=By(c), scale=1)\n"
            "  h: MLP([z, u], [4])\n  x: Normal(2, loc=Linear(h), scale=1)\n",
            [
                "u; c → z; z, u → x".replace("u; ", ""),
                "p(x, c, z | u) = p(c) · p(z | c) · p(x | z, u)",
                "q(z | x, u)",
                "c: exact, every value is enumerated",
            ],
        ),
        ("model:\n  x: Normal(2)\n", ["p(x) = p(x)", "none: nothing is latent", "one M-step"]),
    ],
)
def test_a_declaration_is_shown_as_graph_factorisation_guide_and_route(spec: str, parts: list[str]) -> None:
    shown = ran("show", spec)
    for part in parts:
        assert part in shown


def test_a_size_that_the_data_decide_is_said_to_be_stood_in_for() -> None:
    assert "(with 2 columns for x, which the data decide)" in ran("show", "gaussian_mixture")
    assert "decide" not in ran("show", "model:\n  z: Categorical(2)\n  x: Normal(3, loc=By(z))\n")


def test_predictions_are_those_of_the_library_under_header_names(faithful: Path, tmp_path: Path) -> None:
    ran("predict", faithful, FAITHFUL, "--out", tmp_path / "labels.csv")
    labels, fit = pd.read_csv(tmp_path / "labels.csv"), load(faithful)
    assert list(labels) == ["z", "P(z=0)", "P(z=1)", "log p"]
    np.testing.assert_array_equal(labels["z"], fit.predict(FAITHFUL))
    np.testing.assert_array_equal(labels[["P(z=0)", "P(z=1)"]], fit.predict_proba(FAITHFUL))
    np.testing.assert_array_equal(labels["log p"], fit.score_samples(FAITHFUL))


def test_predictions_without_out_go_down_the_pipe(faithful: Path) -> None:
    lines = ran("predict", faithful, FAITHFUL).splitlines()
    assert lines[0] == "z,P(z=0),P(z=1),log p"
    assert len(lines) == 273


def test_each_of_several_discrete_latents_has_its_columns(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = pd.DataFrame(draw.normal(draw.integers(0, 2, (60, 2)) * 8.0, 1), columns=["x[0]", "x[1]"])
    spec = "model:\n  a: Categorical(2)\n  b: Categorical(3)\n  x: Normal(2, loc=By([a, b]), scale=Free())\n"
    folder = saved(tmp_path, spec, rows)
    ran("predict", folder, tmp_path / "rows.csv", "--out", tmp_path / "labels.csv")
    labels = pd.read_csv(tmp_path / "labels.csv")
    assert list(labels) == ["a", "P(a=0)", "P(a=1)", "b", "P(b=0)", "P(b=1)", "P(b=2)", "log p"]
    shares = load(folder).predict_proba(tmp_path / "rows.csv")
    np.testing.assert_array_equal(labels[["P(b=0)", "P(b=1)", "P(b=2)"]], shares["b"])


def test_the_cells_of_a_vector_of_latents_are_told_apart(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = pd.DataFrame({"x": draw.normal(draw.integers(0, 4, 80) * 8.0, 1)})
    spec = "model:\n  z: Bernoulli(2, probs=0.5)\n  x: Normal(1, loc=By(z), scale=Free())\n"
    folder = saved(tmp_path, spec, rows)
    header = ran("predict", folder, tmp_path / "rows.csv").splitlines()[0]
    assert header == "z[0],z[1],P(z=0 0),P(z=0 1),P(z=1 0),P(z=1 1),log p"


def test_continuous_latents_are_given_by_their_means_and_log_p_with_its_error(tmp_path: Path) -> None:
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 3)), columns=["a", "b", "c"])
    spec = (
        "model:\n  k: Categorical(2)\n  z: Normal(1, loc=By(k), scale=By(k))\n"
        "  x: Normal(loc=Linear(z), scale=1)\n"
    )
    folder = saved(tmp_path, spec, rows, "--algorithm", "SVI(epochs=2)")
    ran("predict", folder, tmp_path / "rows.csv", "--out", tmp_path / "labels.csv", "--draws", "20")
    labels = pd.read_csv(tmp_path / "labels.csv")
    assert list(labels) == ["k", "P(k=0)", "P(k=1)", "z", "log p", "log p std error"]
    assert (labels["log p std error"] > 0).all()


def test_drawn_rows_look_like_the_data_and_can_be_fitted_again(faithful: Path, tmp_path: Path) -> None:
    ran("sample", faithful, "-n", 300, "--out", tmp_path / "drawn.csv", "--seed", 1)
    assert list(pd.read_csv(tmp_path / "drawn.csv")) == ["eruptions", "waiting"]
    ran("fit", "gaussian_mixture", tmp_path / "drawn.csv", "--set", "z.k=2")
    with_latents = ran("sample", faithful, "-n", 5, "--latents").splitlines()
    assert with_latents[0] == "z,eruptions,waiting"
    assert len(with_latents) == 6
    once, again = (ran("sample", faithful, "-n", 5, "--seed", 7) for _ in range(2))
    assert once == again != ran("sample", faithful, "-n", 5, "--seed", 8)


def test_rows_drawn_given_inputs_stand_beside_them(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = pd.DataFrame({"u": draw.normal(size=30), "g": draw.choice(["left", "right"], 30)})
    rows["y"] = 2 * rows["u"] + draw.normal(size=30)
    spec = "model:\n  u: Input(1)\n  g: Input(k=2)\n  y: Normal(1, loc=Linear(u, by=g), scale=Free())\n"
    folder = saved(tmp_path, spec, rows, "--algorithm", "SVI(epochs=2)")
    rows[["g", "u"]].head(4).to_csv(tmp_path / "inputs.csv", index=False)
    ran("sample", folder, "-n", 4, "--given", tmp_path / "inputs.csv", "--out", tmp_path / "drawn.csv")
    drawn = pd.read_csv(tmp_path / "drawn.csv")
    assert list(drawn) == ["u", "g", "y"]
    pd.testing.assert_frame_equal(drawn[["g", "u"]], rows[["g", "u"]].head(4))
    without = run("sample", folder, "-n", 4)
    assert without.exit_code == 2
    assert "given" in without.stderr


def test_check_compares_pyro_with_the_formulas_before_any_fit() -> None:
    told = ran("check", "gaussian_mixture", FAITHFUL, "--set", "z.k=2")
    assert "log p(x|z)" in told
    assert "FAILED" not in told
    assert "-KL(z)" in ran("check", "vae", FAITHFUL, "--set", "z.dim=2")


WRONG = [
    (["fit", "gausian_mixture", FAITHFUL], "did you mean 'gaussian_mixture'?"),
    (["fit", "gaussian_mixture", "no_such.csv"], "no_such.csv: no such file"),
    (["fit", "gaussian_mixture", FAITHFUL, "--set", "z"], "--set z: write NODE.OPTION=VALUE"),
    (["fit", "gaussian_mixture", FAITHFUL, "--set", "q.k=2"], "--set q.k=2: 'q.k': the model has no 'q'"),
    (["fit", "gaussian_mixture", FAITHFUL, "--set", "z.k=two"], "k must be a whole number, got two"),
    (["fit", "gaussian_mixture", FAITHFUL, "--set", "z.k=["], "not in the notation"),
    (["fit", "gaussian_mixture", FAITHFUL, "--algorithm", "SVI(epoch=2)"], "did you mean 'epochs'?"),
    (["fit", "gaussian_mixture", FAITHFUL, "--algorithm", "SVI(epochs=0)"], "epochs must be a whole number"),
    (["fit", "gaussian_mixture", FAITHFUL, "--algorithm", "SVI(optimizer=adam)"], "(optimizer='adam')"),
    (["fit", "gaussian_mixture", FAITHFUL, "--algorithm", "EM(3)"], "options by keyword"),
    (["fit", "gaussian_mixture", FAITHFUL, "--algorithm", "VI"], "write EM or SVI"),
    (["fit", "gaussian_mixture", FAITHFUL, "--weights", "waitin"], "did you mean 'waiting'?"),
    (
        ["fit", "gaussian_mixture", FAITHFUL, "--weights", "eruptions", "--set", "x.dim=2"],
        "the data give it 1 column: waiting",
    ),
    (["fit", "vae", FAITHFUL, "--algorithm", "EM"], "'z' is a continuous latent"),
    (["fit", "gaussian_mixture", FAITHFUL, "--device", "gpu"], "--device gpu: write one of cpu"),
    (["fit", "gaussian_mixture", "no_such.csv", "--out", ROOT / "tests"], "exists already"),
    (["fit", "gaussian_mixture", "no_such.csv", "--out", FAITHFUL / "fit"], "cannot be written"),
    (["fit", "gaussian_mixture", "no_such.csv", "--out", ROOT / "tests", "--replace"], "not a saved fit"),
    (["predict", "no_such_fit", FAITHFUL], "no_such_fit: no saved fit here"),
    (["predict", "no_such_fit", FAITHFUL, "--out", FAITHFUL], "exists already; --replace"),
    (["predict", "no_such_fit", FAITHFUL, "--out", FAITHFUL / "labels.csv"], "cannot be written"),
    (["predict", "no_such_fit", FAITHFUL, "--out", ROOT / "tests"], "is a folder"),
    (["sample", "no_such_fit", "-n", "3", "--out", FAITHFUL], "exists already; --replace"),
    (["show", "no_such_thing"], "no file and no shipped model"),
    (["show", ROOT / "tests"], "fit.json: is missing"),
    (["check", "model:\n  x: Normal(2, lo=0)\n", FAITHFUL], "<text>:2:16: Normal has no option 'lo'"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_mistake_costs_one_line_and_code_2_before_any_work(words: list[object], message: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert isinstance(result.exception, SystemExit)


def test_a_mistyped_option_ends_with_code_2() -> None:
    assert run("fit", "gaussian_mixture", FAITHFUL, "--sed", "3").exit_code == 2
    assert run("sample", "fit", "-n", "0").exit_code == 2


def test_nothing_is_written_over_unless_asked(faithful: Path, tmp_path: Path) -> None:
    target = tmp_path / "labels.csv"
    target.write_text("mine")
    assert run("predict", faithful, FAITHFUL, "--out", target).exit_code == 2
    assert target.read_text() == "mine"
    ran("predict", faithful, FAITHFUL, "--out", target, "--replace")
    assert target.read_text().startswith("z,")
    again = ("fit", "gaussian_mixture", FAITHFUL, "--out", tmp_path / "fit", "--set", "z.k=2")
    ran(*again)
    assert run(*again).exit_code == 2
    ran(*again[:-1], "z.k=3", "--replace")
    assert load(tmp_path / "fit").parameters["z"]["probs"].shape == (3,)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit", "labels.csv"]


def test_a_collapsed_fit_ends_with_code_3_and_is_saved_all_the_same(tmp_path: Path) -> None:
    # Two points, many times each: with two classes, every start ends on a covariance of 0.
    points = pd.DataFrame(np.repeat([[0.0, 0.0], [5.0, 5.0]], 20, axis=0), columns=["a", "b"])
    points.to_csv(tmp_path / "points.csv", index=False)
    words = ("fit", "gaussian_mixture", tmp_path / "points.csv", "--set", "z.k=2", "--out", tmp_path / "fit")
    result = run(*words)
    assert result.exit_code == 3
    assert "warning: " + Status.COLLAPSED.value in result.stderr
    assert load(tmp_path / "fit").status is Status.COLLAPSED


def test_a_diverged_fit_ends_with_code_3_and_is_saved_all_the_same(tmp_path: Path) -> None:
    words = ("fit", "vae_diagonal", FAITHFUL, "--algorithm", "SVI(epochs=5, learning_rate=1e6)")
    result = run(*words, "--out", tmp_path / "fit")
    assert result.exit_code == 3
    assert load(tmp_path / "fit").status is Status.DIVERGED


def test_dtype_and_seed_reach_the_fit(tmp_path: Path) -> None:
    words = ("fit", "gaussian_mixture_diagonal", FAITHFUL, "--seed", 5, "--dtype", "float32", "--out")
    ran(*words, tmp_path / "fit")
    fit = load(tmp_path / "fit")
    assert fit.seed == 5
    assert str(fit.program.dtype) == "torch.float32"


def test_a_table_of_patterns_with_their_counts_is_fitted_as_the_rows_are(tmp_path: Path) -> None:
    rows = pd.DataFrame(np.random.default_rng(0).integers(0, 2, (200, 3)), columns=["a", "b", "c"])
    patterns = rows.value_counts().reset_index(name="n")
    rows.to_csv(tmp_path / "rows.csv", index=False)
    patterns.to_csv(tmp_path / "patterns.csv", index=False)
    words = ("fit", "latent_class", "--set", "z.k=1", "--algorithm", "EM(restarts=1)", "--out")
    ran(*words, tmp_path / "one", tmp_path / "rows.csv")
    told = ran(*words, tmp_path / "other", tmp_path / "patterns.csv", "--weights", "n")
    assert "8, their weights sum to 200" in told
    one, other = load(tmp_path / "one"), load(tmp_path / "other")
    # One class has its maximum in closed form: item means, and the same sums of 200 terms.
    assert other.log_likelihood == pytest.approx(one.log_likelihood, rel=1e-12)
    assert other.n_parameters == one.n_parameters
    assert other.bic == pytest.approx(one.bic, rel=1e-12)


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")
def test_ctrl_c_keeps_what_was_reached_and_ends_with_code_130(tmp_path: Path) -> None:
    process, seen = on_a_terminal(
        "fit",
        "vae",
        FAITHFUL,
        "--set",
        "z.dim=2",
        "--algorithm",
        "SVI(epochs=100000)",
        "--out",
        tmp_path / "fit",
    )
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "saved in" in told
    assert "Traceback" not in told + b"".join(seen).decode(errors="replace")
    fit: Fit = load(tmp_path / "fit")
    assert fit.status is Status.INTERRUPTED
    assert len(fit.history) > 0
    assert np.isfinite(fit.score(FAITHFUL))


def on_a_terminal(*words: object) -> tuple[subprocess.Popen[str], list[bytes]]:
    """The command, once its progress bar shows the ELBO of an epoch; and what its terminal on stderr is shown."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "ppl_gen", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(theirs)
    seen: list[bytes] = []
    begun = threading.Event()

    def read() -> (
        None
    ):  # to the end: a terminal that nobody reads holds a few kB, and then whoever writes to it
        with suppress(OSError):  # the command has ended
            while part := os.read(ours, 4096):
                seen.append(part)
                if b"ELBO -" in b"".join(seen):
                    begun.set()
        begun.set()

    threading.Thread(target=read, daemon=True).start()
    assert begun.wait(timeout=120)
    shown = b"".join(seen)
    assert b"ELBO -" in shown, f"no progress was shown: {shown.decode(errors='replace')}"
    return process, seen


GUIDED = """
model:
  c: Categorical(3)
  y: Categorical(10)
  z: Normal(2, loc=By(y), scale=1)
  x: Normal(4, loc=MLP(z, [8]) + By(c), scale=Free())
guide:
  y: Categorical(10, probs=MLP(x, [8]))
  z: Normal(2, loc=Linear(x), scale=Linear(x))
"""


def test_the_plan_says_of_every_latent_how_it_is_dealt_with(tmp_path: Path) -> None:
    def planned(shown: str) -> list[str]:
        lines = iter(shown.splitlines())
        found = [next(line for line in lines if line.startswith("plan ")).removeprefix("plan")]
        for line in lines:
            if not line.startswith("  "):
                break
            found.append(line)
        return [line.strip() for line in found]

    summed, drawn = "c: summed out exactly (3 values)", "y: enumerated exactly in the guide (10 values)"
    assert planned(ran("show", GUIDED)) == [summed, drawn, "z: reparameterised (Normal), KL sampled"]
    assert planned(ran("show", "gaussian_mixture")) == ["z: summed out exactly (3 values)"]
    assert planned(ran("show", "factor_analysis")) == ["z: exact posterior (E1)"]
    assert "plan " not in ran("show", "model:\n  x: Normal(2)\n")
    # Under a prior that varies with a class that is summed out no KL has a closed form, whatever is asked for.
    clusters = compile_spec("gm_vae", {"x": np.eye(12)})
    lines = list(plan(clusters, {"name": "SVI", "kl": "analytic"}))
    assert lines[1] == "z: reparameterised (Normal), KL sampled"
    pd.DataFrame(np.tile(np.eye(4), (4, 1)), columns=[f"x{j}" for j in range(4)]).to_csv(
        tmp_path / "x.csv", index=False
    )
    for kl, told in (("analytic", "KL in closed form"), ("sampled", "KL sampled")):
        out, svi = tmp_path / kl, f"SVI(epochs=1, kl='{kl}')"
        ran("fit", GUIDED, tmp_path / "x.csv", "--algorithm", svi, "--out", out)
        assert planned(ran("show", out)) == [summed, drawn, f"z: reparameterised (Normal), {told}"]
