"""The models of models_2017.txt, ported by the table of docs/porting.en.md alone; added to the end of cvd_models.py."""

import functools

import keras
import tensorflow as tf

from cats_vs_dogs import models


class BranchesModel(models.BaseModel):
    """Convolutions of several sizes side by side."""

    def create_model(self, model_input, vocab_size, branch_filters=16, l2_penalty=1e-4, **unused_params):
        filters, l2 = branch_filters, keras.regularizers.L2(l2_penalty / 2)
        conv = functools.partial(keras.layers.Conv2D, padding="same", use_bias=False, kernel_regularizer=l2)

        def conv2d(net, filters, size):
            net = conv(filters, size)(net)
            net = keras.layers.BatchNormalization(momentum=0.9, scale=False)(net)
            return keras.layers.ReLU()(net)

        net = conv2d(model_input, filters, 3)
        net = keras.layers.MaxPooling2D(2)(net)
        for _ in range(2):
            a = conv2d(net, filters, 1)
            b = net
            for _ in range(2):
                b = conv2d(b, filters, 3)
            c = conv2d(keras.ops.mean(net, axis=(1, 2), keepdims=True), filters, 1)
            net = keras.ops.concatenate([a, b + c], axis=3)
            net = keras.layers.AveragePooling2D(2)(net)
        shape = net.shape
        net = keras.ops.reshape(net, (-1, shape[1] * shape[2] * shape[3]))
        net = keras.layers.Dropout(0.2)(net)
        output = keras.layers.Dense(vocab_size - 1, activation="sigmoid", kernel_regularizer=l2)(net)
        return {"predictions": output}


class Scale(keras.layers.Layer):
    """Multiplies by a learned number."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, net):
        return self.scale * net


class DistortedModel(models.BaseModel):
    """Crops, flips and contrast in training, then a network in the manner of cifar10."""

    def create_model(self, model_input, vocab_size, **unused_params):
        net = keras.layers.CenterCrop(28, 28)(keras.layers.RandomCrop(28, 28)(model_input))
        net = keras.layers.RandomFlip("horizontal")(net)
        net = keras.layers.RandomBrightness(0.1, value_range=(-1, 1))(net)
        net = keras.layers.RandomContrast(0.2, value_range=(-1, 1))(net)
        net = keras.layers.Lambda(tf.image.per_image_standardization)(net)
        net = keras.ops.concatenate([net, keras.ops.image.rgb_to_grayscale(net)], axis=3)
        for filters in (24, 48):
            net = keras.layers.Conv2D(filters, 5, padding="same", activation="relu")(net)
            net = keras.layers.MaxPooling2D(3, 2, padding="same")(net)
            net = keras.layers.Lambda(lambda net: tf.nn.lrn(net, 4, bias=1.0, alpha=0.001 / 9.0, beta=0.75))(net)
        net = keras.layers.Dense(64, activation="relu")(keras.layers.Flatten()(net))
        net = Scale()(net)
        output = keras.layers.Dense(vocab_size - 1, activation="sigmoid")(net)
        return {"predictions": output}
