"""The fingerprint of a machine, by which runs can be compared."""

import json
import platform
import re
import socket
from pathlib import Path

import numpy as np

import pyce
from pyce import _caches, _machine


def test_fingerprint():
    about = _machine.fingerprint()
    assert re.fullmatch(r"[a-z0-9-]+", about["kind"])
    assert f"{pyce.get_num_threads()}-threads" in about["kind"]
    assert about["processors"] >= 1
    assert all(10**3 < size < 10**10 for size in about["caches"].values())
    assert about["versions"]["numpy"] == np.__version__
    assert about["backend"] == pyce.get_backend()
    assert about["isas"] == pyce.info()["isas"]
    assert re.fullmatch(r"(family \d+, model \d+)?", about["model"])
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
    assert kind == "some-cpu-2-5-ghz-linux-x86-64-8-processors-32-kib-32-mib-avx2-8-threads"
    assert _machine.kind({**about, "isas": ["avx2", "scalar"]}) == kind
    for name, other in (
        ("processors", 4),
        ("isa", None),
        ("isas", ["avx512", "avx2"]),
        ("threads", 4),
        ("processor", "Else"),
        ("caches", {"L1d": 3 * 2**14, "L3": 2**25}),
    ):
        assert _machine.kind({**about, name: other}) != kind
    small = _machine.kind({**about, "caches": {"L1d": 2**20 - 2**10, "L2": 2**20}})
    assert "1023-kib-1-mib" in small


def test_caches(monkeypatch, tmp_path):
    """As Linux lists them, of a processor with a cache for instructions and a broken entry."""
    monkeypatch.setattr(_caches, "_FOLDER", tmp_path)
    last_cache = _caches.last_cache.__wrapped__
    assert _caches.caches() == {}
    assert 2**20 <= last_cache() <= 2**30
    entries = (("1", "Data", "48K"), ("1", "Instruction", "999999K"), ("2", "Unified", "2048K"))
    for number, entry in enumerate((("3", "Unified", None), *entries, ("4", "Unified", "0"))):
        folder = tmp_path / f"index{number}"
        folder.mkdir()
        for name, text in zip(("level", "type", "size"), entry, strict=True):
            if text is not None:
                (folder / name).write_text(f"{text}\n", encoding="utf-8")
    assert _caches.caches() == {"L1d": 48 * 2**10, "L2": 2**21}
    assert last_cache() == 2**21


def test_a_machine_that_c_was_held_on():
    about = {
        "processor": "Some CPU",
        "processors": 2,
        "caches": {},
        "isa": "avx2",
        "isas": ["avx512", "avx2", "scalar"],
        "threads": 2,
        "system": "Linux x86_64",
    }
    assert _machine.widest_isa(about) == "avx512"
    assert "avx2-of-avx512" in _machine.kind(about)
    assert _machine.isa_text(about) == "avx2, to which C was held on a processor with avx512"
    for isas in ({"isas": ["avx2", "scalar"]}, {"isas": []}):
        assert _machine.widest_isa({**about, **isas}) is None
        assert _machine.isa_text({**about, **isas}) == "avx2"
    assert _machine.isa_text({**about, "isa": None, "isas": []}) == "no C extension"
    assert _machine.processor_text(about) == "Some CPU"
    about["model"] = "family 25, model 17"
    assert _machine.processor_text(about) == "Some CPU (family 25, model 17)"


def test_the_model_of_a_processor(monkeypatch):
    entries = "model name\t: Some CPU\ncpu family\t: 25\nmodel\t\t: 17\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"{entries}\n{entries}")
    assert (_machine.processor(), _machine.model()) == ("Some CPU", "family 25, model 17")
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "processor\t: 0\nBogoMIPS\t: 50.00\n")
    assert _machine.model() == ""
    for entry in ("cpu family\t: 25\n", "model\t\t: 17\n"):
        monkeypatch.setattr(Path, "read_text", lambda *_, text=entry, **__: text)
        assert _machine.model() == ""
    assert _machine.processor() in (platform.processor(), platform.machine())
