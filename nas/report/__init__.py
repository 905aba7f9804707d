"""`report.html`: what a search found and why, in one file that needs nothing else."""

from nas.report.page import render as render
from nas.report.writer import ReportWriter as ReportWriter
from nas.report.writer import write_report as write_report
