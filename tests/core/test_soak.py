"""Twenty thousand updates of `fit` with everything on: no memory grows, nothing is traced again, nothing drifts.

The loss is linear, so that every gradient is an input. The float64 oracle goes the same way beside `fit`, and they are
compared at the end of every epoch.
"""

import gc
import sys
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_decoupled
import oracle
from cases import ALGORITHMS, BACKEND, numpy
from effort import effort, in_turn
from exact import model_of, output, row

PER_EPOCH = 100  # updates
EPOCHS = effort(3, 200)
SETTLED = effort(2, 20)  # epochs after which memory is watched
ACCUMULATE = 2
EMA, OVERWRITE = 0.99, 150  # updates from one overwriting to the next
ALPHA = 1e-3
HALF_ULP = 2.0**-24

# One tensor kept per update, with what the framework says of it, is 500 bytes or more for each of 18,000 updates.
MOST_BYTES = 8 * 2**20
# One Python object kept per update would be four times the second term; the first is for caches still filling.
MOST_BLOCKS = 2000 + (EPOCHS - SETTLED) * PER_EPOCH // 4

LAYERS = {"a": {"kernel": (4, 3), "bias": (3,)}, "b": {"kernel": (3,)}, "frozen": {"kernel": (2,)}}
SHAPES = [shape for shapes in LAYERS.values() for shape in shapes.values()]

# In CI, AdamW on JAX, SGDW on TensorFlow and NadamW, which has the most state, on torch.
OPTIMIZERS = {"AdamW": {"amsgrad": True}, "SGDW": {"momentum": 0.9, "nesterov": True}, "NadamW": {}}

RATE = keras_decoupled.CosineWarmRestarts(ALPHA, 10, t_mul=2, eta_min=0.05, warmup_steps=5)
ARGUMENTS = {
    "weight_decay": 0.01,
    "weight_decays": {"b": (1e-4, 0.02), "bias": 0},
    "lr_multipliers": {"a": 0.5, "frozen": 0},
    "gradient_accumulation_steps": ACCUMULATE,
    "use_ema": True,
    "ema_momentum": EMA,
    "ema_overwrite_frequency": OVERWRITE,
    "clipnorm": 1.0,
}
# What that comes to, in the order of SHAPES.
CYCLES = {"first": 10, "t_mul": 2, "eta_min": 0.05, "warmup": 5}
L1 = [0.0, 0.0, 1e-4, 0.0]
L2 = [0.01, 0.0, 0.02, 0.01]
MULTIPLIERS = [0.5, 0.5, 1.0, 0.0]


def start():
    rng = np.random.default_rng(8)
    values = [rng.normal(size=shape).astype("float32") for shape in SHAPES]
    values[2] = np.full(3, -0.5, "float32")
    return values


def micro_batches():
    """The gradients of one epoch, in multiples of 1/64: sums of two are no rounding.

    Those of b, which has l1, are positive and keep it below 0: where it crossed 0, rounding would decide on which side
    it is, and so what its decay is.
    """
    rng = np.random.default_rng(7)
    batches = []
    for _ in range(PER_EPOCH * ACCUMULATE):
        grads = [np.round(64 * (0.3 + rng.normal(size=shape))) / 64 for shape in SHAPES]
        grads[2] = np.abs(grads[2]) + 1 / 64
        batches.append(grads)
    return batches


def updates():
    """The same as the optimizer gets them: means, with the norm of each variable's clipped to 1."""
    batches = micro_batches()
    means = [
        [np.mean(g, axis=0) for g in zip(*batches[i : i + ACCUMULATE], strict=True)]
        for i in range(0, len(batches), ACCUMULATE)
    ]
    return [row([g / max(np.linalg.norm(g), 1.0) for g in grads]) for grads in means]


def flat(parts):
    """A number for each variable as one for each weight."""
    return row([np.full(shape, part) for part, shape in zip(parts, SHAPES, strict=True)])


