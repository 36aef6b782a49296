"""The kit's models. Add your own here and train it with --model=YourModel."""

from typing import Any

import keras
from keras import ops

from cats_vs_dogs import backbones, batch_norm, models


def _l2(penalty: float) -> keras.regularizers.Regularizer:
    """Returns the L2 regularizer of 2017: penalty * sum(weights ** 2) / 2. The one of Keras is not halved."""
    return keras.regularizers.L2(penalty / 2)


def _output(
    net: keras.KerasTensor,
    num_classes: int,
    output_layer: str,
    kernel_regularizer: keras.regularizers.Regularizer | None = None,
) -> keras.KerasTensor:
    """Applies a last layer that outputs what the loss needs, in float32 also with mixed precision.

    Args:
        net: features, [batch, num_features].
        num_classes: 2.
        output_layer: "probability" (sigmoid, [batch, 1]), "score" (linear, [batch, 1]) or "logits" (linear,
            [batch, num_classes]).
        kernel_regularizer: the layer's kernel regularizer.

    Returns:
        The predictions, float32 [batch, 1] or [batch, num_classes].
    """
    units = num_classes if output_layer == "logits" else num_classes - 1
    activation = "sigmoid" if output_layer == "probability" else None
    return keras.layers.Dense(units, activation, kernel_regularizer=kernel_regularizer, dtype="float32")(net)


class LogisticModel(models.BaseModel):
    """Logistic regression on the pixels, with L2 regularization."""

    def create_model(
        self,
        model_input: keras.KerasTensor,
        num_classes: int = 2,
        output_layer: str = "probability",
        l2_penalty: float = 1e-8,
    ) -> dict[str, Any]:
        """Creates a logistic regression.

        Args:
            model_input: float32 [batch, height, width, 3] in [-1, 1].
            num_classes: 2.
            output_layer: "probability" (sigmoid, [batch, 1]), "score" (linear, [batch, 1]) or "logits" (linear,
                [batch, num_classes]).
            l2_penalty: weight of the kernel's L2 regularization.

        Returns:
            A dict with "predictions", of the kind that `output_layer` names.
        """
        net = keras.layers.Flatten()(model_input)
        return {"predictions": _output(net, num_classes, output_layer, _l2(l2_penalty))}


class MoeModel(models.BaseModel):
    """A mixture of logistic experts, with L2 regularization.

    The prediction is the mean of the experts' probabilities, weighted by a softmax over the gates. One more gate
    belongs to a dummy expert that always predicts 0.
    """

    def create_model(
        self,
        model_input: keras.KerasTensor,
        num_classes: int = 2,
        output_layer: str = "probability",
        num_mixtures: int = 2,
        l2_penalty: float = 1e-8,
    ) -> dict[str, Any]:
        """Creates a mixture-of-experts model.

        Args:
            model_input: float32 [batch, height, width, 3] in [-1, 1].
            num_classes: 2.
            output_layer: with p the probability of a dog: "probability" (p, [batch, 1]), "score" (2p - 1, [batch, 1])
                or "logits" (log(1 - p) and log(p), [batch, num_classes]).
            num_mixtures: number of experts, at least 1; the dummy expert is not counted.
            l2_penalty: weight of the L2 regularization of both kernels.

        Returns:
            A dict with "predictions", of the kind that `output_layer` names.
        """
        net = keras.layers.Flatten()(model_input)
        outputs = num_classes - 1
        gates = keras.layers.Dense(
            outputs * (num_mixtures + 1), use_bias=False, kernel_regularizer=_l2(l2_penalty), name="gates"
        )(net)
        experts = keras.layers.Dense(outputs * num_mixtures, kernel_regularizer=_l2(l2_penalty), name="experts")(net)
        gates, experts = ops.cast(gates, "float32"), ops.cast(experts, "float32")  # For mixed precision.
        gate_weights = ops.softmax(ops.reshape(gates, (-1, outputs, num_mixtures + 1)))
        expert_opinions = ops.sigmoid(ops.reshape(experts, (-1, outputs, num_mixtures)))
        probability = ops.sum(gate_weights[:, :, :num_mixtures] * expert_opinions, axis=-1)
        if output_layer == "score":
            return {"predictions": 2.0 * probability - 1.0}
        if output_layer == "logits":
            both = ops.concatenate([1.0 - probability, probability], axis=-1)
            return {"predictions": ops.log(ops.maximum(both, keras.config.epsilon()))}
        return {"predictions": probability}


