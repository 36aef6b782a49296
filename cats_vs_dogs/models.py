"""The base class of models, and how the kit wraps what a model returns into Keras models."""

from typing import Any

import keras

from cats_vs_dogs.utils import UserError, accepted_arguments, place_of, user_code_error


class BaseModel:
    """Inherit from this class in cvd_models.py to add a model; name it with --model=YourModel."""

    def create_model(self, model_input: keras.KerasTensor, num_classes: int = 2, **params: Any) -> dict[str, Any]:
        """Defines the network. Called once; the same graph serves training, evaluation and export.

        Use `keras.layers` and `keras.ops`. Layers know by themselves whether they train (dropout, batch norm,
        augmentation), and their regularizers are added to the loss.

        Args:
            model_input: symbolic float32 [batch, height, width, 3] in [-1, 1].
            num_classes: 2, cats (0) and dogs (1).
            **params: what the model asks for by naming it: `labels`, symbolic int32 [batch, 1], 1 = dog;
                `output_layer`, which kind of predictions the loss needs (see `losses.BaseLoss.output_layer`);
                `is_new`, whether training starts with this model, and not from a checkpoint that will be restored:
                only then need weights be loaded from elsewhere;
                anything given with --model_params.

        Returns:
            A dict with "predictions": [batch, 1], the probability that it is a dog unless the loss needs another
            kind; or [batch, num_classes]. It may have "loss", a scalar that replaces the label loss, and
            "regularization_loss", a scalar that is added, weighted with --regularization_penalty.
        """
        raise NotImplementedError


class BuiltModel:
    """A model of cvd_models.py, built: one set of weights, seen by training and by prediction.

    Attributes:
        name: the class name of the model.
        network: from images, float32 [batch, size, size, 3], to predictions.
    """

    def __init__(self, name: str, network: keras.Model, with_losses: keras.Model | None):
        self.name = name
        self.network = network
        self._with_losses = with_losses
        self._whole = with_losses or network

    def __call__(self, images, labels, training: bool) -> dict[str, Any]:
        """Returns the model's outputs for a batch.

        Args:
            images: float32 [batch, size, size, 3] in [-1, 1].
            labels: int32 [batch, 1].
            training: whether dropout, batch norm and augmentation layers train.

        Returns:
            "predictions", and the scalars "loss" and "regularization_loss" if the model gives them.
        """
        if self._with_losses is None:
            return {"predictions": self.network(images, training=training)}
        return self._with_losses({"images": images, "labels": labels}, training=training)

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """The variables that an optimizer moves."""
        return self._whole.trainable_variables

    @property
    def weights(self) -> list[keras.Variable]:
        """Trainable variables and moving averages, in the order of the layers."""
        return self._whole.weights

    @property
    def seed_states(self) -> list[keras.Variable]:
        """The states of the random generators in layers such as dropout, which `weights` leaves out."""
        weights = {id(variable) for variable in self._whole.weights}
        return [variable for variable in self._whole.variables if id(variable) not in weights]

    @property
    def regularizer_losses(self) -> list:
        """The scalars that the regularizers of the layers give for the present weights."""
        return self._whole.losses


def build_model(
    model: BaseModel,
    image_size: int | None,
    num_classes: int,
    output_layer: str,
    params: dict[str, Any],
    is_new: bool = False,
) -> BuiltModel:
    """Calls `create_model` once, checks what it returns, and wraps it.

    Args:
        model: the user's model.
        image_size: height and width of the input, pixels; None: any.
        num_classes: 2.
        output_layer: the kind of predictions that the loss needs.
        params: from --model_params.
        is_new: whether training starts with this model; False: its weights will be restored or copied.

    Returns:
        The built model.

    Raises:
        UserError: if `create_model` uses a raw TensorFlow op on its input, returns something else than promised, or
            needs to know the size of its input where that may be any.
    """
    name = type(model).__name__
    if type(model).create_model is BaseModel.create_model:
        raise UserError(f"{name} has no create_model of its own; define create_model(self, model_input, num_classes=2)")
    images = keras.Input((image_size, image_size, 3), name="images", dtype="float32")
    labels = keras.Input((1,), name="labels", dtype="int32")
    offered = {"num_classes": num_classes, "labels": labels, "output_layer": output_layer, "is_new": is_new}
    arguments = accepted_arguments(model.create_model, f"{name}.create_model", "model_params", 1, offered, params)
    try:
        result = model.create_model(images, **arguments)
    except UserError:
        raise
    except Exception as error:
        if "KerasTensor" in str(error):
            raise UserError(_raw_op_message(name, error)) from error
        if image_size is None:
            raise UserError(_one_size_message(name, error)) from error
        raise user_code_error(f"{name}.create_model", error) from error
    _check_result(name, result, num_classes)
    predictions = _as_float32(result["predictions"])
    losses = {key: _as_float32(result[key]) for key in ("loss", "regularization_loss") if _is_symbolic(result.get(key))}
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
                "and labels; another input was found"
            ) from error
        raise
    built = BuiltModel(name, network, with_losses)
    if not built.trainable_variables:
        raise UserError(f"{name}.create_model: the model has no weights to train; add a layer such as Dense or Conv2D")
    return built


def _as_float32(tensor: keras.KerasTensor) -> keras.KerasTensor:
    return tensor if tensor.dtype == "float32" else keras.ops.cast(tensor, "float32")


def _is_symbolic(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


def _raw_op_message(name: str, error: Exception) -> str:
    """Says in one line where a raw TensorFlow op met a symbolic tensor, and what to write instead."""
    return (
        f"{name}.create_model applies something that is not Keras to a symbolic tensor ({place_of(error)}); use a "
        "layer, a function of keras.ops, or keras.layers.Lambda(lambda x: ...)(tensor); the READMEs have a table: "
        "Porting a 2017 model"
    )


def _one_size_message(name: str, error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0]
    return (
        f"--first_image_size: {name} cannot be built for pictures that grow ({reason}; {place_of(error)}); leave the "
        "flag out, or have convolutions followed by GlobalAveragePooling2D, as in ConvNetModel"
    )


def _check_result(name: str, result: Any, num_classes: int) -> None:
    """Raises UserError unless `result` is what `create_model` promises."""
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
    for key in ("loss", "regularization_loss"):
        value = result.get(key)
        if value is None or (_is_symbolic(value) and len(value.shape) == 0):
            continue
        if key == "regularization_loss" and isinstance(value, int | float) and value == 0:
            continue
        raise UserError(
            f'{where}: "{key}" must be a scalar Keras tensor computed from model_input; it is {_describe(value)}'
            + ("; to penalise weights give the layer a kernel_regularizer" if key == "regularization_loss" else "")
        )


def _describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" + (f" of shape {list(shape)}" if shape is not None else "")
