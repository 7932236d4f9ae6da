"""Packaging of vimpac_ext; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="vimpac_ext",
    version="0.1.0",
    description="Modular self-supervised video pre-training (VIMPAC) and video classification",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["vimpac_ext", "vimpac_ext.*"]),
    package_data={"vimpac_ext.tokenizers": ["weights/*.safetensors"]},
    install_requires=[
        "av>=15.1",
        "einops>=0.8",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.10",
        "lmdb>=1.5",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "pillow>=10",
        "pytorchvideo>=0.1.5",
        "PyYAML>=6.0",
        "safetensors>=0.4",
        "tensorboard>=2.16",
        "timm>=1.0",
        "torch>=2.11",
        "torchvision>=0.26",
        "tqdm>=4.66",
        "yacs>=0.1.8",
    ],
    extras_require={
        "hf": ["transformers>=5.0", "diffusers>=0.40"],
        "cluster": ["submitit>=1.5"],
        "parquet": ["pyarrow>=17"],
        "decode": ["torchcodec>=0.11"],
        "wandb": ["wandb>=0.19"],
        "dev": [
            "attrs>=21",  # DALL-E needs it without saying so
            "DALL-E>=0.1",  # a test compares with it
            "hypothesis>=6.100",
            "mypy>=1.15",
            "pre-commit>=4.0",
            "pyarrow>=17",  # a test reads the .parquet files of an export
            "pytest>=8.0",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "submitit>=1.5",
            "transformers>=5.0",
            "vector-quantize-pytorch>=1.20",
        ],
    },
)
