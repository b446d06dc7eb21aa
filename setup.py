"""Builds the C extension, and nothing else; everything about the package is in pyproject.toml.

Where there is no working C compiler, pyce installs without the extension, prints a warning, and
runs on Numba or NumPy. PYCE_REQUIRE_C=1 makes that an error instead.

On Windows the compiler is clang-cl with the libraries of Visual Studio, or with CC=clang and
`--compiler=mingw32`, clang with those of MinGW.
"""

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

WARNING = """
*****************************************************************************
* pyce is being installed WITHOUT its C kernels: they could not be compiled.
* It works, on Numba or NumPy, but many times slower than it could.
* Install a C compiler (for example the package gcc or build-essential; on
* Windows, LLVM and the Visual Studio Build Tools) and
* reinstall:  pip install --force-reinstall --no-cache-dir pyce
* The compiler said: {error}
*****************************************************************************
"""


def processors():
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_clang(compiler, extension):
    """Compile with clang-cl in place of Microsoft's compiler, which does not know GNU C."""
    clang = shutil.which(os.environ.get("CC") or "clang-cl")
    if not clang:
        raise CompileError("clang-cl is needed on Windows: install LLVM, or set CC")
    if not compiler.initialized:
        compiler.initialize()
    compiler.cc = clang
    # Optimization at link time would need Microsoft's compiler.
    compiler.compile_options = [option for option in compiler.compile_options if option != "/GL"]
    extension.extra_compile_args = [f"/clang:{option}" for option in extension.extra_compile_args]
    extension.extra_link_args = []


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

    def build_extension(self, ext):
        """Compile the sources side by side; setuptools would compile one after the other."""
        if self.compiler.compiler_type == "msvc":
            use_clang(self.compiler, ext)
        compile_sources = self.compiler.compile

        def compile_in_parallel(sources, **options):
            with ThreadPoolExecutor(processors()) as pool:
                jobs = [pool.submit(compile_sources, [source], **options) for source in sources]
            return [name for job in jobs for name in job.result()]

        self.compiler.compile = compile_in_parallel
        try:
            super().build_extension(ext)
        finally:
            self.compiler.compile = compile_sources

    def get_outputs(self):
        return super().get_outputs() if self.extensions else []


setup(
    cffi_modules=["csrc/build_ffi.py:ffi"],
    cmdclass={"build_ext": OptionalBuild},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
