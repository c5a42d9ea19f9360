"""What λ means in updates: a weight without a gradient, how long it remembers, and for which run."""

import numpy as np

from drawing import BLUE, GRAY, GREEN, ORANGE, RED, plt, save

DECAYS = {1e-5: GREEN, 1e-4: BLUE, 1e-3: ORANGE, 1e-2: RED}


def power(number):
    digits, exponent = f"{number:.0e}".split("e")
    digits = "" if digits == "1" else rf"{digits}\cdot"
    return rf"${digits}10^{{{int(exponent)}}}$"


figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
updates = np.arange(20_001)
for decay, color in DECAYS.items():
    left.plot(
        updates,
        (1 - decay) ** updates,
        color=color,
        linewidth=2,
        label=f"λ = {power(decay)}",
    )
left.axhline(0.5, color=GRAY, linewidth=1, linestyle=":")
left.text(19_800, 0.45, "half-life: the weight is ½", color=GRAY, ha="right")
left.set(
    xlabel="weight update at η = 1",
    ylabel="weight, without a gradient",
    xlim=(0, 20_000),
    ylim=(0, 1.02),
)
left.xaxis.set_major_formatter("{x:,.0f}")
left.set_xticks(range(0, 20_001, 5_000))
left.legend(loc="lower right", bbox_to_anchor=(1, 0.5), ncols=2, fontsize=10.5)

for place, (decay, color) in enumerate(DECAYS.items()):
    right.barh(place, 1 / decay, color=color, height=0.6, left=1)
    right.text(
        1.6, place, f"λ = {power(decay)}", color="white", va="center", fontweight="bold"
    )
    right.plot(20 / decay, place, "D", color=color, markersize=8)
right.text(
    2e6,
    -0.45,
    "◆ is 20/T\nfor a run of T",
    color=GRAY,
    ha="center",
    va="bottom",
    fontsize=10,
)
right.set(
    xscale="log",
    xlabel="weight updates; the bar ends at 1/λ",
    xlim=(1, 2e7),
    yticks=[],
    ylim=(3.6, -0.7),
)
right.grid(visible=False)
right.spines["left"].set_visible(False)
save(figure, "lambda")
