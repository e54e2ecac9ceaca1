"""Is a set of the survey here as it should be: its files, its listed pictures, its counts, its classes?"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from emblema.core.errors import BadData
from emblema.data.datasets import Records
from emblema.data.layouts import Located, read
from emblema.data.survey_card import SurveySet

if TYPE_CHECKING:
    from rich.console import Group

SHOWN = 20
SHOTS = 16  # of the base-to-novel counts


@dataclass
class Verdict:
    """The finding: `problems` make it fail; `warnings` say what is less than the whole set, or not CoOp's."""

    name: str
    path: str
    layout: str
    records: int = 0
    splits: dict[str, dict[str, int]] = field(default_factory=dict)  # split -> found, expected
    classes: int = 0
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def _counts(self) -> list[str]:
        """What the counts of the splits say in words, where they are not those of the whole set."""
        counts = ((s, c["found"], c["expected"]) for s, c in self.splits.items())
        return [f"{s}: {have:,} of {want:,} records" for s, have, want in counts if want and have != want]

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """All of it, for `json.dumps`."""
        return {**asdict(self), "ok": self.ok}

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        lines = [Text(f"{self.name}: {self.layout} layout at {self.path}", style="bold")]
        for split, count in self.splits.items():
            of = f" of {count['expected']:,}" if count["expected"] else ""
            lines.append(Text(f"  {split:<6} {count['found']:,}{of} records"))
        lines += [Text(f"! {p}", style="red") for p in self.problems[:SHOWN]]
        if len(self.problems) > SHOWN:
            lines.append(Text(f"! and {len(self.problems) - SHOWN} more", style="red"))
        lines += [Text(f"  {w}", style="yellow") for w in self.warnings if w not in self._counts]
        lines += [Text(f"  {n}") for n in self.notes]
        return Group(*lines, Text("fails" if self.problems else "passes", style="red" if self.problems else "green"))


def verify(row: SurveySet, at: Located, complete: bool = False) -> Verdict:
    """Check a set where it was found: files of its layout, every listed picture, counts, classes.

    A part of a set passes with a warning of its counts ("5 of 10,000 records"), unless it must be `complete`.
    """
    verdict = Verdict(row.name, str(at.root), at.layout.reader, problems=list(at.missing))
    if not at.missing:
        try:
            records = read(row, at)
        except BadData as error:
            verdict.problems.append(str(error))
        else:
            _look(verdict, row, at, records)
    if at.layout != row.layouts[0] and row.layouts[0].reader == "zhou":
        file = row.layouts[0].options["file"]
        verdict.warnings.append(f"no {file} at {at.root / file}: these are not the splits of CoOp's numbers")
    if complete:
        verdict.problems, verdict.warnings = verdict.problems + verdict.warnings, []
    return verdict


def _look(verdict: Verdict, row: SurveySet, at: Located, records: Records) -> None:
    verdict.problems += [f"{s.key}: {s.reason}" for s in records.report.skips]
    verdict.records, verdict.classes = len(records), len(records.class_names)
    verdict.notes += records.report.notes
    found, expected = records.splits or {"all": len(records)}, dict(at.layout.sizes)
    if "all" in expected:
        found = {"all": len(records)}
    for split in {**expected, **found}:
        verdict.splits[split] = {"found": found.get(split, 0), "expected": expected.get(split, 0)}
    verdict.warnings += verdict._counts
    used = {v for v in records.labels if v is not None}
    if records.class_names and used and len(used) < len(records.class_names):
        first = next(n for i, n in enumerate(records.class_names) if i not in used)
        lacking = len(records.class_names) - len(used)
        verdict.warnings.append(f"{lacking} of {len(records.class_names)} classes have no record, first {first!r}")
    if row.base and at.layout == row.layouts[0] and expected == found:
        verdict.problems += compare_base(row, base_counts(records))


def compare_base(row: SurveySet, have: tuple[int, int, int]) -> list[str]:
    """What differs from the base half in CoCoOp's logs: its counts tell whether labels are in their order."""
    names = ("base classes", f"{SHOTS}-shot pictures", "base test pictures")
    told = [f"{h:,} {name} (expected {e:,})" for h, name, e in zip(have, names, row.base) if h != e]
    return [f"base-to-novel: {', '.join(told)}; is this another revision of the split file?"] if told else []


def base_counts(records: Records, shots: int = SHOTS) -> tuple[int, int, int]:
    """(base classes, few-shot pictures of them, test pictures of them): the first half of the labels, rounded up."""
    base = -(-len(records.class_names) // 2)
    count = lambda split: Counter(v for v in records.split(split).labels if v is not None and v < base)
    return base, sum(min(shots, n) for n in count("train").values()), sum(count("test").values())
