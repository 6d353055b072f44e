"""The first page of the report by `snakemake --report`: the means figure and the table, above the rule graph.

Snakemake shows the description of the workflow (``workflow/report/workflow.rst``) beside a graph of all rules. The
description calls ``first_page``, which the rules files import, with the results. The graph comes below it.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from langptune.reading import read_plain

FIGURE, TABLE = "means.png", "table.html"
STYLE = """
<style>
  /* The page of the description: from the top, over the whole width, the rule graph below. */
  #app div:has(> div > div > .prose .first-page) { align-items: flex-start; }
  #app div:has(> div > .prose .first-page) { flex-direction: column; align-items: stretch; min-width: 0; }
  .prose:has(.first-page) { max-width: none !important; }
  .first-page { display: flex; flex-wrap: wrap; gap: 1rem 2rem; margin-bottom: 2rem; }
  .first-page h2 { flex: 1 0 100%; margin: 0; }
  .first-page figure { flex: 1 1 24rem; max-width: 42rem; margin: 0; }
  .first-page figure img { width: 100%; margin: 0; }
  .first-page > div { flex: 2 1 30rem; min-width: 0; }
  .first-page > div div { overflow-x: auto; }
  .first-page table { white-space: nowrap; font-variant-numeric: tabular-nums; font-size: 0.75rem; }
  /* Metrics come first: models, seeds, sessions and trials are in the table's own page. */
  .first-page > div > div:first-of-type :is(td, th):is(:nth-child(2), :nth-child(3), :nth-child(4), :nth-child(5)) {
    display: none;
  }
  .first-page td, .first-page th { padding: 0.15rem 0.5rem; border-bottom: 1px solid #ddd; }
  .first-page td:first-child, .first-page th:first-child { position: sticky; left: 0; background: #fff; }
</style>
"""


def first_page(categories: Mapping[Any, Mapping[Any, Iterable[Any]]]) -> str:
    """The means figure with its caption and the table of each dataset, as reStructuredText.

    Args:
        categories: the report's results as Snakemake passes them to a description: category -> subcategory -> results.
            The category of a comparison's results is its dataset. A dataset without both files is left out.
    """
    parts = []
    for category, groups in categories.items():
        found = {record.path.name: record for records in groups.values() for record in records}
        if FIGURE in found and TABLE in found:
            parts.append(_section(category.name, found[FIGURE], found[TABLE].path))
    # A raw directive contains the indented lines below it, including empty ones.
    lines = "".join([STYLE, *parts]).splitlines() if parts else []
    return "\n".join([".. raw:: html", "", *(f"   {line}" for line in lines), ""]) if lines else ""


def _section(dataset: str, figure: Any, table: Path) -> str:
    # Short lines: docutils refuses those over 10,000 characters. Browsers ignore the line breaks.
    image = base64.encodebytes(read_plain(figure.path)).decode()
    body = read_plain(table).decode().partition("<body>")[2].partition("</body>")[0]
    return (
        f'<div class="first-page"><h2>{html.escape(dataset)}</h2>\n'
        f'<figure><img alt="Means with intervals" src="data:image/png;base64,{image}">\n'
        f"<figcaption>{figure.caption}</figcaption></figure>\n<div>{body}</div></div>\n"
    )
