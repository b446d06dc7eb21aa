"""The loops that compute exponentials of float32 keep their data in registers.

The kernels for AVX2, AVX-512 and NEON are compiled to assembly, as the extension is. Hot loops are
the innermost loops that have at least the fused multiply-adds of the exponential of one 64-byte
vector. None of them accesses the stack, except as `ON_THE_STACK` states.

The results belong to a compiler. Those of KNOWN_COMPILERS were verified; with another compiler the
tests are skipped, and the reason names the compiler.
"""

import importlib.util
import platform
import re
import shutil
import subprocess
from typing import NamedTuple

import pytest
from test_vmath import KERNELS, ROOT, compiler

KNOWN_COMPILERS = ("gcc 12",)

FMA_OF_EXPONENTIAL = 7
X86_FMA, X86_STACK = re.compile(r"vfn?m(add|sub)\d+ps\b"), re.compile(r"\(%r[sb]p\b")
ARM_FMA, ARM_STACK = re.compile(r"fml[as]\s+v\d+\.4s"), re.compile(r"\[(sp|x29)\b")

JUMP = re.compile(r"(?:j\w+|b\.?\w*|cbn?z|tbn?z)\s.*?(\.L\w+)$")


class Target(NamedTuple):
    """How the assembly of a target is made and read."""

    machine: str
    compiler: str | None  # None: the compiler of the extension
    registers: int  # that hold a 64-byte vector
    fma: re.Pattern
    stack: re.Pattern


TARGETS = {
    "avx2": Target("x86_64", None, 2, X86_FMA, X86_STACK),
    "avx512": Target("x86_64", None, 1, X86_FMA, X86_STACK),
    "neon": Target("aarch64", "aarch64-linux-gnu-gcc", 4, ARM_FMA, ARM_STACK),
}

# Loops over lane blocks. Each lane has a normaliser, a pivot and sums of its own, which together
# with the constants are more than the registers.
ON_THE_STACK = {
    ("avx2", "general_batch"): [4, 20],
    ("avx2", "index_batch"): [2, 6],
    ("avx2", "exp_many_classes"): [2],
    ("avx2", "soft_batch"): [23],
    ("avx2", "few_rows"): [7, 24, 5],
    ("avx512", "few_rows"): [2, 1],
    ("neon", "general_batch"): [2, 21],
    ("neon", "index_batch"): [13, 1, 20],
    ("neon", "exp_many_classes"): [1],
    ("neon", "soft_batch"): [2, 2, 6, 34],
    ("neon", "few_rows"): [2, 2, 22],
    # Two of the loops along a row: not with the sums of another row, which are the common ones.
    ("neon", "exp_row_write"): [2],
    ("neon", "exp_row_softmax"): [3],
}

# Every loop along a row, each compiled as a function of its own.
ALONG_ROWS = {
    "exp_only",
    "exp_write",
    "exp_stream",
    "exp_write_soft",
    "exp_stream_soft",
    "exp_write_softmax",
    "exp_stream_softmax",
    "exp_row_only",
    "exp_row_write",
    "exp_row_add",
    "exp_row_write_add",
    "exp_row_softmax",
    "exp_row_softmax_add",
    "exp_row_soft",
    "exp_row_soft_add",
}


def command_of(target):
    if target.machine == platform.machine():
        return compiler()
    if target.compiler is None or shutil.which(target.compiler) is None:
        pytest.skip(f"no compiler for {target.machine}")
    return [target.compiler]


def name_of_compiler(command):
    """For example "gcc 12" or "clang 14"."""
    macros = "__clang_major__ __GNUC__"
    done = subprocess.run(
        [*command, "-E", "-P", "-"], input=macros, capture_output=True, text=True, check=True
    )
    clang, gcc = done.stdout.split()
    return f"clang {clang}" if clang.isdigit() else f"gcc {gcc}"


