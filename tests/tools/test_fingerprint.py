"""The fingerprint of a machine, by which runs can be compared."""

import json
import re
import socket

import numpy as np

import pyce
from pyce import _machine


def test_fingerprint():
    about = _machine.fingerprint()
    assert re.fullmatch(r"[a-z0-9-]+", about["kind"])
    assert f"{pyce.get_num_threads()}-threads" in about["kind"]
    assert about["processors"] >= 1
    assert all(10**3 < size < 10**10 for size in about["caches"].values())
    assert about["versions"]["numpy"] == np.__version__
    assert socket.gethostname() not in json.dumps(about).split('"')


def test_kinds_differ_where_figures_would():
    about = {
        "processor": "Some CPU @ 2.5 GHz",
        "processors": 8,
        "caches": {"L1d": 2**15, "L3": 2**25},
        "isa": "avx2",
        "threads": 8,
        "system": "Linux x86_64",
    }
    kind = _machine.kind(about)
    assert kind == "some-cpu-2-5-ghz-linux-x86-64-8-processors-32-mib-avx2-8-threads"
    for name, other in (("processors", 4), ("isa", None), ("threads", 4), ("processor", "Else")):
        assert _machine.kind({**about, name: other}) != kind
