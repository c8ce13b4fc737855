"""Packages, which pyproject.toml cannot say: configs/ lies at the top and installs in dsjax."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["dsjax", "dsjax.*"]), "dsjax.configs"],
    package_dir={"dsjax.configs": "configs"},
)
