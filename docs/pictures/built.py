"""The way of one gradient, and the tree of the package."""

from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from drawing import BLUE, GRAY, GREEN, ORANGE, RED, plt, save


def page(width, height):
    figure, ax = plt.subplots(figsize=(width, height))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.set_axis_off()
    return figure, ax


def box(ax, x, y, width, height, title, text="", color=BLUE):
    patch = FancyBboxPatch(
        (x, y),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.08",
        linewidth=1.4,
        edgecolor=color,
        facecolor=f"{color}18",
    )
    ax.add_patch(patch)
    middle = x + width / 2
    if text:
        ax.text(
            middle,
            y + height - 0.14,
            title,
            ha="center",
            va="top",
            fontsize=10,
            fontweight="bold",
            color=color,
        )
        ax.text(
            middle, y + height - 0.46, text, ha="center", va="top", fontsize=9, linespacing=1.35
        )
    else:
        ax.text(
            middle,
            y + height / 2,
            title,
            ha="center",
            va="center",
            fontsize=10,
            fontweight="bold",
            color=color,
        )


def arrow(ax, start, end, text=""):
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=13,
            color=GRAY,
            linewidth=1.3,
            shrinkA=1,
            shrinkB=1,
        )
    )
    if text:
        ax.text(
            (start[0] + end[0]) / 2 + 0.08,
            (start[1] + end[1]) / 2,
            text,
            fontsize=9,
            color=GRAY,
            va="center",
        )


figure, ax = page(10, 7.6)
box(
    ax,
    2.6,
    6.75,
    4.8,
    0.75,
    "optimizer.apply(grads, variables)",
    "dense gradients; builds again on new variables",
)
box(ax, 2.6, 5.55, 4.8, 0.75, "Keras", "clips, accumulates, divides by the loss scale", GRAY)
box(
    ax,
    2.6,
    4.15,
    4.8,
    0.95,
    "update_all: numbers, once for all variables",
    "rate, η and its powers, each distinct decay,\nbias corrections",
)
columns = (
    (
        0.1,
        ORANGE,
        "torch",
        "groups of variables with\none multiplier and decay;\nfused kernels, 1 or 2 a group",
    ),
    (2.6, GREEN, "TensorFlow, no XLA", "one op for the decay,\n1 or 2 training ops\nfor the step"),
    (5.1, BLUE, "JAX, or XLA", "update_step in keras.ops,\nwhich the compiler\nmakes one loop"),
    (
        7.6,
        RED,
        "Lion, Muon, your own …",
        "the stock class's step;\nits assignment is caught\nas the step u",
    ),
)
for x, color, title, text in columns:
    box(ax, x, 2.3, 2.3, 1.25, title, text, color)
    arrow(ax, (5, 4.15), (x + 1.15, 3.55))
    arrow(ax, (x + 1.15, 2.3), (5, 1.75))
box(
    ax,
    2.6,
    0.85,
    4.8,
    0.9,
    "θ ← θ − u − decay(θ, u)",
    "the weight is written, once;\nbelow float32: its master copy, and then the weight",
)
arrow(ax, (5, 6.75), (5, 6.3))
arrow(ax, (5, 5.55), (5, 5.1), "where weights are to be updated")
arrow(ax, (5, 0.85), (5, 0.5))
box(ax, 2.6, 0.05, 4.8, 0.45, "Keras: moving averages, counts", color=GRAY)
save(figure, "built")

figure, ax = page(10, 5.6)
rows = (
    (("callbacks/", "layerwise.py", "plots.py"), "what users call beside the optimizers", GRAY),
    (("optimizers/",), "the mathematics", BLUE),
    (("core/",), "how Keras calls it", BLUE),
    (("saving/", "fast/"), "what a file keeps · fewer passes over memory", GREEN),
    (("decay/", "schedule/"), "what is subtracted, and from whom · when", ORANGE),
    (("paths/",), "which key means which variable", RED),
    (("checks.py",), "is this argument right?", GRAY),
)
for place, (names, question, color) in enumerate(rows):
    y = 4.95 - 0.8 * place
    width = (4.6 - 0.1 * (len(names) - 1)) / len(names)
    for column, name in enumerate(names):
        box(ax, 0.2 + column * (width + 0.1), y, width, 0.5, name, color=color)
    ax.text(5.1, y + 0.25, question, va="center", fontsize=10)
    if place:
        arrow(ax, (2.5, y + 0.8), (2.5, y + 0.5))
save(figure, "tree")
