"""The example of data-parallel training: the same on one process and on two.

The two have unequal parts of a batch.
"""

import os
import re
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn", minversion="1.6")
EXAMPLES = Path(__file__).parents[2] / "examples"
if not EXAMPLES.is_dir():
    pytest.skip("examples are not part of an installed package", allow_module_level=True)
if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

OPTIONS = ["--epochs=2", "--batch=63", "--width=16", "--rate=0.01"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def test_the_training_is_the_same_on_any_number_of_processes(run_python, monkeypatch, capsys):
    script = str(EXAMPLES / "ddp.py")
    several = run_python(*TORCHRUN, script, *OPTIONS).stdout.splitlines()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(EXAMPLES))
    try:
        import ddp

        ddp.main(ddp.parser().parse_args([*OPTIONS, "--threads=1"]))
    finally:
        torch.set_num_threads(before)
        sys.modules.pop("ddp", None)
    alone = capsys.readouterr().out.splitlines()
    assert len(several) == len(alone) == 3
    for ours, theirs in zip(several, alone, strict=True):
        own, other = (float(re.findall(r"\d\.\d{4}", line)[0]) for line in (ours, theirs))
        assert own == pytest.approx(other, abs=2e-4 if "loss" in ours else 0.006)
    assert several[0].startswith("epoch 1/2: loss ")
    share = max(1, len(os.sched_getaffinity(0)) // 2) if hasattr(os, "sched_getaffinity") else 1
    assert f"Processes: 2, threads of each: {share}." in several[-1]
    assert "Processes: 1, threads of each: 1." in alone[-1]
    assert float(re.findall(r"\d\.\d{4}", alone[-1])[0]) > 0.75
