"""All callbacks under one and two replicas of TensorFlow: python two_cpus.py callbacks_tensorflow.py."""

import keras
import numpy as np
import tensorflow as tf

from keras_decoupled import AdamW, CosineWarmRestarts
from keras_decoupled.callbacks import LogRates, RestartOnPlateau, SnapshotEnsemble, WatchUpdates

X = np.linspace(-1, 1, 32, dtype="float32").reshape(16, 2)
logs = []
for count in (1, 2):
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])
    assert strategy.num_replicas_in_sync == count
    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        optimizer = AdamW(CosineWarmRestarts(0.1, 4), weight_decay=1e-3)
        model.compile(optimizer, loss="mse")
    snapshots = SnapshotEnsemble(f"{count}-{{cycle}}.weights.h5")
    plateau = RestartOnPlateau(monitor="loss", patience=1, min_delta=1e9)
    watch = WatchUpdates(2, log=True)
    callbacks = [LogRates(), watch, snapshots, plateau]
    fit = {"batch_size": 4, "epochs": 3, "shuffle": False, "verbose": 0}
    logs.append(model.fit(X, X[:, :1], callbacks=callbacks, **fit).history)
    assert {row["update"] for row in watch.rows} == {0, 2, 4, 6, 8, 10}
    assert snapshots.predict(model, X).shape == (16, 1)
    optimizer.weight_decay = 2e-3
    assert abs(float(optimizer.weight_decay.numpy()) - 2e-3) < 1e-9
for name, one in logs[0].items():
    np.testing.assert_allclose(logs[1][name], one, rtol=1e-5, err_msg=name)
