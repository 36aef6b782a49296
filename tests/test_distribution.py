"""Several devices compute the same results as one device."""

import subprocess
import textwrap

import numpy as np
import pytest
from conftest import REPOSITORY, forked_python, write_shards

# Runs in a process of its own, since a CPU can be divided only before TensorFlow uses it.
CODE = """
    import functools
    import io
    import sys
    import keras
    import numpy as np
    import tensorflow as tf
    root = sys.argv.pop(1)
    sys.path[:0] = [root, f"{root}/tests"]
    from cats_vs_dogs import augmentation, batch_norm, cvd_models, distribution, inference, models, optimizers, readers
    from cats_vs_dogs import submission, tfrecords
    import conftest
    from cats_vs_dogs.evaluation import Evaluator
    from cats_vs_dogs.event_files import EventFile
    from cats_vs_dogs.prediction import Predictor
    from cats_vs_dogs.classifier import Classifier
    from cats_vs_dogs.config import ModelSpec
    from cats_vs_dogs.trainer import Trainer


    class NormModel(models.BaseModel):
        def create_model(self, model_input):
            net = keras.layers.Conv2D(4, 3, strides=2, use_bias=False, kernel_regularizer="l2")(model_input)
            net = keras.layers.ReLU()(batch_norm.FastBatchNormalization(momentum=0.8)(net))
            net = keras.layers.GlobalAveragePooling2D()(net)
            return {"predictions": keras.layers.Dense(1, activation="sigmoid")(net)}

    cvd_models.NormModel = NormModel
    num_devices, output, *paths = sys.argv[1:]
    num_devices = int(num_devices)
    if num_devices > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * num_devices)
    cluster = distribution.local_devices()
    assert cluster.num_replicas == num_devices
    with cluster.strategy.scope():
        classifier = Classifier(ModelSpec("NormModel", {}, "CrossEntropyLoss", {}, 8, "area"))
        rate = optimizers.LearningRate(0.05, 16, "constant")
        variables = classifier.model.trainable_variables
        optimizer = optimizers.make_optimizer("MomentumOptimizer", rate, variables)
    config = conftest.make_config(clip_gradient_norm=0.5).optimizer
    mix = functools.partial(augmentation.mix, seed=5, total_steps=10)
    trainer = Trainer(classifier, optimizer, cluster.strategy, config, mix=mix)
    shards = readers.Shards({path: tfrecords.scan(path).count for path in paths})
    reader = readers.get_reader(True, 8, "area")
    order = readers.Order(batch_size=16, seed=5, num_epochs=3)

    def change(images, step, rows):
        return augmentation.augment(images, "flip_crop_colour", 5, step, rows, 16)

    dataset = readers.make_training_dataset(
        reader, shards, order, num_replicas=num_devices, replicas=cluster.replicas, change=change
    )
    batches = iter(cluster.distribute(dataset))
    losses, seen = [], []
    for _ in range(3 * -(-shards.num_examples // 16)):
        outputs = trainer.run_steps(batches, 1)
        losses.append(outputs.label_loss + outputs.regularization_loss)
        seen.append(sum(len(labels) for labels in outputs.labels))
    weights = [weight.numpy().ravel() for weight in classifier.model.weights]
    classifier.flip_average = classifier.crop_average = True
    batches = readers.make_dataset(reader, shards, 20)  # The last one has one example.
    evaluator = Evaluator(Predictor(classifier, cluster, batches), shows_batches=True)
    metrics = evaluator.evaluate(15, EventFile(output + ".events")).metrics
    batches = readers.make_dataset(readers.get_reader(False, 8, "area"), shards, 20)
    csv = io.StringIO()
    inference.predict(Predictor(classifier, cluster, batches), submission.Writer(csv, "probability"))
    np.savez(
        output,
        losses=losses,
        seen=seen,
        weights=np.concatenate(weights),
        metrics=[metrics["avg_loss"], metrics["log_loss"], metrics["roc_auc"]],
        ids=[row.split(",")[0] for row in csv.getvalue().splitlines()],
        probabilities=[float(row.split(",")[1]) for row in csv.getvalue().splitlines()[1:]],
    )
"""


# Batch norm is synchronised. Its variance is summed up in another way on several devices than on one.
@pytest.mark.slow
def test_several_devices_give_the_weights_and_predictions_of_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(CODE))
    write_shards(tmp_path / "shards", num_examples=65, num_shards=3)
    paths = sorted(str(path) for path in (tmp_path / "shards").iterdir())
    results = []
    for num_devices in (1, 4):
        output = str(tmp_path / f"{num_devices}.npz")
        command = [*forked_python(), str(script), str(REPOSITORY), str(num_devices), output, *paths]
        process = subprocess.run(command, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        results.append(np.load(output))
        # The last batch of an epoch has one example. Other replicas get a copy of it, with a weight of 0.
        assert results[-1]["seen"].tolist()[:5] == [*[16] * 4, num_devices]
    one, several = results
    assert one["losses"][-1] < one["losses"][0] - 0.01  # Something was learned.
    for name, tolerance in {"losses": 1e-5, "weights": 1e-5, "metrics": 1e-5, "probabilities": 2e-5}.items():
        np.testing.assert_allclose(several[name], one[name], atol=tolerance, rtol=0, err_msg=name)
    assert several["ids"].tolist() == one["ids"].tolist() and len(one["ids"]) == 66
