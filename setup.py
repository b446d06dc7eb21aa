"""Builds the C extension, and nothing else; everything about the package is in pyproject.toml.

Where there is no working C compiler, pyce installs without the extension, says so loudly, and runs
on Numba or NumPy. PYCE_REQUIRE_C=1 makes that an error instead.
"""

import os
import sys

from setuptools import setup
from setuptools.command.build_ext import build_ext

WARNING = """
*****************************************************************************
* pyce is being installed WITHOUT its C kernels: they could not be compiled.
* It works, on Numba or NumPy, but many times slower than it could.
* Install a C compiler (for example the package gcc or build-essential) and
* reinstall:  pip install --force-reinstall --no-cache-dir pyce
* The compiler said: {error}
*****************************************************************************
"""


class OptionalBuild(build_ext):
    def run(self):
        try:
            super().run()
        except Exception as error:
            if os.environ.get("PYCE_REQUIRE_C"):
                raise
            print(WARNING.format(error=error), file=sys.stderr, flush=True)
            self.extensions = []
            self.distribution.ext_modules = []

    def get_outputs(self):
        return super().get_outputs() if self.extensions else []


setup(
    cffi_modules=["csrc/build_ffi.py:ffi"],
    cmdclass={"build_ext": OptionalBuild},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
