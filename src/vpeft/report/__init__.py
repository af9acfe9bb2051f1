"""The report: tables, a picture and a page, made from the records of a ledger and from nothing else."""

from vpeft.report.make import Report, make_report
from vpeft.report.published import PublishedTable, published

__all__ = ["PublishedTable", "Report", "make_report", "published"]
