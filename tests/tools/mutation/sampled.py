"""Runs pytest with at most MOST cases of each test function: python sampled.py MOST ARGUMENT…"""

from __future__ import annotations

import collections
import sys

import pytest


def few(items: list, most: int) -> list:
    """At most `most` cases of each test function, spread over all of its cases."""
    cases = collections.defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    return [item for some in cases.values() for item in some[:: -(-len(some) // most)]]


class Sample:
    def __init__(self, most: int):
        self.most = most

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        items[:] = few(items, self.most)


if __name__ == "__main__":
    sys.exit(pytest.main(sys.argv[2:], plugins=[Sample(int(sys.argv[1]))]))
