"""One weight under each kind of decay, with the same steps and the same schedule."""

import keras
import numpy as np

from drawing import BLUE, GRAY, GREEN, ORANGE, RED, plt, save
from keras_decoupled import SGDW, CosineWarmRestarts, Decay

UPDATES = 300
KINDS = {
    "no decay": (None, GRAY),
    "Decay(0.01)": (0.01, BLUE),
    "Decay(0.01, cautious=True)": (Decay(0.01, cautious=True), GREEN),
    'Decay(0.01, towards="initial")': (Decay(0.01, towards="initial"), ORANGE),
    "Decay(0.01, eta_power=0)": (Decay(0.01, eta_power=0), "#7d3c98"),
    "Decay(0.01, eta_power=2)": (Decay(0.01, eta_power=2), "#a9762f"),
    "Decay(l1=0.01, soft_threshold=True)": (Decay(l1=0.01, soft_threshold=True), RED),
}


def way(decay):
    schedule = CosineWarmRestarts(0.006, UPDATES, autorestart=False)
    optimizer = SGDW(schedule, weight_decay=0 if decay is None else decay)
    variable = keras.Variable(np.ones(1, "float32"))
    found = [1.0]
    for update in range(UPDATES):  # the steps go up, then down
        gradient = keras.ops.full((1,), -1.0 if update < UPDATES // 3 else 1.0)
        optimizer.apply([gradient], [variable])
        found.append(float(keras.ops.convert_to_numpy(variable)[0]))
    return found


figure, ax = plt.subplots(figsize=(9, 4.6))
for name, (decay, color) in KINDS.items():
    ax.plot(way(decay), color=color, linewidth=2.2, label=name)
ax.axvspan(0, UPDATES / 3, color="0.93", zorder=0)
ax.text(UPDATES / 6, -0.1, "steps go up", ha="center", color=GRAY)
ax.text(2 * UPDATES / 3, -0.1, "steps go down", ha="center", color=GRAY)
ax.set(
    xlabel="update, under one cosine",
    ylabel="weight",
    xlim=(0, UPDATES),
    ylim=(-0.15, 1.65),
)
figure.legend(loc="outside lower center", ncols=3, fontsize=10.5)
save(figure, "kinds")
