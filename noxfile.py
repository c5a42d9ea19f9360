"""Development commands: `nox -l` lists them, `nox -s NAME` runs one.

Each session has an environment of its own, with at most one backend, and with the versions that
pyproject.toml pins.
"""

import functools
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_venv = "yes"

BACKENDS = ("jax", "tensorflow", "torch")
CI = bool(os.environ.get("CI"))
PYPROJECT = nox.project.load_toml("pyproject.toml")
GROUPS = PYPROJECT["dependency-groups"]
# Nothing of a backend is in these tests. They run once, where tests take the least time: on torch.
ONCE = (
    "tests/core/test_equilibrium.py",
    "tests/decay/test_convert.py",
    "tests/decay/test_explain.py",
    "tests/decay/test_keys.py",
    "tests/decay/test_layer_keys.py",
    "tests/decay/test_precedence.py",
    "tests/decay/test_regularizers.py",
    "tests/hostile/test_calls.py",
    "tests/hostile/test_configs.py",
    "tests/paper/test_paper.py",
    "tests/paths",
    "tests/test_layerwise.py",
    "tests/test_plots.py",
    "tests/test_structure.py",
)
# Keras' own tests, as they lie in its wheel. 3.15.1 has them; 3.12.0 and nightly wheels have none.
# Those of our classes (Muon's ask for its private methods):
KERAS_OPTIMIZERS = tuple(
    f"keras.src.optimizers.{name}_test"
    for name in (
        *("optimizer", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw"),
        *("lamb", "lion", "nadam", "rmsprop", "sgd"),
    )
)
# And those that train, save and load with an optimizer. `remote_monitor_test` needs Keras' conftest.
KERAS_OTHERS = (
    "keras.src.callbacks",
    "--ignore-glob=/*remote_monitor_test.py",
    "keras.src.models.model_test",
    "keras.src.optimizers.loss_scale_optimizer_test",
    "keras.src.optimizers.multi_optimizer_test",
    "keras.src.saving.saving_lib_test",
    "keras.src.trainers.trainer_test",
)


def on_each_backend(
    run: Callable[[nox.Session, str], None], backends: Sequence[str] = BACKENDS
) -> None:
    """Define the sessions NAME-BACKEND, and NAME, which asks for all of them."""
    name = run.__name__.replace("_", "-")
    for backend in backends:
        one = functools.partial(run, backend=backend)
        nox.session(functools.update_wrapper(one, run), name=f"{name}-{backend}")

    @nox.session(name=name, python=False)
    @functools.wraps(run)
    def on_all(session: nox.Session) -> None:
        chosen, posargs = backends, session.posargs
        if name == "quickstart":
            chosen, posargs = posargs[:1] or ["jax"], posargs[1:]
        for backend in chosen:
            session.notify(f"{name}-{backend}", posargs)
        if name == "tests" and not posargs:  # a part of the tests covers a part of the code
            session.notify("coverage")


def install(session: nox.Session, *groups: str, package: str = "--editable") -> None:
    """Install these dependency groups, then the package as it lies here."""
    session.install(*nox.project.dependency_groups(PYPROJECT, *groups))
    session.install("--no-deps", package, ".")


def python(session: nox.Session, backend: str, *command: str, **env: str) -> None:
    """Run a script or a module on a backend."""
    env |= {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"}
    session.run("python", *command, env=env)


def pytest(session: nox.Session, backend: str, *options: str) -> None:
    """Run tests, two processes at a time; posargs go to pytest."""
    env = {"OMP_NUM_THREADS": "1"}  # two processes of many threads each would fight for the cores
    if backend == "jax":  # what one process has compiled, the other need not
        env["JAX_COMPILATION_CACHE_DIR"] = f"{session.virtualenv.location}/jax-cache"
        env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        env["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    python(session, backend, "-m", "pytest", "-n2", *options, *session.posargs, **env)


def run_tests(session: nox.Session, backend: str, *options: str) -> None:
    """Run tests/; posargs go to pytest."""
    if backend != "torch" and not session.posargs:
        options += tuple(f"--ignore={path}" for path in ONCE)
    pytest(session, backend, *options)


def run_integration(session: nox.Session, backend: str) -> None:
    """Build the wheel, install it in the place of what lies here, and run integration_tests/."""
    more = ["tensorboard"] if backend == "tensorflow" else []
    # Not editable, so that pip builds a wheel and installs that.
    install(session, backend, "keras", "test", *more, package="--force-reinstall")
    # Each file in one process: its tests share what one of them has made. Three processes for two
    # cores, as many tests wait for scripts.
    options = ["-n3", "--dist", "loadfile", "integration_tests"]
    if CI and backend == "tensorflow":  # two minutes there, and one on each of the others
        options.append("--ignore=integration_tests/test_many_processes.py")
    pytest(session, backend, *options)


def run_keras_tests(session: nox.Session, backend: str, *modules: str) -> None:
    """Run tests of Keras' with our classes in the place of Keras': see plugin.py there."""
    with session.chdir("tests/keras_own"):
        pytest(session, backend, "-c", "pytest.toml", *modules)


@on_each_backend
def tests(session: nox.Session, backend: str) -> None:
    """Run the tests; on all backends, check coverage too. `-- ARGS` go to pytest.

    With `CI` set, as in `.ci/run`, `integration` follows in the same environment: to install another
    one takes a minute.
    """
    install(session, backend, "keras", "test")
    session.env["COVERAGE_FILE"] = f".coverage.{backend}"
    # The limit is for `coverage`, over both of the files. To measure makes tests slower by a quarter.
    measure = ("--cov", "--cov-report=", "--cov-fail-under=0")
    if backend == "tensorflow" and not session.posargs:
        run_tests(session, backend, "--ignore=tests/fast")
        run_tests(session, backend, "tests/fast", *measure)  # what torch cannot reach
    else:
        run_tests(session, backend, *(measure if backend == "torch" else ()))
    if not session.posargs:
        run_keras_tests(session, backend, *KERAS_OPTIMIZERS)
        if CI:
            run_integration(session, backend)


@on_each_backend
def keras_tests(session: nox.Session, backend: str) -> None:
    """Run far more of Keras' own tests on our classes. CI does not: it takes minutes."""
    # What they import: all three of the backends, whichever is in use.
    install(session, "keras", "test", "keras-tests")
    run_keras_tests(session, backend, *KERAS_OPTIMIZERS, *KERAS_OTHERS)


@on_each_backend
def tests_floor(session: nox.Session, backend: str) -> None:
    """Run the tests with the oldest Keras that we promise to work with."""
    install(session, backend, "keras-floor", "test")
    run_tests(session, backend)


@on_each_backend
def tests_nightly(session: nox.Session, backend: str) -> None:
    """Run the tests with tonight's Keras."""
    install(session, backend, "keras", "test")  # for what Keras and TensorFlow need
    # Both are the package `keras`: the first has to go before the second comes.
    session.run("python", "-m", "pip", "uninstall", "--yes", "keras", "keras-nightly")
    session.install("--pre", "--no-deps", "--upgrade", *GROUPS["keras-nightly"])
    run_tests(session, backend)


@on_each_backend
def integration(session: nox.Session, backend: str) -> None:
    """Build the wheel, and try it and the code of all pages with one backend alone."""
    run_integration(session, backend)


@on_each_backend
def ecosystem(session: nox.Session, backend: str) -> None:
    """Try the other tools, and the code of docs/tools.md. CI does not: it takes minutes."""
    # wandb's Keras callbacks are tried with TensorFlow beside JAX, and on torch without it.
    # keras-tuner imports tensorboard where there is TensorFlow.
    more = [] if backend == "torch" else ["tensorflow", "tensorboard"]
    install(session, backend, "keras", "test", "ecosystem", *more)
    session.install("--no-deps", *GROUPS["keras-hub"])
    python(session, backend, "-m", "pytest", "integration_tests/ecosystem", *session.posargs)


@on_each_backend
def reliability(session: nox.Session, backend: str) -> None:
    """Kill, fuzz and soak for hours what the tests do for minutes. Stopped, it goes on where it was."""
    install(session, backend, "keras", "test")
    # One core for each process, so that the three backends can run at the same time.
    python(session, backend, "tests/reliability.py", *session.posargs, OMP_NUM_THREADS="1")


@on_each_backend
def quickstart(session: nox.Session, backend: str) -> None:
    """Train, save, load, go on and draw; fine-tune. `-- torch` takes another backend than jax."""
    install(session, backend, "keras", "quickstart")
    python(session, backend, "examples/quickstart.py", *session.posargs)
    python(session, backend, "examples/finetune.py")


@on_each_backend
def benchmark(session: nox.Session, backend: str) -> None:
    """Time a step and `model.fit` beside the peers. `-- --quick`: minutes."""
    install(session, backend, "keras", f"benchmark-{backend}")
    python(session, backend, "benchmarks/step.py", *session.posargs)
    quick = ["--quick"] if "--quick" in session.posargs else []
    python(session, backend, "benchmarks/step.py", "--stock", *quick)
    if backend != "torch":  # which is eager anyway
        python(session, backend, "benchmarks/step.py", "--eager", *quick)
    scripts = ["muon.py", "fit.py", "files.py", "scaling.py"]
    if backend != "tensorflow":  # whose kernels and compiler do not say what they move
        scripts.append("passes.py")
    for script in scripts:
        python(session, backend, f"benchmarks/{script}", *quick)


@functools.partial(on_each_backend, backends=("torch", "jax"))
def benchmark_cuda(session: nox.Session, backend: str) -> None:
    """On a machine with a GPU: tests, waits for the GPU, benchmarks. `-- --quick` tries it on a CPU."""
    install(session, f"{backend}-cuda", "keras", "test", f"benchmark-{backend}")
    run = functools.partial(python, session, backend)
    quick = ["--quick"] if "--quick" in session.posargs else []
    tests = ["tests/optimizers/test_contracts.py"] if quick else ["tests"]
    # JAX would take all of the GPU's memory for itself.
    run("-m", "pytest", *tests, XLA_PYTHON_CLIENT_PREALLOCATE="false")
    if backend == "torch":
        run("benchmarks/waits.py")
    results = Path("benchmarks/results/cuda")  # beside those of the CPU, which stay as they are
    options = {"": [], "kinds-": ["--kinds"], "stock-": ["--stock"]}
    options["bfloat16-"] = ["--dtype", "bfloat16"]
    for name, option in options.items():
        file = results / f"{'quick-' if quick else ''}{name}{backend}.json"
        run("benchmarks/step.py", *option, *quick, "--out", str(file))
    file = results / f"{'quick-' if quick else ''}muon-{backend}.json"
    run("benchmarks/muon.py", *quick, "--out", str(file))


@nox.session
def coverage(session: nox.Session) -> None:
    """Report the branch coverage of src/ over torch and TensorFlow; less than 94% is a failure."""
    session.install(*GROUPS["coverage"])
    session.run("coverage", "combine", "--keep", ".coverage.torch", ".coverage.tensorflow")
    session.run("coverage", "report", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and form with ruff."""
    session.install(*GROUPS["lint"])
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of src/ with mypy."""
    session.install(*GROUPS["types"])
    session.run("mypy", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Run the pages' code on JAX, then build site/; a warning fails it. `-- serve` serves it."""
    install(session, "jax", "keras", "test", "docs")
    session.env["NO_MKDOCS_2_WARNING"] = "1"  # mkdocs-material's word on its future, at each build
    if "serve" in session.posargs:
        session.run("mkdocs", *session.posargs)
        return
    tests = ("-m", "pytest", "-n2", "integration_tests/test_docs.py")
    python(session, "jax", *tests, OMP_NUM_THREADS="1")
    session.run("mkdocs", "build", "--strict", *session.posargs)


@nox.session
def pictures(session: nox.Session) -> None:
    """Draw the pages' pictures anew."""
    install(session, "torch", "keras", "plot")
    for script in sorted(Path("docs/pictures").glob("*.py")):
        if script.name != "drawing.py":  # what they have in common
            python(session, "torch", str(script))


@nox.session
def notebook(session: nox.Session) -> None:
    """Make examples/five_minutes.ipynb of its page, and run it in Jupyter, on JAX."""
    install(session, "jax", "keras", "notebook")
    session.run("python", "integration_tests/make_notebook.py")
    python(session, "jax", "-m", "jupyter", "execute", "examples/five_minutes.ipynb")


@nox.session
def build(session: nox.Session) -> None:
    """Build the sdist, and from it the wheel, into dist/; check both, and try that wheel on JAX."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "release", "jax", "keras", "test"))
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")
    session.run("twine", "check", "--strict", *map(str, Path("dist").iterdir()))
    session.install("--no-deps", "--force-reinstall", *map(str, Path("dist").glob("*.whl")))
    python(session, "jax", "-m", "pytest", "integration_tests/test_wheel.py")


@nox.session
def paper(session: nox.Session) -> None:
    """Measure the paper's claims on real data, and draw them. `-- --quick`: minutes, not hours."""
    install(session, "jax", "keras", "benchmark")
    session.env["PYTHONPATH"] = "benchmarks"
    drawn = ("calibration.py", "gradients.py", "equilibrium.py", "figures.py", "figures_of_text.py")
    for script in ("run.py", *drawn):
        python(session, "jax", f"benchmarks/paper/{script}", *session.posargs)
