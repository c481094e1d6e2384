"""What pyproject.toml cannot say: configs/, the home of the recipes, is packaged as retrodistill/configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["retrodistill*"]), "retrodistill.configs"],
    package_dir={"retrodistill.configs": "configs"},
)
