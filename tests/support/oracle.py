"""What the optimizers should compute: float64 NumPy, written from the papers and not from the package.

Each algorithm maps (g, state, k, rate) to the step that is subtracted from the weights. `k` counts the updates already
made, `rate` is η·α·m_v, and `state` is a dict that the algorithm keeps its moments in.
"""

import math
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np


def adamw(g, state, k, rate, beta_1=0.9, beta_2=0.999, epsilon=1e-7, amsgrad=False):
    """Kingma & Ba (arXiv 1412.6980), section 2, with ε̂; amsgrad: Reddi et al. (arXiv 1904.09237), Algorithm 2."""
    i = k + 1
    m = state["m"] = beta_1 * state.get("m", 0.0) + (1 - beta_1) * g
    v = state["v"] = beta_2 * state.get("v", 0.0) + (1 - beta_2) * g**2
    if amsgrad:
        v = state["v_max"] = np.maximum(state.get("v_max", 0.0), v)
    return rate * np.sqrt(1 - beta_2**i) / (1 - beta_1**i) * m / (np.sqrt(v) + epsilon)


def nadamw(g, state, k, rate, beta_1=0.9, beta_2=0.999, epsilon=1e-7, momentum_decay=0.004, mus=()):
    """Dozat, Incorporating Nesterov Momentum into Adam (2016), Algorithm 2 with the schedule μ_i of its section 3.

    `mus` are μ_1 to μ_k, where β1 or momentum_decay were others then.
    """
    i = k + 1
    mu = beta_1 * (1 - 0.5 * 0.96 ** (np.arange(1.0, i + 2) * momentum_decay))  # μ_1 … μ_(i+1)
    mu[: len(mus)] = mus
    m = state["m"] = beta_1 * state.get("m", 0.0) + (1 - beta_1) * g
    v = state["v"] = beta_2 * state.get("v", 0.0) + (1 - beta_2) * g**2
    m_bar = mu[i] * m / (1 - np.prod(mu)) + (1 - mu[i - 1]) * g / (1 - np.prod(mu[:i]))
    return rate * m_bar / (np.sqrt(v / (1 - beta_2**i)) + epsilon)


def sgdw(g, state, k, rate, momentum=0.0, nesterov=False):
    """Loshchilov & Hutter (arXiv 1711.05101), Algorithm 1; nesterov: Sutskever et al. (2013), as in Keras."""
    buf = state["buf"] = momentum * state.get("buf", 0.0) - rate * g
    return -(momentum * buf - rate * g) if nesterov else -buf


def adagrad(g, state, k, rate, initial_accumulator_value=0.1, epsilon=1e-7):
    """Duchi et al. (JMLR 2011), with the square root over ε as in Keras."""
    v = state["v"] = state.get("v", initial_accumulator_value) + g**2
    return rate * g / np.sqrt(v + epsilon)


def rmsprop(g, state, k, rate, rho=0.9, momentum=0.0, epsilon=1e-7, centered=False):
    """Hinton's lecture 6e (2012), with the square root over ε and the momentum as in Keras; centered: Graves (2013)."""
    v = state["v"] = rho * state.get("v", 0.0) + (1 - rho) * g**2
    a = state["a"] = rho * state.get("a", 0.0) + (1 - rho) * g
    root = np.sqrt(v - centered * a**2 + epsilon)
    buf = state["buf"] = momentum * state.get("buf", 0.0) + rate * g / root
    return buf


def adadelta(g, state, k, rate, rho=0.95, epsilon=1e-7):
    """Zeiler (arXiv 1212.5701), Algorithm 1, with a learning rate."""
    v = state["v"] = rho * state.get("v", 0.0) + (1 - rho) * g**2
    delta = np.sqrt(state.get("d", 0.0) + epsilon) / np.sqrt(v + epsilon) * g
    state["d"] = rho * state.get("d", 0.0) + (1 - rho) * delta**2
    return rate * delta


