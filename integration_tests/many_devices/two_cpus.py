"""Run a script with the CPU as two devices of TensorFlow: python two_cpus.py SCRIPT ARGUMENTS."""

import runpy
import sys

import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
