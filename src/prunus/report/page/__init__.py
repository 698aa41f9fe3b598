"""Pages of HTML that people show each other: the skeleton, its parts, and the page of one run.

Everything goes into one file: styles within, no script, no request. ``page`` makes a page of any
sections, and the other functions make what is in them.
"""

from .charts import Line, line_chart
from .rendering import beside, bullets, code, inline, link, prose, render
from .run_page import report_page, write_page
from .skeleton import Number, Section, page
from .tables import Cell, facts, heat_map, table

__all__ = [
    "Cell",
    "Line",
    "Number",
    "Section",
    "beside",
    "bullets",
    "code",
    "facts",
    "heat_map",
    "inline",
    "line_chart",
    "link",
    "page",
    "prose",
    "render",
    "report_page",
    "table",
    "write_page",
]
