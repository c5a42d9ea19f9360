"""The way of one gradient, and the tree of the package."""

from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from drawing import BLUE, GRAY, GREEN, ORANGE, RED, plt, save


def page(width, height):
    figure, ax = plt.subplots(figsize=(width, height))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.set_axis_off()
    return figure, ax


def box(ax, x, y, width, height, title, text="", color=BLUE, title_on_top=False):
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
    if text or title_on_top:
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


figure, ax = page(10, 8.4)
box(
    ax,
    2.6,
    7.6,
    4.8,
    0.75,
    "optimizer.apply(gradients, variables)",
    "checks; builds again on new variables; dense gradients",
)
box(
    ax,
    2.6,
    6.4,
    4.8,
    0.75,
    "Keras",
    "asks for the rate, clips, accumulates, divides by the loss scale",
    GRAY,
)
box(
    ax,
    2.6,
    5.0,
    4.8,
    0.95,
    "Update.run: the numbers, once for all variables",
    "rate, each distinct decay with its power of η,\nbias corrections",
)
box(
    ax,
    2.9,
    2.4,
    7.0,
    2.0,
    "update_step(gradient, variable, η·α), which Keras calls for each variable",
    color=GRAY,
    title_on_top=True,
)
columns = (
    (
        0.1,
        ORANGE,
        "torch",
        "groups of variables with\none multiplier and decay;\nfused kernels, 1 or 2 a group",
    ),
    (3.05, BLUE, "JAX, or XLA", "step and decay in\nkeras.ops, which the\ncompiler makes one loop"),
    (5.33, GREEN, "TensorFlow, no XLA", "one op for the decay,\n1 or 2 training ops\nfor the step"),
    (
        7.61,
        RED,
        "Lion, Lamb, yours …",
        "the stock class's step;\nits assignment is caught\nas the step u",
    ),
)
for x, color, title, text in columns:
    box(ax, x, 2.55, 2.15, 1.25, title, text, color)
arrow(ax, (3.0, 5.0), (1.2, 3.8))
arrow(ax, (6.4, 5.0), (6.4, 4.4))
arrow(ax, (2.25, 3.15), (2.9, 3.15))
ax.text(2.55, 3.27, "the rest", ha="center", fontsize=9, color=GRAY)
arrow(ax, (1.2, 2.55), (4.0, 1.8))
arrow(ax, (6.4, 2.4), (5.9, 1.8))
box(
    ax,
    2.6,
    0.9,
    4.8,
    0.9,
    "θ ← θ − u − decay(θ, u)",
    "the new weight; below float32,\nits float32 copy and then the weight",
)
arrow(ax, (5, 7.6), (5, 7.15))
arrow(ax, (5, 6.4), (5, 5.95), "where weights are to be updated")
arrow(ax, (5, 0.9), (5, 0.5))
box(ax, 2.6, 0.05, 4.8, 0.45, "Keras: moving averages, counts", color=GRAY)
save(figure, "built")

figure, ax = page(9, 5.9)
rows = (
    (
        ("callbacks/", "layerwise.py", "width.py", "plots.py"),
        "what users call beside the optimizers",
        "",
        GRAY,
    ),
    (("optimizers/",), "the mathematics", "adamw  nadamw  sgdw  muon · ready_made · stock", BLUE),
    (("core/",), "how Keras calls it", "optimizer  update  registry  build  clock", BLUE),
    (
        ("saving/", "fast/"),
        "what a file keeps · fewer passes over memory",
        "config  state · torch_update  tensorflow_ops",
        GREEN,
    ),
    (
        ("decay/", "schedule/"),
        "what is subtracted, and from whom · when",
        "kinds  rules  rows · cosine  stable  rates",
        ORANGE,
    ),
    (("paths/",), "which key means which variable", "match  align  blocks  matrices", RED),
    (("checks.py",), "is this argument right?", "", GRAY),
)
for place, (names, question, files, color) in enumerate(rows):
    y = 5.25 - 0.85 * place
    width = (4.6 - 0.1 * (len(names) - 1)) / len(names)
    for column, name in enumerate(names):
        box(ax, 0.2 + column * (width + 0.1), y, width, 0.55, name, color=color)
    ax.text(5.1, y + (0.4 if files else 0.28), question, va="center", fontsize=10)
    ax.text(5.1, y + 0.12, files, va="center", fontsize=8.5, color=GRAY, family="monospace")
    if place:
        arrow(ax, (2.5, y + 0.85), (2.5, y + 0.55))
save(figure, "tree")
