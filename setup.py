"""Installs nemo_desta: everything it says comes from nemo_desta/package_info.py and README.md."""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
# Run as a file, not imported: importing the package would need what this script is about to install.
INFO = runpy.run_path(str(ROOT / "nemo_desta" / "package_info.py"))
README = ROOT / "README.md"

setup(
    name=INFO["__package_name__"],
    version=INFO["__version__"],
    description=INFO["__description__"],
    long_description=README.read_text(encoding="utf-8") if README.exists() else INFO["__description__"],
    long_description_content_type="text/markdown",
    license=INFO["__license__"],
    python_requires=INFO["__python_requires__"],
    packages=find_packages(include=["nemo_desta", "nemo_desta.*"]),
    package_data={
        "nemo_desta": [
            "**/*.yaml",
            "**/*.jinja",
            "**/*.txt",
            "demo/assets/**",
            "recipes/report/templates/*",
            "serving/*.css",
        ]
    },
    install_requires=INFO["REQUIRES"],
    extras_require=INFO["EXTRAS"],
    zip_safe=False,
)
