"""After the sabotage suite: how many ways were tried, and how each of them came out."""

from __future__ import annotations

from collections import Counter


def pytest_terminal_summary(terminalreporter):
    reports = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    outcomes = Counter(
        value
        for report in reports
        if report.when == "call"
        for key, value in report.user_properties
        if key == "sabotage"
    )
    if outcomes:
        said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        undetected = "" if "undetected" in outcomes else ", 0 undetected"
        terminalreporter.write_line(f"sabotage: {outcomes.total()} ways tried: {said}{undetected}")
