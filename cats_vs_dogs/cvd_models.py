"""The models of the kit. Add your own here, and name it on the command line: --model=YourModel."""

from typing import Any

import keras
from keras import ops

from cats_vs_dogs import models


def _l2(penalty: float) -> keras.regularizers.Regularizer:
    """The L2 regularizer of 2017, penalty * sum(weights ** 2) / 2; Keras does not halve."""
    return keras.regularizers.L2(penalty / 2)


class LogisticModel(models.BaseModel):
    """Logistic regression on the pixels, with L2 regularization."""

    def create_model(
        self,
        model_input: keras.KerasTensor,
        num_classes: int = 2,
        output_layer: str = "probability",
        l2_penalty: float = 1e-8,
    ) -> dict[str, Any]:
        """Creates a logistic model.

        Args:
            model_input: float32 [batch, height, width, 3] in [-1, 1].
            num_classes: 2.
            output_layer: "probability" (sigmoid, [batch, 1]), "score" (linear, [batch, 1]) or "logits" (linear,
                [batch, num_classes]).
            l2_penalty: weight of the L2 regularization of the kernel.

        Returns:
            "predictions", of the kind asked for.
        """
        net = keras.layers.Flatten()(model_input)
        units = num_classes if output_layer == "logits" else num_classes - 1
        activation = "sigmoid" if output_layer == "probability" else None
        output = keras.layers.Dense(units, activation=activation, kernel_regularizer=_l2(l2_penalty), dtype="float32")(
            net
        )
        return {"predictions": output}


class MoeModel(models.BaseModel):
    """A softmax over a mixture of logistic experts, with L2 regularization.

    One more gate than there are experts: the last belongs to a dummy expert which always says 0.
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
            output_layer: "probability" ([batch, 1]), "score" (the probability p of a dog as 2p - 1, [batch, 1]) or
                "logits" (log(1 - p) and log(p), [batch, num_classes]).
            num_mixtures: number of experts without the dummy, at least 1.
            l2_penalty: weight of the L2 regularization of the kernels.

        Returns:
            "predictions", of the kind asked for.
        """
        net = keras.layers.Flatten()(model_input)
        outputs = num_classes - 1
        gates = keras.layers.Dense(
            outputs * (num_mixtures + 1), use_bias=False, kernel_regularizer=_l2(l2_penalty), name="gates"
        )(net)
        experts = keras.layers.Dense(outputs * num_mixtures, kernel_regularizer=_l2(l2_penalty), name="experts")(net)
        gates, experts = ops.cast(gates, "float32"), ops.cast(experts, "float32")  # With mixed precision they are not.
        gate_weights = ops.softmax(ops.reshape(gates, (-1, outputs, num_mixtures + 1)))
        expert_opinions = ops.sigmoid(ops.reshape(experts, (-1, outputs, num_mixtures)))
        probability = ops.sum(gate_weights[:, :, :num_mixtures] * expert_opinions, axis=-1)
        if output_layer == "score":
            return {"predictions": 2.0 * probability - 1.0}
        if output_layer == "logits":
            both = ops.concatenate([1.0 - probability, probability], axis=-1)
            return {"predictions": ops.log(ops.maximum(both, keras.config.epsilon()))}
        return {"predictions": probability}
