"""Contenders on torch: Keras optimizers by `apply`, torch.optim and torch-optimi, all eager."""

import os
from contextlib import contextmanager
from functools import partial

import keras
import numpy as np
import optimi
import torch
from torch.profiler import ProfilerActivity, profile

import workloads
from contenders import (
    DECAY,
    KERAS,
    MOMENTUM,
    RATE,
    Contender,
    Copy,
    DeviceCopy,
    keras_optimizers,
    keras_variables,
)

DEVICE = keras.ops.convert_to_tensor(0.0).device
MODES = ("",)


def device():
    """Name the accelerator, None for the CPU."""
    return torch.cuda.get_device_name() if DEVICE.type == "cuda" else None


def settings():
    """What of the backend bears on the figures."""
    return {"torch threads": torch.get_num_threads()}


def tensors(arrays):
    """These arrays where the variables are."""
    dtype = getattr(torch, workloads.DTYPE)
    return [torch.tensor(array, dtype=dtype, device=DEVICE) for array in arrays]


def finish():
    """Wait for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


@contextmanager
def silent():
    """Without what the profiler's C++ writes to stderr."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class OnTorch(Contender):
    """What every contender here does alike."""

    def extra_bytes(self):
        """The peak of what is allocated during a step, over what was there before."""
        if DEVICE.type == "cuda":
            finish()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.step()
            return torch.cuda.max_memory_allocated() - before
        cpu = [ProfilerActivity.CPU]
        with silent(), profile(activities=cpu, profile_memory=True) as record:
            self.step()
        events = record.profiler.kineto_results.events()
        now = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                now += event.nbytes()
                peak = max(peak, now)
        return peak


class Keras(OnTorch):
    """`optimizer.apply`, whole, without gradients: as Keras' own training loop calls it."""

    def __init__(self, make, values, grads):
        self.make, self.grads, self.variables = make, grads, keras_variables(values)

    def build(self):
        self.optimizer = self.make()
        self.optimizer.build(self.variables)

    def step(self):
        with torch.no_grad():
            self.optimizer.apply(self.grads, self.variables)
        finish()

    def last(self):
        return np.array(keras.ops.convert_to_numpy(self.variables[-1]), "float32")


class Native(OnTorch):
    """`optimizer.step` of a `torch.optim.Optimizer`."""

    def __init__(self, make, values, grads):
        self.make = make
        self.parameters = [torch.nn.Parameter(value) for value in tensors(values)]
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = grad

    def build(self):
        self.optimizer = self.make(self.parameters)

    def step(self):
        self.optimizer.step()
        finish()

    def last(self):
        return np.array(self.parameters[-1].detach().float().cpu())


def peers(kind):
    """Functions that make the optimizers of torch, by name."""
    rate, optim = RATE[kind], torch.optim
    decay = {"lr": rate, "weight_decay": DECAY}
    if kind == "AdamW":
        decoupled = {"lr": rate, "weight_decay": rate * DECAY, "decouple_lr": True}
        return {
            "torch AdamW, fused": partial(optim.AdamW, fused=True, **decay),
            "torch AdamW, foreach": partial(optim.AdamW, foreach=True, **decay),
            "optimi AdamW, decouple_lr": partial(optimi.AdamW, betas=(0.9, 0.999), **decoupled),
        }
    if kind == "NadamW":
        decay |= {"decoupled_weight_decay": True}
        return {"torch NAdam, foreach": partial(optim.NAdam, foreach=True, **decay)}
    decay["weight_decay"] *= (
        1 - MOMENTUM
    )  # it goes through the buffer, and comes out so much larger
    return {"torch SGD, fused": partial(optim.SGD, fused=True, momentum=MOMENTUM, **decay)}


def of_keras(makers, mode, values, grads):
    """Functions that make the contenders of these makers of Keras optimizers, by name."""
    return {name: partial(Keras, make, values, grads) for name, make in makers.items()}


def contenders(kind, mode, values, grads):
    """Functions that make the contenders, by name: ours, stock Keras, torch's."""
    makers = keras_optimizers(kind, len(values))
    if workloads.DTYPE == "bfloat16":  # Keras 3.15's Nadam hands torch a number it doesn't take
        makers.pop(KERAS + ".Nadam", None)
    made = of_keras(makers, mode, values, grads)
    return made | {name: partial(Native, make, values, grads) for name, make in peers(kind).items()}


def copy(moved):
    """What moves this many bytes where the variables are."""
    if DEVICE.type != "cuda":
        return Copy(moved)

    def make(size):
        return torch.ones(size, dtype=torch.uint8, device=DEVICE)

    return DeviceCopy(moved, make, lambda source: (source.clone(), finish()))
