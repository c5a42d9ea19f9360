"""Jobs on two devices: python two_cpus.py on_tensorflow.py FOLDER."""

import sys
from pathlib import Path

import job
import keras
import tensorflow as tf


class Loop:
    """A training loop of one's own: `fit` without Keras' `train_step`."""

    def __init__(self, strategy):
        self.strategy = strategy

    def __call__(self, model, first, last):
        with self.strategy.scope():
            model.optimizer.build(model.trainable_variables)
        batches = tf.data.Dataset.from_tensor_slices(job.data(first, last)).batch(job.BATCH)

        def step(x, y):
            with tf.GradientTape() as tape:
                error = tf.cast(model(x, training=True), y.dtype) - y
                loss = tf.reduce_sum(error**2) / job.BATCH
            grads = tape.gradient(loss, model.trainable_variables)
            model.optimizer.apply(grads, model.trainable_variables)  # sums over the replicas

        def run(x, y):
            self.strategy.run(step, args=(x, y))

        run = run if model.run_eagerly else tf.function(run)
        for x, y in self.strategy.experimental_distribute_dataset(batches):
            run(x, y)
        model.optimizer.finalize_variable_values(model.trainable_variables)  # as `fit` does


def run(folder, name, source):
    strategy = tf.distribute.MirroredStrategy()
    assert strategy.num_replicas_in_sync == 2

    def make(case):
        with strategy.scope():
            return job.make(case)

    def load(file):
        with strategy.scope():
            return keras.models.load_model(file)

    train = Loop(strategy) if name == "loop" else job.fit
    job.Way(folder, name, train=train, make=make, load=load).run(source)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run(folder, "fit", source=job.ALONE)
    run(folder, "loop", source="fit")
