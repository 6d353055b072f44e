"""The first page of Snakemake's report: figure and table of each dataset, as reStructuredText that docutils accepts."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from docutils.core import publish_parts
from jinja2 import Environment

from langptune.comparison.pages import to_html
from langptune.report import first_page
from tests.conftest import ROOT


class Category(NamedTuple):
    """Like Snakemake's category, which has a name."""

    name: str


FIGURE = ROOT / "results/reference/ml-100k-demo/means.png"


@pytest.fixture
def shown(tmp_path):
    """Data that Snakemake passes to a description, for a dataset with all results and one without a table."""
    table = tmp_path / "table.html"
    table.write_text(to_html("**T**\n\n| Method | Models |\n|---|---|\n| A \\<b\\> | e |\n\n- a note\n", "T"))

    def record(path: Path) -> SimpleNamespace:
        rule = SimpleNamespace(module_globals={"first_page": first_page})
        return SimpleNamespace(path=path, caption="<p>What to see.</p>", job=SimpleNamespace(rule=rule))

    whole, part, figures, pages = map(Category, ("movies <i>", "books", "Other", "pages"))
    return {whole: {figures: [record(FIGURE)], pages: [record(table)]}, part: {figures: [record(FIGURE)]}}


def described(shown) -> str:
    """The description rendered with Jinja and docutils, as Snakemake does it."""
    template = (ROOT / "workflow/report/workflow.rst").read_text()
    config = SimpleNamespace(comparison=None, methods=["langptune-0"])
    text = Environment(trim_blocks=True, lstrip_blocks=True).from_string(template)
    files = [record for groups in shown.values() for records in groups.values() for record in records]
    rendered = text.render(snakemake=SimpleNamespace(config=config), categories=shown, files=files)
    return publish_parts(rendered, writer_name="html")["html_body"]


def test_the_description_has_figure_and_table_before_all_else(shown, capfd):
    page = described(shown)
    assert "system-message" not in page and "ERROR" not in capfd.readouterr().err
    image = re.search(r'src="data:image/png;base64,([^"]+)"', page)[1]
    assert base64.b64decode(image) == FIGURE.read_bytes() and len(image) > 10_000
    assert page.count('<div class="first-page">') == 1, "a dataset without a table is left out"
    assert "<h2>movies &lt;i&gt;</h2>" in page and "<p>What to see.</p>" in page
    assert "<td>A &lt;b&gt;</td>" in page and "<li>a note</li>" in page and "<body>" not in page
    assert page.index("</table>") < page.index("Every method ends in") < page.index("graph of the rules")


def test_a_report_without_a_comparison_has_no_first_page():
    assert first_page({}) == ""
    assert "first-page" not in described({})
