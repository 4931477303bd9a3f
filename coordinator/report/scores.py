"""The report's section about how good the versions are, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from coordinator import views
from coordinator.report import html
from coordinator.report.gather import Report

METRICS_SHOWN: Final = 16
ALARMS_SHOWN: Final = 20
COLUMNS: Final = (
    ("metric", ""),
    ("version", "n"),
    ("devices", "n"),
    ("mean", "n"),
    ("10%", "n"),
    ("median", "n"),
    ("90%", "n"),
    ("worst tenth", "n"),
)
SPREAD: Final = ("mean", "low", "median", "high", "worst")


def section(report: Report) -> str:
    """Nothing where nothing was measured."""
    parts = [*_devices(report), *_coordinator(report), *_followed(report)]
    return html.section("How good it is", *parts) if parts else ""


def _devices(report: Report) -> Iterator[str]:
    if not report.rounds or not report.rounds[-1]["evaluation"]:
        return
    newest = report.rounds[-1]
    rows = [
        [
            html.text(name),
            str(newest["version"] - 1),
            str(spread["devices"]),
            *(f"{spread[key]:.4g}" for key in SPREAD),
        ]
        for name, spread in list(newest["evaluation"].items())[:METRICS_SHOWN]
    ]
    yield "<p>On the devices' held-out parts; quantiles, and the worst tenth's mean, are over devices.</p>"
    yield html.table(COLUMNS, rows)


def _coordinator(report: Report) -> Iterator[str]:
    scored = [one for one in report.central if not one["problem"]]
    if scored:
        newest = scored[-1]
        told = ", ".join(f"{html.text(name)} {value:.4g}" for name, value in newest["metrics"].items())
        yield f"<p>At the coordinator, version {newest['version']}: {told}.</p>"


def _followed(report: Report) -> Iterator[str]:
    known = views.summary(report.job)["evaluation"]
    if known is None:
        return
    if best := known["best"]:
        score = f"{html.text(known['metric'])} {best['score']:.6g}"
        yield f"<p>The best one is version {best['version']}: {score} ({known['by']}).</p>"
    if known["problem"]:
        yield f"<p>Not evaluated at the coordinator: {html.text(known['problem'])}</p>"
    alarms = known["alarms"][-ALARMS_SHOWN:]
    if alarms:
        rows = [[str(one["version"]), one["by"], html.text(one["text"])] for one in alarms]
        yield html.table((("alarm at version", "n"), ("by", ""), ("what", "text")), rows)
