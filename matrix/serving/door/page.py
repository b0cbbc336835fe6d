"""Several pages of metrics made into one, each sample with labels that say where it comes from."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from matrix.serving.metric_names import OURS, SUFFIXES, UNIFORM, Sample, is_part, sample_of

_LE = re.compile(r'(?:^|,)\s*(le="[^"]*")')


@dataclass
class _Family:
    """All samples of one metric; `kind` is Prometheus' type, `help` as it stands on the page it came from."""

    kind: str = "untyped"
    help: str = ""
    samples: list[Sample] = field(default_factory=list)


class Page:
    """The page that is made.

    A metric whose samples come from several pages stands there once, as the format asks for; its type and help are
    those of the first page that has it.
    """

    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}

    def add(self, page: str, labels: Mapping[str, str], *, uniform: bool = False) -> None:
        """Add a page.

        Args:
            page: In Prometheus' text format; lines that aren't are left out.
            labels: Put on each sample. A label of the page's own with such a name gets `exported_` before it, as
                Prometheus does it.
            uniform: Also add what UNIFORM names, unless the page has it under that name already.
        """
        families = _families(page)
        if uniform:
            families |= {name: found for name, found in _uniform(families).items() if name not in families}
        ours = ",".join(label(name, value) for name, value in labels.items())
        clash = re.compile(rf'(^|,)\s*({"|".join(labels)})(?==")') if labels else None
        for name, family in families.items():
            into = self._families.setdefault(name, _Family(family.kind, family.help))
            for sample in family.samples:
                theirs = clash.sub(r"\1exported_\2", sample.labels) if clash else sample.labels
                into.samples.append(sample._replace(labels=f"{ours},{theirs}" if ours and theirs else ours or theirs))

    def text(self) -> str:
        """All of it."""
        return "".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for name, family in self._families.items():
            if not family.samples:
                continue
            if family.help:
                yield f"# HELP {name} {family.help}\n"
            yield f"# TYPE {name} {family.kind}\n"
            for sample in family.samples:
                yield f"{sample.name}{{{sample.labels}}} {sample.value}\n"


def label(name: str, value: str) -> str:
    """A label as it stands between the braces."""
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'{name}="{escaped}"'


def _families(page: str) -> dict[str, _Family]:
    found: dict[str, _Family] = {}
    current = ""
    for line in page.splitlines():
        if line.startswith(("# HELP ", "# TYPE ")):
            # Of the words behind the name a help may have none.
            _, what, current, *rest = line.split(" ", 3)
            family = found.setdefault(current, _Family())
            if what == "TYPE":
                family.kind = rest[0].strip() if rest else "untyped"
            else:
                family.help = rest[0] if rest else ""
        elif sample := sample_of(line):
            name = sample.name
            if name != current and not (name.startswith(current) and name[len(current) :] in SUFFIXES):
                current = name
            found.setdefault(current, _Family()).samples.append(sample)
    return found


def _uniform(families: Mapping[str, _Family]) -> dict[str, _Family]:
    """The figures that every app has, from those of an engine; one series for each, however many the engine has."""
    found: dict[str, _Family] = {}
    for ours, metric in UNIFORM.items():
        series: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        for source in metric.sources:
            for sample in families[source].samples if source in families else ():
                if not is_part(sample.labels):
                    bound = _LE.search(sample.labels)
                    series[OURS[sample.name], bound[1] if bound else ""].append(float(sample.value))
        if series:
            combine = max if metric.most else sum
            samples = [Sample(name, labels, f"{combine(values):.17g}") for (name, labels), values in series.items()]
            found[ours] = _Family(metric.kind, metric.help, samples)
    return found
