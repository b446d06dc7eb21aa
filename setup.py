"""Builds the C extension, and nothing else; everything about the package is in pyproject.toml.

Where there is no working C compiler, pyce installs without the extension, prints a warning, and
runs on Numba or NumPy. PYCE_REQUIRE_C=1 makes that an error instead. So it does without cffi, which
only an installation without build isolation can lack.

On Windows the compiler is clang-cl with the libraries of Visual Studio. If CC names another one
(clang or gcc), it is called with the options of gcc and the libraries of MinGW.

Tags of the wheel: cp310-abi3 for the extension, which uses CPython's stable ABI; that of the one
Python that built it where there is no stable ABI (free-threaded before 3.15, PyPy); cp315-abi3 from
3.15 on, whose extensions have names that earlier versions do not look for, and cp315-abi3.abi3t for
free-threaded Python; py3-none-any without the extension.
"""

import importlib.util
import os
import shutil
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

WARNING = """
*****************************************************************************
* pyce is being installed WITHOUT its C kernels: they could not be built.
* It works on Numba (slower) or NumPy (many times slower).
* Install a C compiler (for example the package gcc or build-essential; on
* Windows, LLVM and the Visual Studio Build Tools) and repeat the installation:
*   pip install --force-reinstall --no-deps --no-cache-dir pyce-kernels
* In a clone, write . instead of pyce-kernels.
* The reason: {error}
*****************************************************************************
"""


def is_required():
    """Whether the C extension must be built."""
    return os.environ.get("PYCE_REQUIRE_C", "0") not in ("", "0")


def warn(error):
    print(WARNING.format(error=error), file=sys.stderr, flush=True)


def extensions():
    """The argument by which cffi builds. Without cffi none: setuptools would ignore it."""
    if importlib.util.find_spec("cffi"):
        return {"cffi_modules": ["csrc/build_ffi.py:ffi"]}
    if is_required():
        sys.exit("cffi is needed to build the C extension: pip install cffi")
    warn("cffi is not installed, which the build needs: pip install cffi")
    return {}


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
    def finalize_options(self):
        super().finalize_options()
        named = os.environ.get("CC")
        if (
            sys.platform == "win32"
            and named
            and not self.compiler
            and Path(named).stem != "clang-cl"
        ):
            self.compiler = "mingw32"  # the class for compilers with the options of gcc

    def get_libraries(self, ext):
        # setuptools would link the library of one version of Python.
        if sys.platform == "win32" and ext.py_limited_api and self.compiler.compiler_type != "msvc":
            free_threaded = sysconfig.get_config_var("Py_GIL_DISABLED")
            return [*ext.libraries, "python3t" if free_threaded else "python3"]
        return super().get_libraries(ext)

    def run(self):
        try:
            super().run()
        except Exception as error:
            if is_required():
                raise
            warn(error)
            if not self.inplace:  # what an earlier build left does not belong in the wheel
                for extension in self.extensions:
                    Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
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

        if sys.platform == "win32":
            self.compiler.dll_libraries = []  # the C library is clang's choice, not setuptools'
        self.compiler.compile = compile_in_parallel
        try:
            super().build_extension(ext)
        finally:
            self.compiler.compile = compile_sources

    def get_outputs(self):
        return super().get_outputs() if self.extensions else []


class TaggedWheel(bdist_wheel):
    def finalize_options(self):
        extensions = self.distribution.ext_modules or []
        if extensions and all(extension.py_limited_api for extension in extensions):
            self.py_limited_api = "cp315" if sys.version_info >= (3, 15) else "cp310"
        super().finalize_options()

    def run_command(self, command):
        super().run_command(command)
        if command == "build":  # only now is it known whether there is an extension
            self.root_is_pure = not self.distribution.has_ext_modules()


setup(
    **extensions(),
    cmdclass={"build_ext": OptionalBuild, "bdist_wheel": TaggedWheel},
)
