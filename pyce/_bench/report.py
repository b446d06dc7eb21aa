"""Not there yet."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None: ...


def main(options: argparse.Namespace) -> int:
    raise NotImplementedError
