"""The base class of models, and `build_model`, which turns one into Keras models for training and prediction."""

import inspect
from collections.abc import Iterator
from typing import Any

import keras

from cats_vs_dogs import porting, untracked
from cats_vs_dogs.utils import UserError, accepted_arguments, place_of

_LOSSES = ("loss", "regularization_loss")


class BaseModel:
    """The base class of models. To add a model, inherit from it in cvd_models.py and pass --model=YourModel."""

    def create_model(self, model_input: keras.KerasTensor, num_classes: int = 2, **params: Any) -> dict[str, Any]:
        """Defines the network. Training, evaluation and export build it again with the same seed.

        Use `keras.layers` and `keras.ops`. Dropout, batch norm and augmentation layers switch between training and
        inference by themselves. Regularizers of layers are added to the loss.

        Constants may be drawn with np.random, random, keras.random or tf.random, which are seeded. Variables must
        belong to layers that are called here, on Keras tensors; those of a layer inside Lambda are refused.

        Args:
            model_input: symbolic float32 [batch, height, width, 3], pixels in [-1, 1].
            num_classes: 2; class 0 is cat, class 1 is dog.
            **params: optional arguments; your method receives those that its signature names.
                `vocab_size`: the name of `num_classes` in 2017.
                `labels`: symbolic int32 [batch, 1], 1 = dog.
                `output_layer`: the kind of predictions that the loss needs, see `losses.BaseLoss.output_layer`.
                `is_new`: True if training starts from this model, so pretrained weights should be loaded; False if
                    a checkpoint will be restored.
                Any other name: its value from --model_params.

        Returns:
            A dict. "predictions" is a tensor of shape [batch, 1], the probability of a dog unless the loss needs
            another kind, or of shape [batch, num_classes]. Three keys are optional: "loss", a scalar that replaces the
            label loss; "regularization_loss", a scalar that is added to the loss, multiplied by
            --regularization_penalty; and "features", a tensor [batch, ...] where the frozen part of the model ends.
            All layers before it must be frozen, and all other outputs computed from it. Training then calculates the
            features once per picture, not in every epoch; see `frozen_features`.
        """
        raise NotImplementedError


def all_layers(model: keras.Model) -> Iterator[keras.Layer]:
    """Yields the layers of a model, also those of models and wrappers inside it."""
    for layer in model.layers:
        yield layer
        yield from all_layers(layer) if hasattr(layer, "layers") else ()
        yield from (layer.layer,) if isinstance(layer, keras.layers.Wrapper) else ()


class BuiltModel:
    """A built model of cvd_models.py. Training and prediction share its weights.

    Attributes:
        name: the model's class name.
        network: computes predictions from images, float32 [batch, size, size, 3] in [-1, 1].
        frozen: computes the features from such images, float32 [batch, ...]; None if the model names no features.
    """

    def __init__(
        self,
        name: str,
        network: keras.Model,
        with_losses: keras.Model | None,
        frozen: keras.Model | None = None,
        head: keras.Model | None = None,
    ):
        self.name = name
        self.network = network
        self.frozen = frozen
        self._with_losses = with_losses
        self._head = head
        self._all_layers = with_losses or network  # A loss of the model's own may have layers that `network` lacks.

    def __call__(self, images, labels, training: bool) -> dict[str, Any]:
        """Computes the model's outputs for a batch.

        Args:
            images: float32 [batch, size, size, 3] in [-1, 1].
            labels: int32 [batch, 1].
            training: whether dropout, batch norm and augmentation layers run in training mode; never in a frozen part.

        Returns:
            A dict with "predictions", and with the scalars "loss" and "regularization_loss" if the model has them.
        """
        if training and self.frozen:
            return self.from_features(self.frozen(images, training=False), labels, training=True)
        if self._with_losses is None:
            return {"predictions": self.network(images, training=training)}
        return self._with_losses({"images": images, "labels": labels}, training=training)

    def from_features(self, features, labels, training: bool) -> dict[str, Any]:
        """Computes the model's outputs for a batch of features, as `frozen` returns them. See `__call__`."""
        return self._head([features, labels], training=training)

    @property
    def has_loss(self) -> bool:
        """Whether the outputs have a "loss" of the model's own."""
        return self._with_losses is not None and "loss" in self._with_losses.output

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """The variables that the optimizer updates."""
        return self._all_layers.trainable_variables

    @property
    def weights(self) -> list[keras.Variable]:
        """Trainable variables and moving averages, in layer order."""
        return self._all_layers.weights

    @property
    def variables(self) -> list[keras.Variable]:
        """All that Keras tracks: the `weights` and the `seed_states`."""
        return self._all_layers.variables

    @property
    def seed_states(self) -> list[keras.Variable]:
        """The random generator states of layers such as dropout, which `weights` does not contain."""
        weights = {id(variable) for variable in self._all_layers.weights}
        return [variable for variable in self.variables if id(variable) not in weights]

    @property
    def regularizer_losses(self) -> list:
        """The current values of the layers' regularizers, scalars."""
        return self._all_layers.losses


