"""The way of one gradient, and the tree of the package."""

from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from drawing import BLUE, GRAY, GREEN, ORANGE, RED, plt, save


def page(width, height, inches):
    """An empty picture of 9 inches, as wide as a page's column, with coordinates of its own."""
    figure, ax = plt.subplots(figsize=(9, inches))
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
            fontsize=10.5,
            fontweight="bold",
            color=color,
        )
        ax.text(
            middle,
            y + height - 0.46,
            text,
            ha="center",
            va="top",
            fontsize=10.5,
            linespacing=1.35,
        )
    else:
        ax.text(
            middle,
            y + height / 2,
            title,
            ha="center",
            va="center",
            fontsize=10.5,
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
            fontsize=10.5,
            color=GRAY,
            va="center",
        )


figure, ax = page(10, 8.4, 9.2)
box(
    ax,
    2.6,
    7.6,
    4.8,
    0.75,
    "optimizer.apply(gradients, variables)",
    "checks; builds on new variables",
)
box(
    ax,
    2.6,
    6.4,
    4.8,
    0.75,
    "Keras",
    "clips, accumulates, divides by the loss scale",
    GRAY,
)
box(
    ax,
    2.6,
    5.0,
    4.8,
    0.95,
    "Update.run: numbers for all variables",
    "the rate, each decay times its power of η,\nthe bias corrections",
)
box(
    ax,
    2.9,
    2.4,
    7.0,
    2.0,
    "Keras calls update_step for each variable",
    color=GRAY,
    title_on_top=True,
)
columns = (
    (
        0.1,
        ORANGE,
        "torch",
        "1 or 2 fused kernels\nfor all variables with\nthe same rules",
    ),
    (
        3.05,
        BLUE,
        "JAX, or XLA",
        "step and decay in\nkeras.ops; XLA makes\na few loops of them",
    ),
    (
        5.33,
        GREEN,
        "TensorFlow, no XLA",
        "one op for the decay,\none or two training\nops for the step",
    ),
    (
        7.61,
        RED,
        "Lion, Lamb, yours …",
        "the step u is what\nthe Keras class takes\nfrom the weight",
    ),
)
for x, color, title, text in columns:
    box(ax, x, 2.55, 2.15, 1.25, title, text, color)
arrow(ax, (3.0, 5.0), (1.2, 3.8))
arrow(ax, (6.4, 5.0), (6.4, 4.4))
arrow(ax, (2.25, 3.15), (2.9, 3.15))
ax.text(2.55, 3.27, "rest", ha="center", fontsize=10.5, color=GRAY)
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
arrow(ax, (5, 6.4), (5, 5.95), "if the weights are updated")
arrow(ax, (5, 0.9), (5, 0.5))
box(ax, 2.6, 0.05, 4.8, 0.45, "Keras: moving averages, counts", color=GRAY)
save(figure, "built")

figure, ax = page(9, 6.1, 5.2)
rows = (
    (("callbacks/", "width.py"), "callbacks; rates by width", GRAY),
    (("layerwise.py", "plots.py"), "rates by layer; pictures of a schedule", GRAY),
    (("optimizers/",), "the mathematics of each optimizer", BLUE),
    (("core/",), "how Keras calls an optimizer", BLUE),
    (("saving/", "fast/"), "what a file holds · fewer passes over memory", GREEN),
    (("decay/", "schedule/"), "what is subtracted, from which variable · when", ORANGE),
    (("paths/",), "which variable a key means", RED),
    (("checks.py", "calls.py"), "is an argument right? · what repr shows", GRAY),
)
for place, (names, question, color) in enumerate(rows):
    y = 5.5 - 0.77 * place
    width = (4.2 - 0.1 * (len(names) - 1)) / len(names)
    for column, name in enumerate(names):
        box(ax, 0.1 + column * (width + 0.1), y, width, 0.5, name, color=color)
    ax.text(4.5, y + 0.25, question, va="center", fontsize=10.5)
    if place:
        arrow(ax, (2.2, y + 0.77), (2.2, y + 0.5))
save(figure, "tree")