def compile_arguments():
    spec = importlib.util.spec_from_file_location("build_ffi", ROOT / "csrc" / "build_ffi.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [flag for flag in module.COMPILE_ARGS if flag != "-Werror"]


def assembly(command, name):
    source = KERNELS / "instances" / f"{name}_f32.c"
    arguments = [*command, *compile_arguments(), "-fPIC", "-S", "-o", "-", str(source)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def functions(text):
    """The name and the lines of each function, without the suffixes of the compiler's copies.

    Functions with the same instructions are compiled once, with several names.
    """
    found, lines = [], None
    for line in text.splitlines():
        if match := re.match(r"\s+\.set\s+(\w+)[.\w]*,(\w+)", line):
            found.append((match[1], dict(found)[match[2]]))
        elif match := re.match(r"(\w+)[.\w]*:", line):
            lines = []
            found.append((match[1], lines))
        elif lines is not None:
            lines.append(line.strip())
    return found


def innermost_loops(lines):
    """The loops that contain no other: from a label to the last jump back to it."""
    labels, loops = {}, {}
    for i, line in enumerate(lines):
        if match := re.match(r"(\.L\w+):", line):
            labels[match[1]] = i
        elif match := JUMP.match(line):
            # A jump to a label before it closes a loop.
            loops.update({labels[match[1]]: i} if match[1] in labels else {})
    for first, last in loops.items():
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in loops.items()):
            yield [line for line in lines[first : last + 1] if not line.startswith(".")]


def hot_loops(target, text):
    """The function of each hot loop, and its number of instructions that access the stack."""
    for name, lines in functions(text):
        for loop in innermost_loops(lines):
            fma = sum(bool(target.fma.search(line)) for line in loop)
            if fma >= FMA_OF_EXPONENTIAL * target.registers:
                yield name, sum(bool(target.stack.search(line)) for line in loop)


@pytest.mark.parametrize("name", TARGETS)
def test_hot_loops_do_not_access_the_stack(name):
    target = TARGETS[name]
    command = command_of(target)
    known = name_of_compiler(command)
    if known not in KNOWN_COMPILERS:
        pytest.skip(f"the loops of {known} are not known")
    loops = list(hot_loops(target, assembly(command, name)))
    assert {function for function, _ in loops} >= ALONG_ROWS
    accesses: dict[tuple[str, str], list[int]] = {}
    for function, count in loops:
        if count:
            accesses.setdefault((name, function), []).append(count)
    assert accesses == {key: value for key, value in ON_THE_STACK.items() if key[0] == name}


X86_LOOP = """
exp_row.isra.0:
	vmovaps	%ymm0, 8(%rsp)
.L2:
	vmovups	(%rax), %ymm1
.L3:
{fma}
	{access}
	jne	.L3
	jmp	.L2
other:
	ret
"""


@pytest.mark.parametrize(
    ("access", "count"),
    [("vaddps %ymm1, %ymm2, %ymm3", 0), ("vmovaps -24(%rsp), %ymm1", 1), ("movq %rax, 8(%rbp)", 1)],
)
def test_accesses_of_a_loop_are_found(access, count):
    fma = "\n".join(["\tvfmadd213ps	%ymm1, %ymm2, %ymm3"] * 14)
    text = X86_LOOP.format(fma=fma, access=access)
    assert list(hot_loops(TARGETS["avx2"], text)) == [("exp_row", count)]
    few = X86_LOOP.format(fma="\tvfmadd213ps	%ymm1, %ymm2, %ymm3", access=access)
    assert list(hot_loops(TARGETS["avx2"], few)) == []


@pytest.mark.parametrize(("access", "count"), [("str q1, [sp, 16]", 1), ("ldr q1, [x0]", 0)])
def test_accesses_of_an_arm_loop_are_found(access, count):
    lines = [
        "exp_row:",
        ".L4:",
        *["\tfmla	v0.4s, v1.4s, v2.4s"] * 28,
        f"\t{access}",
        "\tb.ne	.L4",
    ]
    assert list(hot_loops(TARGETS["neon"], "\n".join(lines))) == [("exp_row", count)]
