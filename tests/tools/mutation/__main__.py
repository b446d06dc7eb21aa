"""Mutation testing: one change at a time in a copy of the sources, and whether tests see it.

    PYTHONPATH=. python tests/tools/mutation --sample 300 --seed 1    about that many mutants
    PYTHONPATH=. python tests/tools/mutation --each 5 --seed 1        that many of each file
    PYTHONPATH=. python tests/tools/mutation --all                    every one: many hours

The mutants written by hand, in by_hand.py, are always among them. judge_c.py and judge_python.py
say how mutants are judged. One that hangs or crashes is killed; one that does not compile does not
count. The exit status is 1 if fewer than 95 % are killed of those that equivalent.py does not
explain, or, without --only, if an entry there or in by_hand.py no longer matches the sources.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import random
import re
import shutil
import sys
import time
from collections import Counter, defaultdict
from dataclasses import asdict

import judge_c
import judge_python
import rules
from by_hand import BY_HAND
from equivalent import Equivalents
from judge_c import BUILD, Copy
from mutant import Mutant, source
from of_c import mutants_of_c
from of_python import mutants_of_python

LEAST = 0.95
LOG = BUILD / "verdicts.jsonl"


def mutants_by_hand(files: list[str]) -> tuple[list[Mutant], list[str]]:
    """The mutants of by_hand.py, and what of it is not found exactly once in its files."""
    found, missing = [], []
    for pattern, old, new, name in BY_HAND:
        matching = [f for f in files if re.search(pattern, f)]
        places = [f for f in matching for _ in range(source(f).count(old))]
        if len(places) == 1:
            begin = source(places[0]).index(old)
            found.append(Mutant(places[0], begin, begin + len(old), new, name))
        else:
            missing.append(f"{name}, {pattern}, found {len(places)} times: {old}")
    return found, missing


def every_mutant(files: list[str]) -> list[Mutant]:
    found = []
    for file in files:
        made = mutants_of_python(file) if file.endswith(".py") else mutants_of_c(file)
        found += {mutant.id: mutant for mutant in made}.values()
    return found


def sampled(mutants: list[Mutant], size: int, seed: int) -> list[Mutant]:
    """About `size` of them, from each file in proportion to the number of its mutants."""
    by_file = defaultdict(list)
    for mutant in mutants:
        by_file[mutant.file].append(mutant)
    chosen = []
    for file, some in by_file.items():
        share = max(1, round(size * len(some) / len(mutants)))
        chosen += random.Random(f"{seed} {file}").sample(some, min(share, len(some)))
    return chosen


def some_of_each(mutants: list[Mutant], most: int, seed: int) -> list[Mutant]:
    """At most `most` mutants of each file."""
    by_file = defaultdict(list)
    for mutant in mutants:
        by_file[mutant.file].append(mutant)
    return [
        mutant
        for file, some in by_file.items()
        for mutant in random.Random(f"{seed} {file}").sample(some, min(most, len(some)))
    ]


def report(mutants: list[Mutant], verdicts: dict[str, str], equivalents: Equivalents) -> bool:
    """Print a table and the survivors; whether enough were killed."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    survivors = []
    for mutant in mutants:
        verdict = verdicts.get(mutant.id)
        if verdict == "does not compile":
            counts[mutant.file]["none"] += 1
            continue
        if verdict is None:
            counts["all"]["unjudged"] += 1
            continue
        if verdict == judge_c.SAME:
            kind = "equivalent"
        elif verdict not in ("survived", "to be seen"):
            kind = "killed"
        elif equivalents.reason(mutant):
            kind = "equivalent"
        else:
            kind = "survived"
            survivors.append(mutant)
        counts[mutant.file][kind] += 1
        counts["all"][kind] += 1
    counts["all"]["none"] = sum(c["none"] for f, c in counts.items() if f != "all")
    print("| file | mutants | killed | equivalent | survived | killed of those not equivalent |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    share = 0.0
    for file, c in sorted(counts.items(), key=lambda item: (item[0] == "all", item[0])):
        total = c["killed"] + c["survived"]
        share = c["killed"] / total if total else 1.0
        print(f"| {file} | {total + c['equivalent']} | {c['killed']} | {c['equivalent']} "
              f"| {c['survived']} | {share:.1%} |")  # fmt: skip
    print(f"\n{counts['all']['none']} more did not compile.")
    print(f"There was no time for {counts['all']['unjudged']} more.")
    for mutant in survivors:
        before, old, new, after = mutant.hunk()
        verdict = verdicts[mutant.id]
        print(f"\n{verdict}: {mutant.file}:{mutant.line} ({mutant.name})")
        print(f"  {before}\n- {old}\n+ {new}\n  {after}")
    return share >= LEAST


class Session:
    """Judges mutants, on some copies of the tree at a time, and keeps the verdicts in a file."""

    def __init__(self, jobs: int, minutes: float | None, earlier: dict[str, str]):
        self.copies = [Copy() for _ in range(jobs)]
        self.jobs = jobs
        self.end = time.monotonic() + 60 * minutes if minutes else float("inf")
        self.verdicts = {id: "to be seen" if v == "survived" else v for id, v in earlier.items()}

    def judge(self, mutants: list[Mutant], equivalents: Equivalents) -> None:
        """All of them quickly, and thoroughly what is left of them and not known as equivalent."""
        try:
            with concurrent.futures.ThreadPoolExecutor(self.jobs) as executor:
                for thoroughly in (False, True):
                    before = "to be seen" if thoroughly else None
                    left = [m for m in mutants if self.verdicts.get(m.id) == before]
                    if thoroughly:
                        left = [m for m in left if not equivalents.reason(m)]
                    of_python = defaultdict(list)
                    for mutant in left:
                        if mutant.file.endswith(".py"):
                            of_python[rules.rule_of(mutant.file)].append(mutant)
                    waiting = [
                        executor.submit(self._judge_python, rule, some, thoroughly)
                        for rule, some in of_python.items()
                    ]
                    waiting += [
                        executor.submit(self._judge_c, mutant, thoroughly)
                        for mutant in left
                        if not mutant.file.endswith(".py")
                    ]
                    for done in waiting:
                        done.result()
        finally:
            for copy in self.copies:
                shutil.rmtree(copy.home, ignore_errors=True)

    def _judge_c(self, mutant: Mutant, thoroughly: bool) -> None:
        if time.monotonic() > self.end:
            return
        copy = self.copies.pop()
        begin = time.monotonic()
        try:
            self._note(mutant, copy.judge(mutant, thoroughly), begin)
        finally:
            self.copies.append(copy)

    def _judge_python(self, rule: rules.Rule, mutants: list[Mutant], thoroughly: bool) -> None:
        if time.monotonic() > self.end:
            return
        copy = self.copies.pop()
        begin = time.monotonic()
        try:
            for mutant, verdict in judge_python.judge(copy, rule, mutants, thoroughly):
                self._note(mutant, verdict, begin)
                begin = time.monotonic()
                if begin > self.end:
                    return
        finally:
            self.copies.append(copy)

    def _note(self, mutant: Mutant, verdict: str, begin: float) -> None:
        self.verdicts[mutant.id] = verdict
        seconds = time.monotonic() - begin
        print(f"{seconds:5.1f} s {mutant.file}:{mutant.line} {mutant.name}: {verdict}", flush=True)
        entry = {"id": mutant.id, "verdict": verdict, **asdict(mutant)}
        with open(LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def read_verdicts() -> dict[str, str]:
    """{id of a mutant: verdict} of earlier runs."""
    if not LOG.exists():
        return {}
    entries = map(json.loads, LOG.read_text(encoding="utf-8").splitlines())
    return {entry["id"]: entry["verdict"] for entry in entries}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--all", action="store_true", help="every mutant")
    group.add_argument("--sample", type=int, metavar="N", help="about N mutants")
    group.add_argument("--each", type=int, metavar="N", help="at most N mutants of each file")
    group.add_argument("--judged", action="store_true", help="those of earlier runs; see --resume")
    group.add_argument("--list", action="store_true", help="print how many there are, and end")
    parser.add_argument("--seed", default=0, type=int, help="of the sample and the order")
    parser.add_argument("--only", default="", metavar="REGEX", help="in files that match")
    parser.add_argument("--jobs", default=1, type=int, choices=(1, 2))
    parser.add_argument("--minutes", type=float, help="begin no mutant after this time")
    parser.add_argument("--resume", action="store_true", help="judge no killed mutant again")
    asked = parser.parse_args()

    files = [*judge_c.files(), *rules.modules()]
    some = [file for file in files if re.search(asked.only, file)]
    mutants = every_mutant(some)
    by_hand, missing = mutants_by_hand(some)
    equivalents = Equivalents()
    if asked.only:  # the lists are of all files
        missing = []
    else:
        missing += [f"equivalent: {line}" for line in equivalents.unused(mutants)]
        missing += rules.unjudged(files)
    if asked.list:
        for file, count in Counter(m.file for m in (*mutants, *by_hand)).items():
            print(f"{count:6d} {file}")
    else:
        if asked.sample is not None:
            mutants = sampled(mutants, asked.sample, asked.seed)
        if asked.each is not None:
            mutants = some_of_each(mutants, asked.each, asked.seed)
        random.Random(asked.seed).shuffle(mutants)
        earlier = read_verdicts() if asked.resume or asked.judged else {}
        if asked.judged:
            mutants = [m for m in mutants if m.id in earlier]
        mutants = list({m.id: m for m in (*by_hand, *mutants)}.values())
        BUILD.mkdir(parents=True, exist_ok=True)
        of_c = frozenset(m.file for m in mutants if not m.file.endswith(".py"))
        if of_c:
            judge_c.prepare(of_c)
        session = Session(asked.jobs, asked.minutes, earlier)
        session.judge(mutants, equivalents)
        if not report(mutants, session.verdicts, equivalents):
            missing.append(f"fewer than {LEAST:.0%} were killed")
    if missing:
        sys.exit("\n".join(["", "No longer in the sources, or wrong:", *missing]))


if __name__ == "__main__":
    main()
