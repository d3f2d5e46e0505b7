"""Collect the results of a check: the tree with its counts, and faults by kind, each one sentence that names its
token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List


@dataclass
class Folder:
    """Hold a folder of the tree: the files that the tables name there, and the files present."""

    name: str
    expected: int = 0
    found: int = 0  # of the expected ones
    others: int = 0  # files that no table names
    needed: bool = True  # by this package, for the samples in question

    def line(self) -> str:
        notes = []
        if self.expected > self.found:
            notes.append(f"{self.expected - self.found} missing")
        if self.others:
            notes.append(f"{self.others} not in the tables")
        if not self.needed:
            notes.append("not read by tpvformer")
        return f"  {self.name:<32} {self.expected:>9} {self.found:>9}  {', '.join(notes)}".rstrip()


@dataclass
class Report:
    """Collect lines for the user; ``faults`` decide the exit status, ``notes`` do not."""

    root: str
    folders: List[Folder] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)
    faults: Dict[str, List[str]] = field(default_factory=dict)  # by kind, in the order they were met
    checked: str = ""

    def fault(self, kind: str, text: str) -> None:
        """Add a fault of a kind, such as "images"."""
        self.faults.setdefault(kind, []).append(" ".join(text.split()))

    @property
    def count(self) -> int:
        return sum(map(len, self.faults.values()))

    def lines(self, limit: int) -> List[str]:
        """Return the report as text, at most ``limit`` faults of a kind."""
        rows = [f"{self.root:<34} {'expected':>9} {'found':>9}"] if self.folders else []
        rows += [folder.line() for folder in self.folders]
        rows += [f"note: {note}" for note in self.notes]
        for kind, texts in self.faults.items():
            rows += [f"{kind}: {text}" for text in texts[:limit]]
            if len(texts) > limit:
                rows.append(f"{kind}: {len(texts) - limit} more, which --limit {len(texts)} lists")
        if self.checked:
            rows.append(self.checked)
        rows.append(f"{self.count} faults" if self.count else "no faults")
        return rows
