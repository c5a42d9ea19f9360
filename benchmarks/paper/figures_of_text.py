"""What the runs on text say: Muon's parts, and rates that carry over from a narrow model to wider ones.

    nox -s paper [-- --quick]

Writes `text.json` beside the runs and the pictures into docs/evidence. An experiment whose runs are not all there is
left out.
"""

import functools
import math

import numpy as np
from matplotlib.ticker import NullLocator

import experiments
from analysis import difference
from drawing import DOCS, WIDTH, plt, save
from results import Results

FIRST_LOSS = math.log(63)  # of a guess among the characters
MUON_TITLES = {
    "adamw": "AdamW",
    "keras-muon": "keras.optimizers.Muon",
    "muon": "keras_decoupled.Muon",
}
WIDTH_TITLES = {
    "keras-adamw": "coupled decay",
    "keras-adamw-scaled": "coupled decay, multipliers",
    "adamw": "independent decay",
    "adamw-scaled": "independent decay, multipliers",
}


class Curve:
    """Losses over learning rates: for each rate an array, with a number for each of its seeds."""

    def __init__(self, done, rates, run, quick, planned=lambda rate: experiments.SEEDS):
        def losses(cell):
            found = done.get(experiments.short(cell) if quick else cell)
            return found[max(found)] if found else None

        found = {rate: [losses(run(rate, seed)) for seed in experiments.SEEDS] for rate in rates}
        self.rates = rates
        self.complete = all(found[rate][seed] for rate in rates for seed in planned(rate))
        # More seeds than planned are used, too.
        tables = [
            np.array([one for one in found[rate] if one] or [[math.nan] * 2]).T for rate in rates
        ]
        self.validation, self.test = ([table[k] for table in tables] for k in (0, 1))

    @property
    def best(self):
        """Position of the rate with the least validation loss."""
        return int(np.argmin([losses.mean() for losses in self.validation]))

    def sensitivity(self, count):
        """How much is lost on average, over the first rates, to the best of them: as in 2309.14322."""
        losses = np.minimum([losses.mean() for losses in self.test[:count]], FIRST_LOSS)
        return float(losses.mean() - losses.min())

    def told(self, count=None):
        """As JSON has it; the sensitivity is that over the first `count` rates."""
        return {
            "best rate": self.rates[self.best],
            "test loss": seeds(self.test[self.best]),
            "sensitivity": round(self.sensitivity(count), 4),
            "by rate": {
                f"{rate:g}": seeds(row) for rate, row in zip(self.rates, self.test, strict=True)
            },
        }

    def draw(self, axes, colour, label):
        """A line through the means, and a band from least to most."""
        losses = [np.minimum(of_rate, FIRST_LOSS) for of_rate in self.test]
        axes.plot(self.rates, [x.mean() for x in losses], ".-", color=colour, label=label)
        band = [x.min() for x in losses], [x.max() for x in losses]
        axes.fill_between(self.rates, *band, color=colour, alpha=0.2, linewidth=0)


def seeds(losses):
    """Mean and seeds."""
    return {"mean": round(float(losses.mean()), 4), "seeds": [round(float(x), 4) for x in losses]}


def muon(done, quick, out):
    """Draw and return what the forms of Muon come to."""

    def curve(form, rates):
        return Curve(done, rates, lambda rate, seed: experiments.of_muon(form, rate, seed), quick)

    curves = {form: curve(form, experiments.MUON_RATES) for form in experiments.MUON_FORMS}
    middle = experiments.MUON_RATES[2:3]
    low, same = curve("muon-bfloat16", middle), curve("muon", middle)
    if not all(c.complete for c in (*curves.values(), low)):
        return None
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for i, (form, title) in enumerate(MUON_TITLES.items()):
        curves[form].draw(axes, f"C{i}", title)
    finish(axes, experiments.MUON_RATES)
    axes.legend(frameon=False)
    save(figure, out / "muon.png")
    at_best = {form: c.test[c.best] for form, c in curves.items()}
    return {form: c.told() for form, c in curves.items()} | {
        "ours − Keras'": difference(at_best["muon"], at_best["keras-muon"]).rounded(),
        "ours − AdamW": difference(at_best["muon"], at_best["adamw"]).rounded(),
        "products in bfloat16 − in float32": difference(low.test[0], same.test[0]).rounded(),
    }


def widths(done, quick, out):
    """Draw and return how the best rate moves with the width."""
    found, panels = {}, {}
    shared = len(experiments.rates_of_width(experiments.WIDTHS[-1]))
    for form in WIDTH_TITLES:
        panels[form] = {
            width: Curve(
                done,
                experiments.rates_of_width(width),
                lambda rate, seed, form=form, width=width: experiments.of_width(
                    form, width, rate, seed
                ),
                quick,
                functools.partial(experiments.seeds_of_width, form, width),
            )
            for width in experiments.WIDTHS
        }
        if not all(c.complete for c in panels[form].values()):
            return None
        base = panels[form][experiments.WIDTHS[0]].best
        found[form] = {
            str(width): c.told(shared) | {"test loss at the carried rate": seeds(c.test[base])}
            for width, c in panels[form].items()
        }
    figure, grid = plt.subplots(2, 2, figsize=(WIDTH, 7.4), layout="constrained", sharey=True)
    for axes, (form, title) in zip(grid.flat, WIDTH_TITLES.items(), strict=True):
        for i, (width, c) in enumerate(panels[form].items()):
            c.draw(axes, plt.cm.viridis(i / len(panels[form])), f"width {width}")
            axes.plot(c.rates[c.best], c.test[c.best].mean(), "o", ms=9, mfc="none", color="black")
        axes.set_title(title, loc="left")
        finish(axes, experiments.WIDTH_RATES)
    grid[0, 0].legend(frameon=False)
    save(figure, out / "widths.png")
    widest = experiments.WIDTHS[-1]
    carried = {
        form: panel[widest].test[panel[experiments.WIDTHS[0]].best]
        for form, panel in panels.items()
    }
    independent, coupled = carried["adamw-scaled"], carried["keras-adamw-scaled"]
    name = "at the carried rate, multipliers: independent − coupled"
    return found | {name: difference(independent, coupled).rounded()}


def finish(axes, rates):
    """Labels of a panel."""
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="base learning rate α", ylabel="test loss (nats per character)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def main():
    """Draw and write what is there."""
    import report  # tests import this file, and have no path to these two
    from run import arguments, folder

    options = arguments()
    source = folder(options)
    out = source if options.quick or options.out else DOCS
    done = Results(source).done()
    found = {f.__name__: f(done, options.quick, out) for f in (muon, widths)}
    report.write({name: told for name, told in found.items() if told}, source / "text.json")
    print("Left out, as runs are missing:", [name for name, told in found.items() if not told])


if __name__ == "__main__":
    main()
