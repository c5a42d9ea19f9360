"""Who is decayed in a small transformer, as `explain()` tells it."""

import keras

from drawing import BLUE, GRAY, GREEN, plt, save
from keras_decoupled import AdamW

tokens = keras.Input((16,), dtype="int32")
x = keras.layers.Embedding(100, 8, name="embedding")(tokens)
y = keras.layers.LayerNormalization(name="encoder_norm")(x)
y = keras.layers.MultiHeadAttention(2, 4, name="encoder_attention")(y, y)
x = keras.layers.Dense(8, name="encoder_dense")(x + y)
model = keras.Model(tokens, keras.layers.Dense(1, name="head")(x))
optimizer = AdamW(
    1e-3, weight_decay=1e-4, weight_decays={"encoder": 3e-5}, decay_vectors=False
)
rows = optimizer.explain(model).rows
colors = [
    BLUE
    if row["rule"] == "weight_decay"
    else GREEN
    if row["decay_per_update"]
    else GRAY
    for row in rows
]
paths = [row["path"] for row in rows]

figure, ax = plt.subplots(figsize=(9, 4.4))
ax.barh(paths, [row["decay_per_update"] for row in rows], color=colors)
for place, (row, color) in enumerate(zip(rows, colors, strict=True)):
    text = {
        BLUE: "weight_decay",
        GREEN: f'key "{row["rule"]}"',
        GRAY: "decay_vectors=False",
    }[color]
    ax.text(
        row["decay_per_update"] + 1e-6,
        place,
        text,
        va="center",
        fontsize=10.5,
        color=color,
    )
ax.set(xlabel="decay per update at η = 1", xlim=(0, 1.25e-4))
figure.suptitle(
    'AdamW(1e-3, weight_decay=1e-4, weight_decays={"encoder": 3e-5}, decay_vectors=False)',
    fontsize=10.5,
)
ax.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
ax.grid(axis="y", visible=False)
ax.tick_params(axis="y", labelsize=10.5)
ax.invert_yaxis()
save(figure, "who")
