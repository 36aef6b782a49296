"""The loss of models_2017.txt, ported by the table of docs/porting.en.md alone; added to the end of losses.py."""

import tensorflow as tf

from cats_vs_dogs.losses import BaseLoss


class FocalLoss(BaseLoss):
    """Cross entropy that counts sure predictions less."""

    def calculate_loss(self, predictions, labels, gamma=1.0, **unused_params):
        float_labels = tf.cast(labels, tf.float32)
        right = float_labels * predictions + (1.0 - float_labels) * (1 - predictions)
        losses = -tf.pow(1 - right, gamma) * tf.math.log(right + 1e-5)
        return tf.reduce_mean(tf.reduce_sum(losses, axis=1, keepdims=True))