def adafactor(
    g,
    state,
    k,
    rate,
    beta_2_decay=-0.8,
    epsilon_1=1e-30,
    epsilon_2=1e-3,
    clip_threshold=1.0,
    relative_step=True,
):
    """Shazeer & Stern (arXiv 1804.04235), Algorithms 4 and 5. `state` has θ; Keras' relative_step changes nothing."""
    beta = 1 - (k + 1.0) ** beta_2_decay
    v = beta * state.get("v", 0.0) + (1 - beta) * (g**2 + epsilon_1)
    if g.ndim >= 2:
        r = state["r"] = beta * state.get("r", 0.0) + (1 - beta) * np.mean(g**2 + epsilon_1, -1)
        c = state["c"] = beta * state.get("c", 0.0) + (1 - beta) * np.mean(g**2 + epsilon_1, -2)
        v = r[..., :, None] * c[..., None, :] / np.mean(r, -1)[..., None, None]
    state["v"], s = v, g / np.sqrt(v)
    size = min(rate, (k + 1) ** -0.5) * max(epsilon_2, rms(state["theta"]))
    return size * s / max(1.0, rms(s) / clip_threshold)


def rms(x):
    return np.sqrt(np.mean(x**2))


def adamax(g, state, k, rate, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
    """Kingma & Ba (arXiv 1412.6980), Algorithm 2, with ε."""
    m = state["m"] = beta_1 * state.get("m", 0.0) + (1 - beta_1) * g
    n = state["n"] = np.maximum(beta_2 * state.get("n", 0.0), np.abs(g))
    return rate / (1 - beta_1 ** (k + 1)) * m / (n + epsilon)


def lamb(g, state, k, rate, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
    """You et al. (arXiv 1904.00962), Algorithm 2, without its λ, φ the identity. `state` has θ."""
    m = state["m"] = beta_1 * state.get("m", 0.0) + (1 - beta_1) * g
    v = state["v"] = beta_2 * state.get("v", 0.0) + (1 - beta_2) * g**2
    i = k + 1
    r = m / (1 - beta_1**i) / (np.sqrt(v / (1 - beta_2**i)) + epsilon)
    weight, length = np.sqrt(np.sum(state["theta"] ** 2)), np.sqrt(np.sum(r**2))
    return rate * r * (weight / length if weight and length else 1.0)


def lion(g, state, k, rate, beta_1=0.9, beta_2=0.99):
    """Chen et al. (arXiv 2302.06675), Algorithm 2."""
    m = state.get("m", 0.0)
    state["m"] = beta_2 * m + (1 - beta_2) * g
    return rate * np.sign(beta_1 * m + (1 - beta_1) * g)


def muon(
    g,
    state,
    k,
    rate,
    adam_beta_1=0.9,
    adam_beta_2=0.999,
    epsilon=1e-7,
    muon_a=3.4445,
    muon_b=-4.775,
    muon_c=2.0315,
    adam_lr_ratio=1.0,
    momentum=0.95,
    ns_steps=5,
    nesterov=True,
    rms_rate=0.2,
):
    """Jordan et al. (2024), with the factor of Liu et al. (arXiv 2502.16982).

    Adam steps vectors, and what `state` says.
    """
    if state.get("adam", g.ndim < 2):
        return adamw(g, state, k, adam_lr_ratio * rate, adam_beta_1, adam_beta_2, epsilon)
    m = state["m"] = momentum * state.get("m", 0.0) + g
    x = g + momentum * m if nesterov else m
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(ns_steps):
        a = x @ x.T
        x = muon_a * x + (muon_b * a + muon_c * a @ a) @ x
    return rate * x * (1.0 if rms_rate is None else rms_rate * math.sqrt(max(x.shape)))


At = namedtuple("At", "multiplier position cycle_steps")


def constant(s):
    """No schedule: the rate is α."""
    return At(1.0, s, None)


def cosine(
    s,
    first,
    t_mul=1,
    m_mul=1.0,
    eta_min=0.0,
    eta_max=1.0,
    warmup=0,
    endpoint=True,
    autorestart=True,
):
    """Loshchilov & Hutter, SGDR (arXiv 1608.03983), equation 5; (1711.05101), equation 14 and Appendix B.2."""
    if s < warmup:
        return At(eta_max * (s + 1) / (warmup + 1), 0, first)
    i, s, total = 0, s - warmup, first
    if autorestart and t_mul == 1:
        i, s = divmod(s, first)
    while autorestart and s >= total:
        i, s, total = i + 1, s - total, round(first * t_mul ** (i + 1))
    fraction = min(s / (total - 1 if endpoint else total), 1.0)
    eta = eta_min + 0.5 * (eta_max * m_mul**i - eta_min) * (1 + math.cos(math.pi * fraction))
    return At(eta, s, total)


def stable(s, stable, decay, warmup=0, shape="1-sqrt", eta_min=0.0):
    """Hu et al., MiniCPM (arXiv 2404.06395), section 4: warm-up, stable part (None: no end), decay."""
    position = max(s - warmup, 0)
    if s < warmup:
        return At((s + 1) / (warmup + 1), position, None)
    j = 0 if stable is None else min(max(position - stable, 0), decay - 1)
    x = j / (decay - 1)
    f = {"1-sqrt": 1 - math.sqrt(x), "linear": 1 - x, "cosine": 0.5 * (1 + math.cos(math.pi * x))}
    return At(eta_min + (1 - eta_min) * f[shape], position, None)


Decay = namedtuple(
    "Decay",
    "l1 l2 towards cautious eta_power soft_threshold",
    defaults=(0.0, 0.0, "zero", False, 1, False),
)


def decayed(theta, u, decay, h, l2, ref):
    """θ less the step u and the decay; h scales it, and `ref` is what it goes towards."""
    d = theta - ref
    l1 = h * decay.l1
    c = h * l2 * d + (0.0 if decay.soft_threshold else l1 * np.sign(d))
    c = np.where(u * d >= 0, c, 0.0) if decay.cautious else c  # Chen et al. (arXiv 2510.12402)
    x = d - u - c
    if decay.soft_threshold:  # the proximal operator of l1·|x|
        return ref + np.sign(x) * np.maximum(np.abs(x) - l1, 0.0)
    return theta - u - c


@dataclass(eq=False)
class Run:
    """A run of `algorithm` over several weights, each with its decay and its learning-rate multiplier.

    `alpha` is the base learning rate, `schedule` maps the position s to `At`, `normalize` is the T of Appendix B.1:
    None, a number, or "cycle" for that of the current cycle. A decay is (l1, l2) or a `Decay`; an l2 and a multiplier
    may be a function of k, and an l2 of None is `weight_decay`, which may be set. `learning_rate`, `weight_decay` and
    `restart` are called as the package's are, so that one piece of test code drives both; restart skips `warmup`.
    """

    algorithm: Callable
    values: list
    alpha: float
    decays: list
    multipliers: list | None = None
    schedule: Callable = constant
    normalize: int | str | None = None
    t_cur: int = 0
    warmup: int = 0
    weight_decay: float | None = None

    def __post_init__(self):
        self.values = [np.array(value, "float64") for value in self.values]
        self.initial = [value.copy() for value in self.values]
        self.decays, self.multipliers = (
            list(self.decays),
            self.multipliers or [1.0] * len(self.values),
        )
        self.states = [{} for _ in self.values]
        self.path = [np.zeros_like(value) for value in self.values]  # Σ|Δθ|, for the tolerance
        self.k, self.cycle_start, self.r = 0, -self.t_cur, 1.0
        self.first_schedule = self.schedule

    @property
    def at(self):
        return self.schedule(self.k - self.cycle_start)

    @property
    def eta(self):
        return self.r * self.at.multiplier

    @property
    def learning_rate(self):
        return self.eta * self.alpha

    @learning_rate.setter
    def learning_rate(self, rate):
        self.r = rate / (self.alpha * self.at.multiplier)

    def restart(self, position=0):
        self.cycle_start = self.k - self.warmup - position
        self.schedule = self.first_schedule

    def begin_decay(self):
        """Of a schedule `stable` without a stable part of its own."""
        self.schedule = partial(self.first_schedule, stable=self.at.position)

    def reset_reference(self):
        self.initial = [value.copy() for value in self.values]

    def step(self, grads):
        eta, total = self.eta, self.at.cycle_steps if self.normalize == "cycle" else self.normalize
        shrink = math.sqrt(1 / total) if total else 1.0
        for i, (theta, g) in enumerate(zip(self.values, grads, strict=True)):
            decay, m_v = Decay(*self.decays[i]), self.multipliers[i]
            m_v = m_v(self.k) if callable(m_v) else m_v
            l2 = self.weight_decay if decay.l2 is None else decay.l2
            l2 = l2(self.k) if callable(l2) else l2
            step = self.algorithm(
                np.asarray(g, "float64"), self.states[i], self.k, eta * self.alpha * m_v
            )
            if m_v != 0:  # 0 leaves the weight as it is
                self.decide(i, step, decay)
                ref = self.initial[i] if decay.towards == "initial" else 0.0
                self.values[i] = decayed(theta, step, decay, eta**decay.eta_power * shrink, l2, ref)
                self.path[i] = self.path[i] + np.abs(theta - self.values[i])
        self.k += 1

    def decide(self, i, step, decay):
        """Called before the weight i is changed: the signs of its decay may hang on rounding."""
