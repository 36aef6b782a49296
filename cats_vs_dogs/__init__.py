"""Cats vs Dogs: a TensorFlow starter kit, from TFRecord shards to a submission CSV."""

import os

# Read when TensorFlow and Keras are imported, so they are set before either is.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"
