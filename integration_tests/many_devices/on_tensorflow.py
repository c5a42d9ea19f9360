"""The legs on two devices: python two_cpus.py on_tensorflow.py FOLDER."""

import sys
from pathlib import Path

import tensorflow as tf

from many_devices import job


class Fit(job.Way):
    """Training with `fit`, in the scope of a strategy."""

    def __init__(self, folder, strategy):
        super().__init__(folder)
        self.strategy = strategy

    def make(self, case):
        with self.strategy.scope():
            return super().make(case)

    def load(self, file):
        with self.strategy.scope():
            return super().load(file)


class Loop(Fit):
    """A training loop of one's own: `fit` without Keras' `train_step`."""

    def train(self, model, first, last):
        with self.strategy.scope():
            model.optimizer.build(model.trainable_variables)

        def step(x, y):
            with tf.GradientTape() as tape:
                error = tf.cast(model(x, training=True), y.dtype) - y
                loss = tf.reduce_sum(error**2) / job.BATCH
            grads = tape.gradient(loss, model.trainable_variables)
            model.optimizer.apply(grads, model.trainable_variables)  # sums over the replicas

        def run(x, y):
            self.strategy.run(step, args=(x, y))

        run = run if model.run_eagerly else tf.function(run)
        for x, y in self.strategy.experimental_distribute_dataset(batches(first, last)):
            run(x, y)
        model.optimizer.finalize_variable_values(model.trainable_variables)  # as `fit` does


def batches(first, last):
    options = tf.data.Options()  # of several processes, each takes its part of each batch
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    dataset = tf.data.Dataset.from_tensor_slices(job.data(first, last))
    return dataset.batch(job.BATCH).with_options(options)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    strategy = tf.distribute.MirroredStrategy()
    assert strategy.num_replicas_in_sync == 2
    job.train_legs({"fit": Fit(folder, strategy), "loop": Loop(folder, strategy)})