class Follower(oracle.Run):
    """The oracle over all weights in one vector, with averages, and with bounds on what float32 makes of both.

    A bound is two arrays: how far rounding has moved each weight, all of one sign, and as a standard deviation.
    Both shrink as the weight does, by 1 − η·l2 in an update, and an update adds to them, in half ulps (2⁻²⁴):

    - to the deviation |θ|: three roundings to nearest of θ and its decay, each uniform over half an ulp to both sides;
    - to the other 48 of the change, and of what the step would be had all gradients one sign. The cosine, the rate, the
      bias corrections and the step carry 24 roundings; v is a sum over the last 1/(1 − β2) = 1000 gradients, whose
      roundings add up at random to some 20 (the root halves that), and the norm's are 10. Where torch's kernel rounds
      β2 and 1 − β2, which then do not add up to 1, a step is smaller by up to another 110.
    """

    def __init__(self, name):
        arguments, multipliers = OPTIMIZERS[name], flat(MULTIPLIERS)
        algorithm = partial(ALGORITHMS[name], **arguments)
        self.trained = multipliers != 0
        self.roundings = 48 + 110 * (BACKEND == "torch" and name != "SGDW")

        def step(g, own, k, rate):
            rate = rate * multipliers
            self.apart = np.abs(algorithm(np.abs(g), own.setdefault("apart", {}), k, rate))
            return algorithm(g, own, k, rate)

        super().__init__(
            step,
            [row(start())],
            ALPHA,
            [(flat(L1) * self.trained, flat(L2) * self.trained)],
            schedule=partial(oracle.cosine, **CYCLES),
        )
        self.average = self.values[0]
        self.bound = self.average_bound = np.zeros((2, self.average.size))

    def epoch(self, gradients):
        for g in gradients:
            for _ in range(ACCUMULATE - 1):
                self.micro_batch()
            self.micro_batch(g)

    def micro_batch(self, g=None):
        """The average moves with each, the weights with the last of an update."""
        k = self.k
        if g is not None:
            self.update(g)
        momentum = EMA if k else 0.0
        self.average = momentum * self.average + (1 - momentum) * self.values[0]
        bias, noise = momentum * self.average_bound + (1 - momentum) * self.bound
        # Two products and their sum; where the weight rests, each is rounded the same way each time.
        rounding = HALF_ULP * np.abs(self.average)
        bias = bias + 2 * rounding * ~self.trained
        self.average_bound = np.array([bias, np.hypot(noise, rounding * self.trained)])
        if (k + 1) % OVERWRITE == 0:
            self.values[0], self.bound = self.average, self.average_bound

    def update(self, g):
        (l1, l2), before, far = self.decays[0], self.values[0], self.path[0]
        near = (l1 > 0) & (np.abs(before) <= allowed(self.bound))
        assert not near.any(), "rounding decides the sign of a weight with l1: see micro_batches"
        bias, noise = (1 - self.eta * l2) * self.bound
        self.step([g])
        bias = bias + self.roundings * HALF_ULP * (self.path[0] - far + self.apart)
        noise = np.hypot(noise, HALF_ULP * np.abs(before) * self.trained)
        self.bound = np.array([bias, noise])


def allowed(bound):
    """Six standard deviations: one number in 5·10⁸ is beyond them."""
    bias, noise = bound
    return bias + 6 * noise


class Beside(keras.callbacks.Callback):
    """At the end of each epoch: the oracle goes as far, weights and averages are compared, memory is noted."""

    def __init__(self, follower, traces):
        super().__init__()
        self.follower, self.gradients = follower, updates()
        self.counted, self.traces = traces, []  # now, and at the end of each epoch
        self.memory = []  # Python's blocks and all bytes, at the end of each epoch

    def on_epoch_end(self, epoch, logs=None):
        follower, model = self.follower, self.model
        follower.epoch(self.gradients)
        self.compare("theta", model.weights, follower.values[0], follower.bound)
        slots = {v.path.split("/")[-1]: v for v in model.optimizer.variables}
        averages = [slots[f"{v.path.replace('/', '_')}_average"] for v in model.weights]
        self.compare("average", averages, follower.average, follower.average_bound)
        assert int(numpy(model.optimizer.iterations)) == follower.k
        assert int(numpy(model.optimizer.t_cur)) == follower.at.position
        self.traces.append(len(self.counted))
        gc.collect()
        if epoch + 1 >= SETTLED:
            self.memory.append((sys.getallocatedblocks(), resident()))

    def compare(self, what, variables, expected, bound):
        error, most = np.abs(row([numpy(v) for v in variables]) - expected), allowed(bound)
        assert np.all(error <= most), f"{what}, {self.follower.k} updates: {error} beyond {most}"


def resident():
    """The process's memory in bytes, where the system says it."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0


@pytest.mark.reliability
@pytest.mark.parametrize("name", in_turn(list(OPTIMIZERS)))
def test_soak(name, record_property):
    traces, model = [], model_of(LAYERS, start())

    def counting(y_true, y_pred):
        traces.append(None)
        return y_pred

    beside = Beside(Follower(name), traces)
    # torch traces nothing, and calls the loss with every batch.
    optimizer = getattr(keras_decoupled, name)(RATE, **ARGUMENTS, **OPTIMIZERS[name])
    model.compile(optimizer, loss=output if BACKEND == "torch" else counting)
    x = np.stack([row(grads) for grads in micro_batches()]).astype("float32")
    y = np.zeros((len(x), 1), "float32")
    model.fit(x, y, batch_size=1, shuffle=False, epochs=EPOCHS, verbose=0, callbacks=[beside])
    # In the end `fit` writes the averages back.
    follower = beside.follower
    beside.compare("average", model.weights, follower.average, follower.average_bound)
    assert follower.k == EPOCHS * PER_EPOCH
    assert len(set(beside.traces)) == 1, f"traced again: {beside.traces} times by each epoch's end"
    blocks, resident_bytes = np.subtract(beside.memory[-1], beside.memory[0])
    record_property("updates", follower.k)
    assert blocks <= MOST_BLOCKS, f"{blocks} more of Python's objects"
    assert resident_bytes <= MOST_BYTES, f"{resident_bytes} bytes more"
