"""Which instruction sets an x86-64 machine has: csrc/kernels/cpu_x86.h."""

import platform
import subprocess
from pathlib import Path

import pytest
from test_vmath import ROOT, compiler

if platform.machine().lower() not in ("x86_64", "amd64"):
    pytest.skip("these are about x86-64", allow_module_level=True)

FMA, AVX2, AVX512 = 1, 2, 4  # CPU_… of the header
# Register C of leaf 1: FMA, XGETBV, AVX, F16C. Register B of leaf 7: AVX2, AVX-512 F, DQ, BW, VL.
LEAF1 = (12, 27, 28, 29)
LEAF7 = (5, 16, 17, 30, 31)
SSE, AVX, ZMM = 0x1 | 0x2, 0x4, 0xE0


@pytest.fixture(scope="module")
def cpu(tmp_path_factory):
    """The output of tests/c/cpu.c, as numbers."""
    program = tmp_path_factory.mktemp("cpu") / "cpu"
    source = Path(__file__).parent / "cpu.c"
    command = [*compiler(), "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function"]
    command += [f"-I{ROOT / 'csrc'}", "-o", str(program), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr

    def run(*registers):
        words = [str(program), *map(hex, registers)]
        return [int(n) for n in subprocess.check_output(words, text=True, timeout=600).split()]

    return run


def bits(numbers, without=None):
    return sum(1 << n for n in numbers if n != without)


def test_the_compiler_finds_the_same(cpu):
    found, expected = cpu()
    assert found == expected


def test_a_set_needs_the_processor_and_the_system(cpu):
    leaf1, leaf7, saved = bits(LEAF1), bits(LEAF7), 0x1 | SSE | AVX | ZMM
    assert cpu(leaf1, leaf7, saved) == [FMA | AVX2 | AVX512]
    # The system saves no registers of AVX-512, or only some of them.
    for state in (5, 6, 7):
        assert cpu(leaf1, leaf7, saved & ~(1 << state)) == [FMA | AVX2]
    # It saves no registers of AVX, without which there are none of AVX-512.
    assert cpu(leaf1, leaf7, saved & ~AVX) == [0]
    assert cpu(leaf1, leaf7, saved & ~0x2) == [0]
    # The processor lacks a part.
    for bit in LEAF7[1:]:
        assert cpu(leaf1, bits(LEAF7, without=bit), saved) == [FMA | AVX2]
    assert cpu(leaf1, bits(LEAF7, without=5), saved) == [FMA]
    for bit in (12, 29):
        assert cpu(bits(LEAF1, without=bit), leaf7, saved) == [AVX2 | AVX512]
    assert cpu(bits(LEAF1, without=28), leaf7, saved) == [0]
    assert cpu(leaf1, 0, saved) == [FMA]
    assert cpu(0, 0, 0) == [0]