def build_model(
    model: BaseModel,
    image_size: int | None,
    num_classes: int,
    output_layer: str,
    params: dict[str, Any],
    is_new: bool = False,
) -> BuiltModel:
    """Calls `create_model` once, checks its result, and builds Keras models from it.

    Args:
        model: the user's model.
        image_size: height and width of the input, pixels; None allows any size.
        num_classes: 2.
        output_layer: the kind of predictions that the loss needs, see `losses.BaseLoss.output_layer`.
        params: the arguments from --model_params.
        is_new: True if training starts from this model; False if its weights will be restored or copied.

    Returns:
        The built model.

    Raises:
        UserError: if `create_model` fails, applies a raw TensorFlow op to its input, returns anything but the
            promised dict, or needs a fixed input size while `image_size` is None.
    """
    name = type(model).__name__
    what = f"{name}.create_model"
    if type(model).create_model is BaseModel.create_model:
        raise UserError(f"{name} has no create_model of its own; define create_model(self, model_input, num_classes=2)")
    images = keras.Input((image_size, image_size, 3), name="images", dtype="float32")
    labels = keras.Input((1,), name="labels", dtype="int32")
    keras.layers.Identity(name="labels")(labels)  # Keras 3.12 takes an input that nothing uses for a mistake.
    offered = {"num_classes": num_classes, "labels": labels, "output_layer": output_layer, "is_new": is_new}
    named = inspect.signature(model.create_model).parameters
    if "is_training" in named:
        raise UserError(
            f"{what}: remove the parameter is_training; layers know whether training is running; see {porting.PAGE}"
        )
    if "vocab_size" in named:
        offered["vocab_size"] = num_classes
    arguments = accepted_arguments(model.create_model, what, "model_params", 1, offered, params)
    try:
        result = model.create_model(images, **arguments)
    except UserError:
        raise
    except Exception as error:
        raise _creation_error(name, error, image_size) from error
    _check_result(name, result, num_classes)
    built = BuiltModel(name, *_make_networks(name, images, labels, result), *_split(name, images, labels, result))
    if not built.trainable_variables:
        raise UserError(f"{name}.create_model: the model has no weights to train; add a layer such as Dense or Conv2D")
    return built


def _make_networks(
    name: str, images: keras.KerasTensor, labels: keras.KerasTensor, result: dict[str, Any]
) -> tuple[keras.Model, keras.Model | None]:
    """Returns the network from images to predictions, and one with the model's own losses if it has any."""
    predictions = _as_float32(result["predictions"])
    losses = {key: _as_float32(result[key]) for key in _LOSSES if _is_symbolic(result.get(key))}
    try:
        network = keras.Model(images, predictions, name=name)
        with_losses = None
        if losses:
            inputs = {"images": images, "labels": labels}
            with_losses = keras.Model(inputs, {"predictions": predictions, **losses}, name=name)
    except ValueError as error:
        if "disconnected" in str(error) or "not connected" in str(error):
            raise UserError(
                f'{name}.create_model: "predictions" must be computed from model_input alone, "loss" from model_input '
                "and labels; remove the other input"
            ) from error
        raise
    return network, with_losses


def _split(
    name: str, images: keras.KerasTensor, labels: keras.KerasTensor, result: dict[str, Any]
) -> tuple[keras.Model | None, keras.Model | None]:
    """Returns the model's two halves, which share its layers: images to features, and features to all outputs."""
    features = result.get("features")
    if features is None:
        return None, None
    if features is images:
        raise UserError(f'{name}.create_model: "features" is model_input itself; leave it out, nothing is frozen')
    if images.shape[1] and None in features.shape[1:]:
        raise UserError(
            f'{name}.create_model: "features" must have a shape that is known before training, not {features.shape}; '
            "give it one with keras.layers.Reshape, or name another tensor"
        )
    outputs = {key: _as_float32(result[key]) for key in ("predictions", *_LOSSES) if _is_symbolic(result.get(key))}
    try:
        frozen = keras.Model(images, _as_float32(features), name="frozen")
        head = keras.Model([features, labels], outputs, name="head")
    except ValueError as error:
        raise UserError(
            f'{name}.create_model: "features" must be computed from model_input, and all else from it alone; leave '
            f"it out, or name a later tensor ({str(error).strip().partition(chr(10))[0]})"
        ) from error
    if trained := [variable.path for variable in frozen.trainable_variables]:
        raise UserError(
            f'{name}.create_model: "features" must come from frozen layers, but {trained[0]} is trained; set '
            'trainable = False for the layers before it, or leave "features" out'
        )
    if changing := [layer.name for layer in all_layers(frozen) if _differs_in_training(layer)]:
        raise UserError(
            f'{name}.create_model: "features" must come from layers that do the same in training and in evaluation, '
            f"unlike {changing[0]}; put random layers after it, set trainable = False for batch norm, or leave "
            '"features" out'
        )
    return frozen, head


