"""Development commands: `nox -l` lists them, `nox -s NAME` runs one.

Each session has an environment of its own, with the pinned versions of pyproject.toml's dependency
groups, and each environment holds at most one backend.
"""

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_venv = "yes"

BACKENDS = ("jax", "tensorflow", "torch")
LIGHTEST = "jax"

PYPROJECT = nox.project.load_toml("pyproject.toml")


def group(*names: str) -> list[str]:
    """The requirements of these dependency groups of pyproject.toml."""
    return list(nox.project.dependency_groups(PYPROJECT, *names))


def use(backend: str) -> dict[str, str]:
    """The environment variables of a run on a backend."""
    return {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"}


def install(session: nox.Session, backend: str, *groups: str) -> None:
    """One backend, these groups, and the package as it lies here."""
    session.install(*group(backend, *groups))
    session.install("--no-deps", "--editable", ".")


def run_tests(session: nox.Session, backend: str, *options: str) -> None:
    """Tests/ on a backend, two processes at a time; posargs go to pytest."""
    threads = {"OMP_NUM_THREADS": "1"}  # two processes of many threads each would fight for cores
    command = ("python", "-m", "pytest", "-n", "2", *options, *session.posargs)
    session.run(*command, env=use(backend) | threads)


def define_backend_sessions(backend: str) -> None:
    """Define tests-, tests-floor-, tests-nightly-, integration-, reliability-, … -BACKEND."""

    @nox.session(name=f"tests-{backend}")
    def tests_backend(session: nox.Session) -> None:
        install(session, backend, "keras", "test")
        session.env["COVERAGE_FILE"] = f".coverage.{backend}"
        # One backend can't reach every line: the limit is for `coverage`, over the three of them.
        run_tests(session, backend, "--cov", "--cov-report=", "--cov-fail-under=0")

    @nox.session(name=f"tests-floor-{backend}")
    def tests_floor(session: nox.Session) -> None:
        install(session, backend, "keras-floor", "test")
        run_tests(session, backend)

    @nox.session(name=f"tests-nightly-{backend}")
    def tests_nightly(session: nox.Session) -> None:
        install(session, backend, "keras", "test")  # for what Keras and TensorFlow need
        # Both are the package `keras`: the first has to go before the second comes.
        session.run("python", "-m", "pip", "uninstall", "--yes", "keras", "keras-nightly")
        session.install("--pre", "--no-deps", "--upgrade", *group("keras-nightly"))
        run_tests(session, backend)

    @nox.session(name=f"integration-{backend}")
    def integration_backend(session: nox.Session) -> None:
        more = ["tensorboard"] if backend == "tensorflow" else []
        session.install(*group(backend, "keras", "test", *more))
        session.install("--no-deps", "--force-reinstall", str(wheel(session)))
        command = ("python", "-m", "pytest", "integration_tests", *session.posargs)
        session.run(*command, env=use(backend))

    @nox.session(name=f"reliability-{backend}")
    def reliability_backend(session: nox.Session) -> None:
        install(session, backend, "keras", "test")
        command = ("python", "-m", "pytest", "-m", "reliability", "-s", *session.posargs)
        more = () if session.posargs else ("tests", "integration_tests")
        session.run(*command, *more, env=use(backend) | {"RELIABILITY": "full"})

    @nox.session(name=f"quickstart-{backend}")
    def quickstart_backend(session: nox.Session) -> None:
        install(session, backend, "keras", "quickstart")
        session.run("python", "examples/quickstart.py", *session.posargs, env=use(backend))

    @nox.session(name=f"benchmark-{backend}")
    def benchmark_backend(session: nox.Session) -> None:
        install(session, backend, "keras", f"benchmark-{backend}")
        session.run("python", "benchmarks/step.py", *session.posargs, env=use(backend))
        quick = [option for option in session.posargs if option == "--quick"]
        session.run("python", "benchmarks/fit.py", *quick, env=use(backend))
        session.run("python", "benchmarks/scaling.py", *quick, env=use(backend))


for _backend in BACKENDS:
    define_backend_sessions(_backend)


_wheels: list[Path] = []


def wheel(session: nox.Session) -> Path:
    """The wheel of this checkout, built by the first session that asks."""
    if not _wheels:
        folder = session.cache_dir / "wheel"
        shutil.rmtree(folder, ignore_errors=True)
        session.run("python", "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder), ".")
        _wheels.extend(folder.glob("*.whl"))
    return _wheels[0]


@nox.session(python=False)
def tests(session: nox.Session) -> None:
    """Run the tests on every backend, then check coverage over all. `-- ARGS` go to pytest."""
    for backend in BACKENDS:
        Path(f".coverage.{backend}").unlink(missing_ok=True)
        session.notify(f"tests-{backend}")
    if not session.posargs:  # a part of the tests covers a part of the code
        session.notify("coverage")


@nox.session(name="tests-floor", python=False)
def tests_floor_all(session: nox.Session) -> None:
    """Run the tests with the oldest Keras that we promise to work with."""
    for backend in BACKENDS:
        session.notify(f"tests-floor-{backend}")


@nox.session(name="tests-nightly", python=False)
def tests_nightly_all(session: nox.Session) -> None:
    """Run the tests with tonight's Keras."""
    for backend in BACKENDS:
        session.notify(f"tests-nightly-{backend}")


@nox.session(python=False)
def integration(session: nox.Session) -> None:
    """Build the wheel, and try it and the README with one backend alone, for each backend."""
    for backend in BACKENDS:
        session.notify(f"integration-{backend}")


@nox.session(python=False)
def reliability(session: nox.Session) -> None:
    """Kill, fuzz and soak for hours what the tests do for minutes, on every backend."""
    for backend in BACKENDS:
        session.notify(f"reliability-{backend}")


@nox.session
def coverage(session: nox.Session) -> None:
    """Report the branch coverage of src/ over all backends; less than 98% is a failure."""
    session.install(*group("coverage"))
    files = [f".coverage.{backend}" for backend in BACKENDS]
    if missing := [file for file in files if not Path(file).exists()]:
        session.error(f"no data in {', '.join(missing)}: run `nox -s tests`")
    session.run("coverage", "combine", "--keep", *files)
    session.run("coverage", "report", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and form with ruff."""
    session.install(*group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of src/ with mypy."""
    session.install(*group("types"))
    session.run("mypy", *session.posargs)


@nox.session(python=False)
def quickstart(session: nox.Session) -> None:
    """Train, save, load, go on and draw. `-- torch` takes another backend than jax."""
    backend, *arguments = session.posargs or [LIGHTEST]
    if backend.startswith("-"):
        backend, arguments = LIGHTEST, session.posargs
    if backend not in BACKENDS:
        session.error(f"the backend is one of {', '.join(BACKENDS)}. Received: {backend}")
    session.notify(f"quickstart-{backend}", posargs=arguments)


@nox.session(python=False)
def benchmark(session: nox.Session) -> None:
    """Time a step and `model.fit` beside the peers, on every backend. `-- --quick`: minutes."""
    for backend in BACKENDS:
        session.notify(f"benchmark-{backend}")


@nox.session
def paper(session: nox.Session) -> None:
    """Measure the paper's claims on real data, and draw them. `-- --quick`: minutes, not an hour."""
    install(session, "jax", "keras", "benchmark")
    env = use("jax") | {"PYTHONPATH": "benchmarks"}
    for script in ("run.py", "calibration.py", "figures.py"):
        session.run("python", f"benchmarks/paper/{script}", *session.posargs, env=env)
