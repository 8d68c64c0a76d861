"""The report of a run: one HTML file, drawn from ``results.json`` alone."""

from experiments.report.build import build_report

__all__ = ["build_report"]
