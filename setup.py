"""Installs nemo_desta: everything it says comes from nemo_desta/package_info.py and README.md."""

import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# Run as a file, not imported: importing the package would need what this script is about to install.
INFO = runpy.run_path(str(ROOT / "nemo_desta" / "package_info.py"))
README = ROOT / "README.md"


class BuildWithConfigs(build_py):
    """conf/ goes into the package, where an installed command finds it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree(ROOT / "conf", Path(self.build_lib) / "nemo_desta" / "conf", dirs_exist_ok=True)


setup(
    name=INFO["__package_name__"],
    version=INFO["__version__"],
    description=INFO["__description__"],
    long_description=README.read_text(encoding="utf-8") if README.exists() else INFO["__description__"],
    long_description_content_type="text/markdown",
    license=INFO["__license__"],
    python_requires=INFO["__python_requires__"],
    classifiers=INFO["CLASSIFIERS"],
    packages=find_packages(include=["nemo_desta", "nemo_desta.*"]),
    package_data={
        "nemo_desta": [
            "py.typed",
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
    entry_points={
        "console_scripts": ["desta = nemo_desta.cli.main:main"],
        "vllm.general_plugins": ["nemo_desta = nemo_desta.vllm_plugin:register"],
    },
    cmdclass={"build_py": BuildWithConfigs},
    zip_safe=False,
)
