"""Where the figures come from, and the tables of them."""

import datetime
import json
import os
import platform
import time
from importlib import metadata
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

PACKAGES = (
    *("keras_decoupled", "keras", "numpy"),
    *("jax", "jaxlib", "optax"),
    *("tensorflow", "tensorflow-cpu"),
    *("torch", "torch-optimi"),
)
FOLDER = Path(__file__).parent / "results"


class Bar(Progress):
    """A progress bar without a thread, which would run while something is timed."""

    def __init__(self, console):
        columns = TextColumn("{task.description:<40}"), BarColumn(), TimeElapsedColumn()
        super().__init__(*columns, console=console, auto_refresh=False)
        self.shown = 0.0

    def show(self, task, **fields):
        """Update a task; draw at most ten times a second."""
        self.update(task, **fields)
        if time.monotonic() - self.shown > 0.1:
            self.refresh()
            self.shown = time.monotonic()


def processor():
    """The processor's name; `platform` has none on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def circumstances(backend, quick, device, settings):
    """Machine, versions and date."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "backend": backend,
        "quick": quick,
        "date": datetime.date.today().isoformat(),
        "machine": {
            "processor": processor(),
            "cores": cores,
            "device": device,  # an accelerator, or None
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
        },
        "versions": versions,
        "settings": settings,
    }


def machine(result):
    """One line that names it."""
    where = result["machine"]
    return where["device"] or f"{where['processor']}, {where['cores']} cores"


def output(out, backend, quick, prefix="", part=False):
    """The file to write: neither a quick run nor a part of one replaces a full one."""
    return (
        out
        or FOLDER / f"{'quick-' if quick else ''}{'part-' if part else ''}{prefix}{backend}.json"
    )


def write(result, file):
    """Write JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf8")


def finish(console, shown, result, file):
    """Print a table, write JSON, and say where."""
    console.print(shown)
    write(result, file)
    console.print(f"Written: {file}", soft_wrap=True)


def table(entry):
    """One group's contenders as a table."""
    limit, rate = entry["limit_ms"], entry["copy_bytes_per_s"] / 1e9
    title = " · ".join(x for x in (entry["title"], entry["optimizer"], entry["mode"]) if x)
    shown = Table(
        title=f"{title}: {entry['variables']} variables, {entry['parameters'] / 1e6:.1f}M parameters",
        caption=f"limit {limit:.2f} ms, copying at {rate:.1f} GB/s; {entry['rounds']} rounds",
        title_justify="left",
        caption_justify="left",
        min_width=98,
    )
    shown.add_column("optimizer")
    kinds = all("this_over_plain" in row for row in entry["contenders"].values())
    compared = "÷plain" if kinds else "ours÷this"
    columns = ["ms", "quartiles", compared, "÷limit", "extra MB", "build s", "first step s"]
    for column in columns:
        shown.add_column(column, justify="right", no_wrap=True)
    for name, row in entry["contenders"].items():
        low, high = row["ms_quartiles"]
        extra = row["extra_bytes"]
        shown.add_row(
            name if row["ours"] else f"  {name}",
            f"{row['ms']:.2f}",
            f"{low:.2f}–{high:.2f}",
            f"{row['this_over_plain' if kinds else 'ours_over_this']:.2f}",
            f"{row['this_over_limit']:.2f}",
            "?" if extra is None else f"{extra / 1e6:.1f}",
            f"{row['build_s']:.3f}",
            f"{row['first_step_s']:.3f}",
            style="bold" if row["ours"] else None,
        )
    return shown
