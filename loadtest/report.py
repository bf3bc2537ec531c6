"""What locust's HTML report does not say: which objectives were met, what was asked, and what its rows are."""

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


def told(verdicts: Sequence[Verdict]) -> str:
    """For the terminal."""
    missed = sum(not verdict.met for verdict in verdicts)
    last = f"{missed} of {len(verdicts)} SLOs MISSED." if missed else f"All {len(verdicts)} SLOs met."
    return "\n".join([*map(str, verdicts), last])


def preface(path: Path, asked: str, verdicts: Sequence[Verdict]) -> None:
    """Puts a section before everything else in locust's report. asked: the load in one sentence."""
    said = path.read_text()
    path.write_text(said.replace("<body>", f"<body>{_section(asked, verdicts)}", 1))


def _section(asked: str, verdicts: Sequence[Verdict]) -> str:
    missed = sum(not verdict.met for verdict in verdicts)
    verdict = f"{missed} of {len(verdicts)} objectives missed" if missed else "all objectives met"
    objectives = "".join(
        f'<tr><td class="{_mark(one)}">{_mark(one)}</td><td>{html.escape(one.text)}</td>'
        f"<td>{html.escape(one.seen)}</td></tr>"
        for one in verdicts
    )
    table = f"<table><tr><th></th><th>objective</th><th>seen</th></tr>{objectives}</table>"
    rows = "".join(f"<tr><td>{kind}</td><td>{meaning}</td></tr>" for kind, meaning in KINDS.items())
    return (
        f'{STYLE}<section id="about"><h1>Load test of Diptych: {verdict if verdicts else "no objectives set"}</h1>'
        f"<p>{html.escape(asked)}</p>{table if verdicts else ''}"
        f"<h2>The types of rows below</h2><table>{rows}</table><p>{NOTES}</p></section>"
    )


def _mark(verdict: Verdict) -> str:
    return "met" if verdict.met else "missed"
