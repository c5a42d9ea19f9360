"""The legs on two devices: python two_cpus.py on_tensorflow.py FOLDER."""

import sys
from pathlib import Path

import keras
import tensorflow as tf

from many_devices import job


class Loop:
    """A training loop of one's own: `fit` without Keras' `train_step`."""

    def __init__(self, strategy):
        self.strategy = strategy

    def __call__(self, model, first, last):
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


def in_scope(strategy):
    """Functions that make and load a model in the scope of a strategy."""

    def within(make):
        def made(argument):
            with strategy.scope():
                return make(argument)

        return made

    return {"make": within(job.make), "load": within(keras.models.load_model)}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    strategy = tf.distribute.MirroredStrategy()
    assert strategy.num_replicas_in_sync == 2
    ways = {
        "fit": job.Way(folder, **in_scope(strategy)),
        "loop": job.Way(folder, train=Loop(strategy), **in_scope(strategy)),
    }
    job.train_many(ways, job.CHAINS)
