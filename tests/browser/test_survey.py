"""The questionnaire in a browser: from consent to a saved file, and that file through the analysis."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from langptune.survey import analysis
from langptune.survey.assignment import assign
from langptune.survey.responses import read_responses
from tests.unit.test_survey import make, numbers

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """A small survey of hostile texts: its page's address and its codebook."""
    folder = tmp_path_factory.mktemp("survey")
    codebook = make(folder, hostile=True, questions=3, checks=1)
    return (folder / "questionnaire.html").as_uri(), codebook


def shown(page, codebook):
    """The pair on the page and the roles of its two sides, recognised by their texts."""
    left, right = (page.locator(f"section[aria-labelledby=profile-{side}] p").inner_text() for side in "AB")
    for pair in codebook.pairs:
        texts = {role: pair.texts[name] for name, role in pair.roles.items()}
        for one, other in (tuple(texts), tuple(texts)[::-1]):
            if [" ".join(texts[r].split()) for r in (one, other)] == [" ".join(t.split()) for t in (left, right)]:
                return pair, one, other
    raise AssertionError(f"no such pair: {left} | {right}")


def wanted(left: str, right: str) -> list[str]:
    """Labels to choose: the trained profile a bit better, the reference easier; on a check, what its text asks for."""
    if "instruction" in (left, right):
        side = "A" if left == "instruction" else "B"
        return [f"{side}, much better", "About equal", "No", "No"]
    trained, reference = ("A", "B") if left == "trained" else ("B", "A")
    return [f"{trained}, a bit better", reference, *("No" if r == "trained" else "Yes" for r in (left, right))]


def begin(page, url):
    page.set_default_timeout(10_000)
    page.goto(url)
    page.get_by_label("I agree to take part").check()
    page.get_by_role("button", name="I agree, begin").click()
    page.get_by_role("button", name="Show the first pair").click()


def answer(page, labels):
    for group, label in zip(page.get_by_role("group").all(), labels, strict=True):
        group.get_by_label(label, exact=True).check()


def fill(page, codebook, comment="synthetic: true"):
    """Answer all pairs by mouse, from the first to the last."""
    count = len(codebook.pairs)
    for at in range(count):
        assert page.locator("h1").inner_text() == f"Pair {at + 1} of {count}"
        _, left, right = shown(page, codebook)
        answer(page, wanted(left, right))
        page.get_by_role("button", name="Next pair" if at + 1 < count else "Continue").click()
    page.get_by_label("Comment (optional)").fill(comment)
    page.get_by_role("button", name="Finish").click()


def saved(page, folder: Path) -> Path:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save my answers").click()
    name = download.value.suggested_filename
    download.value.save_as(folder / f"synthetic-{name}")
    return folder / f"synthetic-{name}"


def check_analysis(folder, codebook):
    used, excluded = read_responses(folder, codebook, 0)
    assert excluded == [] and len(used) == 1
    result = numbers(analysis.analyse(codebook, used, excluded, 100, 0.95, 0))
    assert result["prefer_trained"]["value"] == result["easier_reference"]["value"] == 1
    assert result["prefer_trained_much"]["value"] == 0
    assert (result["unsupported_trained"]["value"], result["unsupported_reference"]["value"]) == (0, 1)
    assert result["consistency"]["value"] == 1
    return used[0]


def session_storage(page):
    return page.evaluate("Object.keys(sessionStorage).length + Object.keys(localStorage).length")


def test_by_mouse_from_consent_to_analysis(page, survey, tmp_path):
    url, codebook = survey
    begin(page, url)
    fill(page, codebook)
    page.locator("summary").click()
    text = page.get_by_label("Your answers as text").input_value()
    path = saved(page, tmp_path)
    assert path.read_text() == text, "the text to copy is the file"
    response = json.loads(text)
    assert path.name == f"synthetic-langptune-response-{response['response']}.json"
    assert set(response) == {"schema", "survey", "response", "consent", "seed", "seconds", "answers", "comment"}
    page.get_by_text("Saved as langptune-response-").wait_for()
    assert session_storage(page) == 0, "nothing stays behind"
    analysed = check_analysis(tmp_path, codebook)
    assert analysed.comment == "synthetic: true" and analysed.consent
    page.reload()
    assert page.get_by_role("button", name="I agree, begin").is_visible()


def test_by_keyboard_alone(page, survey, tmp_path):
    url, codebook = survey
    press, active = page.keyboard.press, lambda: page.evaluate("document.activeElement.textContent")
    page.goto(url)
    press("Tab")
    press("Enter")  # submits the form without agreement: an error, and the focus is on the missing box
    assert "Please tick the box" in page.get_by_role("alert").inner_text()
    press("Space")
    press("Enter")
    assert active() == "How it works", "a screen reader announces the new page"
    press("Tab")
    press("Enter")
    for at in range(len(codebook.pairs)):
        assert active().startswith(f"Pair {at + 1} of ")
        _, left, right = shown(page, codebook)
        for group, label in zip(page.get_by_role("group").all(), wanted(left, right), strict=True):
            press("Tab")
            options = [text.strip() for text in group.locator("label").all_inner_texts()]
            press("Space")
            for _ in range(options.index(label)):
                press("ArrowDown")
        press("Enter")
    assert active() == "Anything to add?"
    press("Tab")
    page.keyboard.type("synthetic")
    press("Tab")
    press("Enter")
    assert active() == "Thank you"
    press("Tab")
    with page.expect_download() as download:
        press("Enter")
    download.value.save_as(tmp_path / "synthetic-keyboard.json")
    assert check_analysis(tmp_path, codebook).comment == "synthetic"


