# Everything is declared in pyproject.toml; the extension modules are built by CMakeLists.txt.
from setuptools import setup

setup()
