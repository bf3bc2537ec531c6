"""A section for locust's HTML report: the objectives, the load, and the meaning of its rows."""

import html
from collections.abc import Sequence
from pathlib import Path

from loadtest.slo import KINDS, Verdict

STYLE = (
    "<style>#about{max-width:70rem;margin:0 auto;padding:1rem 2rem;font:15px/1.5 system-ui,sans-serif;"
    "color:#222;background:#fff}#about table{border-collapse:collapse;margin-bottom:1rem}#about td,#about th"
    "{padding:.2rem 1.5rem .2rem 0;text-align:left;vertical-align:top}#about .met{color:#17692d}"
    "#about .missed{color:#b3261e;font-weight:bold}</style>"
)
NOTES = (
    "Milliseconds, as locust counts them: from 100 on in steps of 10, from 1000 on in steps of 100. The Aggregated row "
    "and the charts count requests only (WHOLE and STREAM). A request fails by its HTTP status, by a stream that "
    "breaks off or says nothing, and by a model's column that is missing or failed; such a column fails in its COLUMN "
    "row as well. chat asks one model alone, task asks all that can, fan-out does so by OpenAI's door."
)


def summary(verdicts: Sequence[Verdict]) -> str:
    """Return the verdicts as text for the terminal."""
    missed = sum(not verdict.met for verdict in verdicts)
    last = f"{missed} of {len(verdicts)} SLOs MISSED." if missed else f"All {len(verdicts)} SLOs met."
    return "\n".join([*map(str, verdicts), last])


def preface(path: Path, load: str, verdicts: Sequence[Verdict]) -> None:
    """Put a section before everything else in locust's report. load: a sentence about it."""
    path.write_text(path.read_text().replace("<body>", f"<body>{_section(load, verdicts)}", 1))


def _section(load: str, verdicts: Sequence[Verdict]) -> str:
    missed = sum(not verdict.met for verdict in verdicts)
    result = f"{missed} of {len(verdicts)} objectives missed" if missed else "all objectives met"
    objectives = "".join(
        f'<tr><td class="{mark}">{mark}</td><td>{html.escape(verdict.text)}</td>'
        f"<td>{html.escape(verdict.seen)}</td></tr>"
        for verdict in verdicts
        for mark in ["met" if verdict.met else "missed"]
    )
    table = f"<table><tr><th></th><th>objective</th><th>seen</th></tr>{objectives}</table>"
    rows = "".join(f"<tr><td>{kind}</td><td>{meaning}</td></tr>" for kind, meaning in KINDS.items())
    return (
        f'{STYLE}<section id="about"><h1>Load test of Diptych: {result if verdicts else "no objectives set"}</h1>'
        f"<p>{html.escape(load)}</p>{table if verdicts else ''}"
        f"<h2>The types of rows below</h2><table>{rows}</table><p>{NOTES}</p></section>"
    )