def test_declining_stores_nothing(page, survey):
    page.goto(survey[0])
    page.get_by_role("button", name="I do not take part").click()
    assert "nothing was stored" in page.locator("main").inner_text()
    assert session_storage(page) == 0 and page.locator("button, input").count() == 0


def test_open_questions_back_and_reload(page, survey):
    url, codebook = survey
    begin(page, url)
    page.get_by_role("button", name="Next pair").click()
    assert page.get_by_role("alert").inner_text() == "4 questions are still open; they are marked above."
    assert page.evaluate("document.activeElement.name") == "preference"
    assert page.locator("fieldset[aria-describedby=form-error]").count() == 4
    _, left, right = shown(page, codebook)
    labels = wanted(left, right)
    answer(page, labels)
    assert page.get_by_role("alert").inner_text() == ""
    page.get_by_role("button", name="Next pair").click()
    second = shown(page, codebook)
    page.get_by_role("button", name="Back").click()
    assert page.locator("h1").inner_text().startswith("Pair 1")
    assert shown(page, codebook)[1:] == (left, right)
    chosen = [text.strip() for text in page.locator("label:has(:checked)").all_inner_texts()]
    assert chosen == labels, "answers are kept"
    page.get_by_role("button", name="Next pair").click()
    page.reload()
    assert shown(page, codebook) == second, "a reload loses nothing, and changes no side"


def test_sides_and_order_are_those_that_the_analysis_draws(page, survey):
    """Several respondents: the page draws its own seeds, and Python repeats the draw from each seed."""
    url, codebook = survey
    profiles = {pair.question: list(pair.roles) for pair in codebook.pairs}
    repeats = {pair.question: pair.repeats for pair in codebook.pairs if pair.repeats}
    seeds, starts = set(), set()
    page.add_init_script("sessionStorage.clear()")  # each visit counts as a new respondent
    for _ in range(6):
        begin(page, url)
        kept = json.loads(page.evaluate("Object.values(sessionStorage)[0]"))
        drawn = [(one["question"], one["left"], one["right"]) for one in kept["answers"]]
        assert drawn == assign(kept["seed"], profiles, repeats)
        question, left, right = drawn[0]
        roles = next(pair.roles for pair in codebook.pairs if pair.question == question)
        assert shown(page, codebook)[1:] == (roles[left], roles[right])
        seeds.add(kept["seed"])
        starts.add(tuple(drawn))
    assert len(seeds) == 6 and len(starts) > 1


def test_a_failed_attention_check_is_excluded(page, survey, tmp_path):
    url, codebook = survey
    begin(page, url)
    for _ in codebook.pairs:
        answer(page, ["About equal", "About equal", "No", "No"])
        page.get_by_role("button", name="Next pair").or_(page.get_by_role("button", name="Continue")).click()
    page.get_by_role("button", name="Finish").click()
    saved(page, tmp_path)
    used, excluded = read_responses(tmp_path, codebook, 0)
    assert used == [] and [left.reason for left in excluded] == ["failed attention check"]


@pytest.mark.parametrize("text_size", ["100%", "200%"])
def test_a_narrow_phone_needs_no_sideways_scrolling(page, survey, text_size):
    url, codebook = survey
    page.set_viewport_size({"width": 360, "height": 740})

    def fits():
        page.evaluate(f"document.documentElement.style.fontSize = '{text_size}'")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360

    page.goto(url)
    fits()
    begin(page, url)
    fits()
    boxes = [page.locator(f"section[aria-labelledby=profile-{side}]").bounding_box() for side in "AB"]
    assert boxes[1]["y"] >= boxes[0]["y"] + boxes[0]["height"], "one below the other"
    fill(page, codebook)
    page.locator("summary").click()
    fits()


def test_texts_have_enough_contrast_and_controls_have_names(page, survey):
    """WCAG AA (4.5 to 1) for every text on a page, computed from the rendered page."""
    url, _ = survey
    begin(page, url)
    page.get_by_role("button", name="Next pair").click()
    worst = page.evaluate(
        """() => {
        const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
        const light = c => { const [r, g, b] = c.map(v => linear(v / 255));
                             return .2126 * r + .7152 * g + .0722 * b; };
        const parse = c => c.match(/[0-9.]+/g).map(Number);
        const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
                              if (c.length < 4 || c[3] > 0) return c.slice(0, 3); } return [255, 255, 255]; };
        const found = [];
        for (const e of document.querySelectorAll('main *')) {
          if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
          const [a, b] = [light(parse(getComputedStyle(e).color).slice(0, 3)), light(behind(e))];
          found.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.textContent]);
        }
        return found.sort((a, b) => a[0] - b[0])[0];
    }"""
    )
    assert worst[0] >= 4.5, worst
    assert page.locator("fieldset:not(:has(> legend))").count() == 0
    for control in page.locator("input").all():
        assert control.evaluate("e => e.labels.length === 1 && e.labels[0].textContent.trim() !== ''")
    assert page.locator("html").get_attribute("lang") == "en"
