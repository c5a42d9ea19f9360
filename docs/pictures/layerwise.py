"""Multipliers of twelve blocks, and the decay of each, by `layerwise_*`."""

import keras

from drawing import BLUE, GRAY, ORANGE, plt, save
from keras_decoupled import layerwise_lr_multipliers, layerwise_weight_decays

NAMES = ["embedding", *(f"block_{i}" for i in range(12)), "head"]
dense = [keras.layers.Dense(2, use_bias=False, name=name) for name in NAMES]
model = keras.Sequential([keras.Input((2,)), *dense])
multipliers = list(layerwise_lr_multipliers(model, 0.75, layers=NAMES).values())
decays = list(layerwise_weight_decays(model, 1e-5, 0.75, layers=NAMES).values())

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True)
left.barh(NAMES, multipliers, color=BLUE)
for place, multiplier in enumerate(multipliers):
    left.text(multiplier + 0.01, place, f"{multiplier:.2g}", va="center", fontsize=10.5)
left.set(
    title="layerwise_lr_multipliers(model, 0.75)",
    xlabel="multiplier of the step",
    xlim=(0, 1.12),
)
right.barh(NAMES, [1e-5] * len(NAMES), color="0.85", label="weight_decay=1e-5")
right.barh(
    NAMES,
    decays,
    color=ORANGE,
    height=0.5,
    label="layerwise_weight_decays(model, 1e-5, 0.75)",
)
right.set(title="decay per update at η = 1", xlabel="λ", xlim=(0, 1.12e-5))
figure.legend(loc="outside lower right", ncols=2, fontsize=10.5)
right.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
for ax in (left, right):
    ax.grid(axis="y", visible=False)
    ax.invert_yaxis() if ax is left else None
    ax.tick_params(colors=GRAY, labelcolor="black")
save(figure, "layerwise")
