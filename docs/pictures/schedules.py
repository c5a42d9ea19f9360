"""The package's schedules, by `plot_schedule`."""

from drawing import BLUE, GREEN, ORANGE, RED, plt, save
from keras_decoupled import CosineWarmRestarts, WarmupStableDecay, plot_schedule

ALPHA, UPDATES = 1e-3, 1000
LEFT = {
    "first_decay_steps=128, t_mul=2, m_mul=0.9,\nwarmup_steps=64": (
        CosineWarmRestarts(ALPHA, 128, t_mul=2, m_mul=0.9, warmup_steps=64),
        BLUE,
    ),
    "first_decay_steps=1000, autorestart=False": (
        CosineWarmRestarts(ALPHA, UPDATES, autorestart=False),
        ORANGE,
    ),
}
RIGHT = {
    f'shape="{shape}"': (
        WarmupStableDecay(ALPHA, 600, 300, warmup_steps=100, shape=shape),
        color,
    )
    for shape, color in (("1-sqrt", BLUE), ("linear", GREEN), ("cosine", RED))
}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
titles = ("CosineWarmRestarts", "WarmupStableDecay")
for ax, title, schedules in zip(axes, titles, (LEFT, RIGHT), strict=True):
    for label, (schedule, color) in schedules.items():
        plot_schedule(schedule, UPDATES, ax)
        ax.lines[-1].set(color=color, linewidth=2, label=label)
    ax.set_title(title)
    ax.set(xlim=(0, UPDATES), ylim=(0, 1.4 * ALPHA))
    ax.legend(loc="upper left", fontsize=10.5)
axes[1].set_ylabel("")
save(figure, "schedules")
