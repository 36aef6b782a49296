"""Several devices compute the same results as one device."""

import subprocess
import textwrap

import numpy as np
import pytest
from conftest import REPOSITORY, forked_python, write_shards

# Runs in a process of its own, since a CPU can be divided only before TensorFlow uses it.
CODE = """
    import io
    import sys
    import numpy as np
    import tensorflow as tf
    sys.path.insert(0, sys.argv.pop(1))
    from cats_vs_dogs import distribution, inference, optimizers, readers, tfrecords
    from cats_vs_dogs.eval import Evaluator
    from cats_vs_dogs.classifier import Classifier, ModelSpec
    from cats_vs_dogs.trainer import Trainer

    num_devices, output, paths = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if num_devices > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * num_devices)
    cluster = distribution.local_devices()
    assert cluster.num_replicas == num_devices
    with cluster.strategy.scope():
        classifier = Classifier(ModelSpec("MoeModel", {}, "CrossEntropyLoss", {}, 8, "area"))
        rate = optimizers.LearningRate(0.05, 16, "constant")
        variables = classifier.model.trainable_variables
        optimizer = optimizers.make_optimizer("MomentumOptimizer", rate, variables, 0.5 / num_devices)
    trainer = Trainer(classifier, optimizer, cluster.strategy, regularization_penalty=1.0, jit_compile=False)
    shards = readers.Shards({path: tfrecords.scan(path).count for path in paths})
    reader = readers.get_reader(True, 8, "area")
    replicas = {"num_replicas": num_devices, "replicas": cluster.replicas, "augment": "flip_crop_colour"}
    batches = iter(cluster.distribute(readers.make_training_dataset(reader, shards, 16, 5, 3, **replicas)))
    losses, seen = [], []
    for _ in range(15):
        outputs = trainer.run_steps(batches, 1)
        losses.append(outputs.label_loss + outputs.regularization_loss)
        seen.append(sum(len(labels) for labels in outputs.labels))
    weights = [weight.numpy().ravel() for weight in classifier.model.weights]
    classifier.flip_average = True
    batches = readers.make_dataset(reader, shards, 20)  # The last one has one example.
    metrics = Evaluator(classifier, cluster, batches, tf.summary.create_noop_writer(), True).evaluate(step=15)
    batches = readers.make_dataset(readers.get_reader(False, 8, "area"), shards, 20)
    csv = io.StringIO()
    inference.predict(classifier, cluster, batches, csv, "probability")
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


@pytest.mark.slow
def test_two_and_four_devices_give_the_weights_and_predictions_of_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(CODE))
    write_shards(tmp_path / "shards", num_examples=65, num_shards=3)
    paths = sorted(str(path) for path in (tmp_path / "shards").iterdir())
    results = {}
    for num_devices in (1, 2, 4):
        output = str(tmp_path / f"{num_devices}.npz")
        command = [*forked_python(), str(script), str(REPOSITORY), str(num_devices), output, *paths]
        process = subprocess.run(command, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        results[num_devices] = np.load(output)
        # The last batch of an epoch has one example. Other replicas get a copy of it, with a weight of 0.
        assert results[num_devices]["seen"].tolist() == [16, 16, 16, 16, num_devices] * 3
    one = results[1]
    assert one["losses"][-1] < one["losses"][0] - 0.01  # Something was learned.
    for several in (results[2], results[4]):
        np.testing.assert_allclose(several["losses"], one["losses"], atol=1e-6, rtol=0)
        np.testing.assert_allclose(several["weights"], one["weights"], atol=1e-6, rtol=0)
        np.testing.assert_allclose(several["metrics"], one["metrics"], atol=1e-6, rtol=0)
        np.testing.assert_allclose(several["probabilities"], one["probabilities"], atol=2e-6, rtol=0)
        assert several["ids"].tolist() == one["ids"].tolist() and len(one["ids"]) == 1 + 65
