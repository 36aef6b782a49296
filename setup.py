"""Packaging of the Cats vs Dogs kit. Reads no other file: cloud builders copy this one alone first."""

from setuptools import find_namespace_packages, setup

BEAM = ["apache-beam>=2.77"]
DASK = [*BEAM, "dask[distributed]>=2024.4.2"]
# onnx 1.19.0 does not say that it needs a newer ml_dtypes than TensorFlow 2.17 allows.
ONNX = ["tf2onnx>=1.17", "onnx!=1.19.0", "onnxruntime"]

setup(
    name="cats_vs_dogs",
    version="2.0.0",
    description="Cats vs Dogs TensorFlow starter kit: TFRecord shards in, a submission CSV out.",
    license="Apache-2.0",
    packages=find_namespace_packages(include=["cats_vs_dogs", "cats_vs_dogs.*"], exclude=["*.__pycache__"]),
    package_data={"cats_vs_dogs.recipes": ["*.flags"], "cats_vs_dogs.templates": ["*.html"]},
    python_requires=">=3.10",
    install_requires=[
        "tensorflow>=2.17",
        "keras>=3.12",  # With 3.4, of the days of TensorFlow 2.17, several GPUs do not train as one does.
        "tensorboard>=2.17",  # TensorFlow 2.21 no longer brings it; summaries cannot be written without it.
        "numpy",
        "absl-py",
        "pandas",
        "matplotlib",
        "tqdm",
        "pillow>=10.1",  # Has a font of any size.
        "google-cloud-storage",
        "google-crc32c",
        "h5py",  # Comes with keras, too.
        "jinja2",
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.17"],
        "beam": BEAM,
        "dask": DASK,
        "onnx": ONNX,
        "test": ["pytest>=8", "pytest-xdist", "hypothesis", "pyyaml", "ruff", "vermin", "ai-edge-litert", *DASK, *ONNX],
    },
)
