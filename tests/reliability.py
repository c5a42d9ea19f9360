"""Run the tests marked `reliability` at full effort, and keep their figures: `nox -s reliability`.

A run that was stopped goes on where it stood: a test that has passed is not run again as long as the package, the
test's file and the helpers are the same. `--report` prints the tables of docs/reliability.md.
"""

import datetime
import functools
import hashlib
import importlib
import json
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOGS = ROOT / ".reliability"  # a line for each test that passed
RESULTS = ROOT / "benchmarks" / "results"
BACKENDS = ("jax", "tensorflow", "torch")
HELPERS = [*ROOT.glob("tests/support/*.py"), *ROOT.glob("integration_tests/[!t]*.py")]
for folder in ("core", "hostile"):
    HELPERS += ROOT.glob(f"tests/{folder}/[!t]*.py")


@functools.cache
def digest_of_test(file):
    return digest([file, *HELPERS])


def digest(files):
    code = hashlib.sha256()
    for file in sorted(files):
        code.update(file.read_bytes())
    return code.hexdigest()[:12]


def read(log):
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return {entry["test"]: entry for entry in map(json.loads, lines)}


class Record:
    """A pytest plugin: leaves out what has passed, says how far it is, writes down what passes."""

    def __init__(self, backend, whole):
        self.whole = whole  # the figures of a part of a run are no results
        self.log = LOGS / f"{backend}.jsonl"
        self.package = digest((ROOT / "src").rglob("*.py"))
        self.earlier = read(self.log)
        results = RESULTS / f"reliability-{backend}.json"
        self.published = json.loads(results.read_text())["tests"] if results.exists() else {}
        self.left = {}  # test: the digests of the code that it depends on
        self.ran = 0

    @pytest.hookimpl(trylast=True)  # after those that are not asked for have been taken out
    def pytest_collection_modifyitems(self, config, items):
        self.all = {item.nodeid for item in items}
        done = []
        for item in items:
            entry, code = self.earlier.get(item.nodeid), [self.package, digest_of_test(item.path)]
            if entry and entry["code"] == code:
                done.append(item)
            else:
                self.left[item.nodeid] = code
        config.hook.pytest_deselected(items=done)
        items[:] = [item for item in items if item.nodeid in self.left]

    def pytest_runtest_logreport(self, report):
        if report.when != "call" or report.skipped:
            return
        code = self.left.pop(report.nodeid)
        self.ran += 1
        figures = dict(report.user_properties)
        if report.passed:
            entry = {"test": report.nodeid, "code": code, "seconds": round(report.duration, 1)}
            LOGS.mkdir(exist_ok=True)
            with self.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(entry | {"figures": figures}) + "\n")
            self.earlier[report.nodeid] = entry
        if report.duration > 1 or report.failed:
            name = report.nodeid.partition("::")[2]
            print(
                f"\n{self.ran} of {self.ran + len(self.left)}, {self.estimate()}: {name} {report.outcome}, {figures}"
            )

    def estimate(self):
        """From what each test took before, there or where the results are from; else from the mean of all."""
        known = [entry["seconds"] for entry in self.earlier.values()] or [0.0]
        mean = sum(known) / len(known)

        def seconds(name):
            if name in self.earlier:
                return self.earlier[name]["seconds"]
            test = self.published.get(name.partition("[")[0])
            return test["seconds"] / test["passed"] if test else mean

        return f"about {sum(map(seconds, self.left)) / 60:.0f} min left"

    def pytest_sessionfinish(self, session):
        if self.whole and not session.config.option.collectonly:
            self.summarize()

    def summarize(self):
        """Write what has passed with this code into benchmarks/results/."""
        import keras  # not for --report, which needs no backend

        backend = self.log.stem
        tests = defaultdict(lambda: {"passed": 0, "seconds": 0.0, "figures": {}})
        for name, entry in read(self.log).items():
            if entry["code"][0] != self.package or name not in self.all:
                continue
            function, _, case = name.partition("[")
            test = tests[function]
            test["passed"] += 1
            test["seconds"] = round(test["seconds"] + entry["seconds"], 1)
            if entry["figures"]:
                test["figures"][case.removesuffix("]")] = entry["figures"]
        modules = (keras, importlib.import_module(backend))
        versions = {module.__name__: module.__version__ for module in modules}
        summary = {
            "date": datetime.date.today().isoformat(),
            "versions": versions,
            "missing": len(self.all) - sum(test["passed"] for test in tests.values()),
            "tests": dict(sorted(tests.items())),
        }
        file = RESULTS / f"reliability-{backend}.json"
        file.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def report():
    """The tables of docs/reliability.md."""
    summaries = {
        backend: json.loads((RESULTS / f"reliability-{backend}.json").read_text(encoding="utf-8"))
        for backend in BACKENDS
    }
    for backend, summary in summaries.items():
        hours = sum(test["seconds"] for test in summary["tests"].values()) / 3600
        passed = sum(test["passed"] for test in summary["tests"].values())
        versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
        print(
            f"- {backend}, {summary['date']}, {versions}: {passed} tests passed in {hours:.1f} hours;"
            f" {summary['missing']} did not run or failed."
        )
    rows = defaultdict(dict)
    for backend, summary in summaries.items():
        alike = Counter()  # by file: tests without figures
        for function, test in summary["tests"].items():
            file, _, name = function.partition("::test_")
            file = (
                Path(file.replace("hostile/test_", "hostile_"))
                .stem.removeprefix("test_")
                .replace("_", " ")
            )
            name = f"{file}: {name.replace('_', ' ')}"
            cases = test["figures"]
            total = sum(map(Counter, cases.values()), Counter())
            if not total:
                alike[file] += test["passed"]
            elif total["kills"]:
                for case, figures in cases.items():
                    rows[f"{file}: {case}" if case else name][backend] = cell(figures)
            else:
                rows[name][backend] = cell({"cases": test["passed"]} | total)
        for file, count in alike.items():
            rows[f"{file}, all else"][backend] = cell({"cases": count})
    print("\n| test | " + " | ".join(BACKENDS) + " |\n|---|" + "---|" * len(BACKENDS))
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells.get(backend, "–") for backend in BACKENDS) + " |")


def cell(figures):
    return ", ".join(f"{value:,} {what}" for what, value in figures.items())


def main(arguments):
    if arguments == ["--report"]:
        return report()
    os.environ["RELIABILITY"] = "full"  # read where the tests are imported
    backend = os.environ["KERAS_BACKEND"]
    where = arguments or ["tests", "integration_tests"]
    record = Record(backend, whole=not arguments)
    return pytest.main(["-m", "reliability", "-q", "-s", *where], plugins=[record])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