class ConvNetModel(models.BaseModel):
    """A small residual network (He et al. 2016) for images of 32x32 pixels or more."""

    def create_model(
        self,
        model_input: keras.KerasTensor,
        num_classes: int = 2,
        output_layer: str = "probability",
        filters: int = 32,
        num_blocks: int = 1,
        dropout: float = 0.2,
    ) -> dict[str, Any]:
        """Creates a residual network.

        Args:
            model_input: float32 [batch, height, width, 3] in [-1, 1].
            num_classes: 2.
            output_layer: "probability" (sigmoid, [batch, 1]), "score" (linear, [batch, 1]) or "logits" (linear,
                [batch, num_classes]).
            filters: number of channels in the first of the four stages; each later stage has twice as many.
            num_blocks: number of residual blocks in each stage.
            dropout: fraction of the features that are dropped in training, at least 0 and below 1.

        Returns:
            A dict with "predictions", of the kind that `output_layer` names.
        """

        def convolution(net, channels, size, strides=1):
            net = keras.layers.Conv2D(
                channels, size, strides, padding="same", use_bias=False, kernel_initializer="he_normal"
            )(net)
            return batch_norm.FastBatchNormalization(momentum=0.9)(net)

        net = keras.layers.ReLU()(convolution(model_input, filters, 3, strides=2))
        net = keras.layers.MaxPooling2D(2, padding="same")(net)  # Now a quarter of the size, to save time.
        for stage in range(4):
            channels = filters * 2**stage
            for block in range(num_blocks):
                shrinks = stage > 0 and block == 0
                shortcut = net
                if shrinks:
                    shortcut = keras.layers.AveragePooling2D(2, padding="same")(net)
                    shortcut = convolution(shortcut, channels, 1)
                net = keras.layers.ReLU()(convolution(net, channels, 3, strides=2 if shrinks else 1))
                net = keras.layers.ReLU()(keras.layers.Add()([convolution(net, channels, 3), shortcut]))
        net = keras.layers.Dropout(dropout)(keras.layers.GlobalAveragePooling2D()(net))
        return {"predictions": _output(net, num_classes, output_layer)}


class PretrainedModel(models.BaseModel):
    """A backbone of keras.applications with ImageNet weights, frozen or fine-tuned, and a new last layer."""

    def create_model(
        self,
        model_input: keras.KerasTensor,
        num_classes: int = 2,
        output_layer: str = "probability",
        is_new: bool = True,
        backbone: str = "EfficientNetV2B0",
        weights: str | None = "imagenet",
        trainable_from: str | None = None,
        dropout: float = 0.2,
    ) -> dict[str, Any]:
        """Creates a pretrained model.

        Args:
            model_input: float32 [batch, height, width, 3] in [-1, 1].
            num_classes: 2.
            output_layer: "probability" (sigmoid, [batch, 1]), "score" (linear, [batch, 1]) or "logits" (linear,
                [batch, num_classes]).
            is_new: whether to load `weights`; False if a checkpoint will be restored instead.
            backbone: a function of keras.applications. The model includes its preprocessing of pixels.
            weights: "imagenet", the path of a weights file (see `backbones.load_weights`), or None for random weights.
            trainable_from: name of the backbone's first trainable layer; "all" trains every layer, None trains only
                the new last layer. Batch norm is never trained, see `backbones.freeze`.
            dropout: fraction of the features that are dropped in training, at least 0 and below 1.

        Returns:
            A dict with "predictions", of the kind that `output_layer` names, and "features", where the frozen part
            ends.
        """
        network = backbones.build(backbone, model_input.shape[1])
        backbones.freeze(network, trainable_from)
        frozen, rest = backbones.split(network, trainable_from)
        net = backbones.preprocess(backbone, model_input)
        if frozen:
            net = features = frozen(net)
        if rest:
            net = rest(net)
        net = keras.layers.GlobalAveragePooling2D(dtype="float32")(net)
        if not rest:
            features = net  # Pooled, they are a fraction of the numbers.
        net = keras.layers.Dropout(dropout, dtype="float32")(net)
        predictions = _output(net, num_classes, output_layer)
        if is_new and weights is not None:  # Last, so that the layers above get the same random values.
            backbones.load_weights(backbone, network, weights)
        return {"predictions": predictions, "features": features if frozen else None}
