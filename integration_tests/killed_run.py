"""A training run that may be killed at any moment and started again: test_kill.py does both.

`python killed_run.py WAY CASE FOLDER` goes on from what lies in FOLDER, says on stdout how far it
is, a word a line, and leaves the trained model's variables in FOLDER/done.npz.

The ways: "epochs", `fit` with BackupAndRestore; "updates", a loop with checkpoints of its own;
"batches", `fit` with a BackupAndRestore that saves inside epochs.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import keras
import numpy as np

from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, Lion, NadamW

CASES = {
    "AdamW": (AdamW, {}),
    "AdamW-averaged": (
        AdamW,
        {"amsgrad": True, "use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 7},
    ),
    "NadamW": (NadamW, {}),
    "SGDW": (SGDW, {"momentum": 0.9, "nesterov": True}),
    "Lion": (Lion, {}),
}
ACCUMULATION = 2
BATCHES = 5  # per epoch. Odd: every other epoch ends with a gradient that waits for its second half
EPOCHS = 12
UPDATES = BATCHES * EPOCHS // ACCUMULATION
UPDATES_PER_CHECKPOINT = 2


def make_model(case):
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.BatchNormalization(),  # its averages are state too
            # No Dropout: Keras 3.15 does not save how many random numbers were drawn.
            keras.layers.Dense(1, name="head"),
        ]
    )
    cls, arguments = CASES[case]
    optimizer = cls(
        # Cycles from update 2, 6, 14 and 30 on, the last of them never reached.
        CosineWarmRestarts(0.05, 4, t_mul=2, m_mul=0.9, warmup_steps=2),
        weight_decay=1e-3,
        weight_decays={"bias": 0, "head/kernel": (1e-4, 2e-3)},
        lr_multipliers={"head": 0.5},
        normalize_weight_decay=True,
        gradient_accumulation_steps=ACCUMULATION,
        **arguments,
    )
    model.compile(optimizer, loss="mse")
    return model


def data(first, batches=1):
    """Batches by number: a run that goes on at any of them sees what the others see."""
    seeds = range(first, first + batches)
    x = np.concatenate([np.random.default_rng(i).random((8, 4), "float32") for i in seeds])
    return x, x @ np.array([[1.0], [-2.0], [0.5], [3.0]], "float32")


def train_by_epochs(case, folder, save_freq="epoch"):
    backup = folder / "backup"
    mend(case, backup)
    model = make_model(case)
    before = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: say("step"),
        on_epoch_end=lambda epoch, logs: say("saving"),
    )
    restore = keras.callbacks.BackupAndRestore(
        str(backup),
        save_freq=save_freq,
        double_checkpoint=True,
        # Killed while it deletes the folder, a run would find weights and no epoch.
        delete_checkpoint=False,
    )
    after = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: restored(model, folder),
        on_epoch_end=lambda epoch, logs: say("saved"),
    )
    model.fit(
        *data(0, BATCHES),
        batch_size=8,
        epochs=EPOCHS,
        shuffle=False,  # the order of the data has to be a function of the epoch
        verbose=0,
        callbacks=[before, restore, after],
    )
    return model


def mend(case, backup):
    """Close the gaps of BackupAndRestore, so that a kill is survived at each moment.

    It writes the weights and then the epoch: two files, neither of them atomically. The optimizer's
    state, which is in the first, counts the batches too.
    """
    latest, previous = backup / "latest.weights.h5", backup / "latest.weights.h5.bkp"
    if not latest.exists():
        return
    model = make_model(case)
    model.optimizer.build(model.trainable_variables)
    try:
        model.load_weights(latest)
    except (OSError, RuntimeError, KeyError):  # what h5py says of it depends on where it ends
        say("half-written")
        if not previous.exists():  # killed in its first save: a new start
            shutil.rmtree(backup)
            return
        # `double_checkpoint` does so after an OSError alone. Here it needs a new file: HDF5 may still
        # hold the one whose load has failed open, and would read what it knows of it.
        os.replace(shutil.copy(previous, backup / "copy"), latest)
        model.load_weights(latest)
    batches = int(model.optimizer.variables[0])  # what `iterations` is a half of, rounded down
    metadata = backup / "training_metadata.json"
    try:
        epoch = json.loads(metadata.read_text(encoding="utf-8"))["epoch"]
    except (FileNotFoundError, json.JSONDecodeError):
        epoch = None
    if epoch != batches // BATCHES:
        say("wrong-epoch")
        wanted = {"epoch": batches // BATCHES, "batch": 0}
        metadata.write_text(json.dumps(wanted), encoding="utf-8")


def train_by_updates(case, folder):
    """A loop that goes on at `optimizer.iterations`."""
    checkpoint, written = folder / "model.keras", folder / "next.keras"
    if written.exists():
        say("half-written")
        written.unlink()
    model = keras.models.load_model(checkpoint) if checkpoint.exists() else make_model(case)
    restored(model, folder)
    for update in range(int(model.optimizer.iterations), UPDATES):
        for batch in range(ACCUMULATION * update, ACCUMULATION * (update + 1)):
            model.train_on_batch(*data(batch))
            say("step")
        if (update + 1) % UPDATES_PER_CHECKPOINT == 0:
            say("saving")
            model.save(written)
            os.replace(written, checkpoint)  # atomic: there is a whole checkpoint at any moment
            say("saved")
    return model


def restored(model, folder):
    write_state(model, folder / "restored.npz")
    say("restored")


def write_state(model, file):
    values = {"model": model.variables, "optimizer": model.optimizer.variables}
    # By position: what is loaded from a file has other paths.
    arrays = {
        f"{owner}/{i}": keras.ops.convert_to_numpy(variable)
        for owner, variables in values.items()
        for i, variable in enumerate(variables)
    }
    temporary = file.with_name("next.npz")
    np.savez(temporary, **arrays)
    os.replace(temporary, file)


def say(word):
    print(word, flush=True)


def main(way, case, folder):
    signal.alarm(1200)  # a run that hangs ends, and not by the signal that the test sends
    folder = Path(folder)
    if way == "updates":
        model = train_by_updates(case, folder)
    else:
        model = train_by_epochs(case, folder, {"epochs": "epoch", "batches": 2}[way])
    write_state(model, folder / "done.npz")
    say("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