def _differs_in_training(layer: keras.Layer) -> bool:
    """Whether a frozen layer of Keras computes something else in training than in evaluation."""
    if isinstance(layer, keras.layers.BatchNormalization):
        return layer.trainable
    return (hasattr(layer, "seed_generator") or hasattr(layer, "generator")) and getattr(layer, "rate", 1.0) != 0.0


def _as_float32(tensor: keras.KerasTensor) -> keras.KerasTensor:
    return tensor if tensor.dtype == "float32" else keras.ops.cast(tensor, "float32")


def _is_symbolic(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


def _creation_error(name: str, error: Exception, image_size: int | None) -> UserError:
    """Returns the error to raise if `create_model` of the model of that name fails."""
    what = f"{name}.create_model"
    if created := untracked.creation_error(what, error):
        return created
    instead = porting.advice(error)
    is_missing_name = instead and "has no attribute" in str(error)
    if "KerasTensor" in str(error) and not is_missing_name:
        return UserError(_raw_op_message(what, error))
    if image_size is None and not instead:
        return UserError(_one_size_message(name, error))
    return porting.explain(what, error)


def _raw_op_message(what: str, error: Exception) -> str:
    """Returns the error message for a raw TensorFlow op on a symbolic tensor: where it is, and what to use instead."""
    instead = porting.advice(error)
    return (
        f"{what} applies something that is not Keras to a symbolic tensor ({place_of(error)}); "
        + (f"{instead}; or " if instead else "")
        + "use a layer, a function of keras.ops, or keras.layers.Lambda(lambda x: ...)(tensor); see the table in "
        f"{porting.PAGE}, Porting a 2017 model"
    )


def _one_size_message(name: str, error: Exception) -> str:
    """Returns the error message for a model that needs a fixed input size."""
    reason = str(error).strip().partition("\n")[0]
    return (
        f"--first_image_size: {name} cannot be built for pictures that grow ({reason}; {place_of(error)}); leave the "
        "flag out, or use a model that takes any size: convolutions, then GlobalAveragePooling2D, as in ConvNetModel"
    )


def _check_result(name: str, result: Any, num_classes: int) -> None:
    """Raises UserError unless `result` is a dict as described in `BaseModel.create_model`."""
    where = f"{name}.create_model"
    if not isinstance(result, dict):
        raise UserError(f'{where} must return a dict such as {{"predictions": ...}}; it returned {_describe(result)}')
    if "predictions" not in result:
        keys = ", ".join(map(str, result)) or "nothing"
        raise UserError(f'{where} must return a dict with the key "predictions"; its keys are: {keys}')
    predictions = result["predictions"]
    shape = tuple(predictions.shape) if _is_symbolic(predictions) else ()
    if shape not in ((None, 1), (None, num_classes)):
        raise UserError(
            f'{where}: "predictions" must be a Keras tensor of shape [batch, 1] or [batch, {num_classes}]; '
            f"it is {_describe(predictions)}"
        )
    features = result.get("features")
    if features is not None and not (_is_symbolic(features) and len(features.shape) > 1 and features.shape[0] is None):
        raise UserError(f'{where}: "features" must be a Keras tensor [batch, ...]; it is {_describe(features)}')
    for key in _LOSSES:
        value = result.get(key)
        if value is None or (_is_symbolic(value) and len(value.shape) == 0):
            continue
        if key == "regularization_loss" and isinstance(value, int | float) and value == 0:
            continue
        raise UserError(
            f'{where}: "{key}" must be a scalar Keras tensor computed from model_input; it is {_describe(value)}'
            + ("; to penalize weights, give the layer a kernel_regularizer" if key == "regularization_loss" else "")
        )


def _describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" + (f" of shape {list(shape)}" if shape is not None else "")
