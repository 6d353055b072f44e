"""What a profile claims, claim by claim: genres, eras, titles, persons, and themes; liked or not."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from langptune.interpretability.tastes import Tastes, pattern
from langptune.interpretability.wording import COMMON, WORD, words

Kind = Literal["genre", "era", "title", "person", "theme"]

# A polarity ends with the sentence, or where a contrast begins. The colon of "Dislikes: horror" ends nothing. A run of
# such characters is tried from its first one alone: from each, a long run would take the square of its length.
CLAUSE = re.compile(
    r"(?<![.!?;\n])[.!?;\n]+(?=\s|$)|"
    r"(?:(?<!:)(?<!\bdislikes)(?<!\bavoids)(?<!\bhates)|(?<=\bdislikes:)|(?<=\bavoids:)|(?<=\bhates:)):+(?=\s|$)|"
    r"(?<!\bnothing )(?<!\banything )\bbut\b|\b(?:however|although|though|while|whereas)\b",
    re.IGNORECASE,
)
_NOT = r"(?:not|never|cannot|\w+n['’]t)"
_CANNOT = r"(?:(?:can|could)(?:not|n['’]t| not)|never|can['’]t)"
_ADVERB = r"(?:(?:really|actually|quite|at all|ever|often|easily|usually|possibly|particularly)\s+)?"
_OF = r"(?:tired?|tires|bored|sick|wear(?:y|ies)) (?:of|by|with)"
KEEN = re.compile(
    rf"\b(?:{_CANNOT}\s+{_ADVERB}(?:"
    r"(?:gets?|have|had) (?:quite )?enough|(?:be|been|feel|felt) (?:happier|more \w+|a (?:bigger|greater) \w+)|"
    r"(?:say|rave|recommend|praise|love|like|enjoy|watch|ask for) (?:\w+ )?(?:enough|more|better|too (?:much|highly))|"
    r"resist|wait|stop|live without|do without|go wrong|help)|"
    rf"{_NOT}\s+{_ADVERB}(?:miss(?:es|ed|ing)?|fails?|failed|(?:(?:gets?|getting|got|grows?|growing|is|are|be) )?{_OF}|"
    r"dislik\w+|hat(?:e|es|ed)|avoid\w*|mind(?:s|ed)?|averse|disappoint\w*|pass(?:es)? up|say no|sh(?:y|ies) away)|"
    r"no stranger to|nothing (?:but|beats|better)|hard (?:not to (?:like|love|enjoy)|to (?:dislike|hate|beat)))\b",
    re.IGNORECASE,
)
"""Likings that are worded as denials: "can't get enough of comedy", "never misses a western"."""
NEUTRAL = re.compile(
    rf"\b(?:{_NOT}\s+{_ADVERB}(?:only|just|merely|simply|exclusively|solely|limited|confined|restricted|necessarily|unlike|"
    r"to mention|surprising\w*)|whether or not|if not|why not|(?:more|as) often (?:than|as) not)\b",
    re.IGNORECASE,
)
"""Words that look like a denial and deny nothing: "not only horror but also war"."""
APART = r"rather than|instead of|as opposed to|except(?: for)?|anything but"
_NO = r"(?:no|little|less|lacks?(?: of)?|zero|without)"
NEGATION = re.compile(
    r"\b(?:dislik\w+|hat(?:e|es|ed|ing)|avoid\w*|loath\w+|detest\w*|despis\w+|never|not|nor|neither|cannot|no longer|"
    rf"{_NO} (?:interest|fan|taste|love|liking|fondness|appetite|patience|time|desire)\b(?!-)|"
    r"uninterested|bored (?:by|with)|(?:tired|sick) of|averse to|(?:put|turned) off by|stays? away from|"
    rf"steers? clear of|sh(?:y|ies) away from|(?P<apart>{APART}))\b|\b\w+n['’]t\b",
    re.IGNORECASE,
)
_VERBS = (
    r"lik(?:es|ed|ing)|lov(?:e|es|ed|ing)|enjoy\w*|prefer\w*|favou?rs?|favou?rites?|admir\w+|appreciat\w+|ador\w+|"
    r"drawn to|fans? of|fond of|keen on|into|passionate about|interested in"
)
_SUBJECT = r"(?:i|we|you|they|he|she|who|users?|person|viewers?)"
_AUXILIARY = r"(?:do|does|did|is|are|was|were|be|been|has|have|had|would|will|can|could|may|might|must|should)"
# "films like Alien" compares; a person, a helping verb or an adverb before "like" makes it a verb.
LIKING = re.compile(
    rf"\b(?:{_VERBS}|(?:{_SUBJECT}|{_AUXILIARY}|to|and|or|also|really|still|always|especially|generally|not) like)\b"
    "|\x01+",
    re.IGNORECASE,
)
# What may stand between "and" and the verb of a new statement.
_BEFORE_VERB = (
    rf"(?:(?:{_SUBJECT}|{_AUXILIARY}|the|this|that|their|a|an|also|really|often|sometimes|usually|generally|strongly|mostly|"
    r"deeply|especially|particularly|actively|typically|clearly|definitely|absolutely|always|rarely|even|then|still|"
    r"simply|seems?|appears?|tends?|to|big|huge|great|very|much|not|quite|more|most|some|has|strong|known)\s+)*"
)
CONJUNCTION = re.compile(
    rf"\b(?:and|or|nor|yet|plus|because|since|as|so|if|when|unless)\b(?=\s+{_BEFORE_VERB}"
    rf"(?:{_VERBS}|like\b|\x01|{NEGATION.pattern.replace('?P<apart>', '?:')}))|\bnor\b",
    re.IGNORECASE,
)
"""Where a part of a sentence begins that has a verb, and with it a polarity, of its own."""
RELATIVE = re.compile(
    rf"\b(?:that|which|who|whose|where)\b(?!\s+(?:the |this |they\b|he\b|she\b|i\b|we\b|{_SUBJECT}\b))", re.I
)
PASSIVE = re.compile(rf"\b{_AUXILIARY}\s+(?:\w+ly\s+)?$", re.IGNORECASE)
BE = re.compile(r"\b(?:is|are|was|were|be|been)\s+(?:\w+\s+)?$|\b(?:is|are|was|were)n['’]t$", re.IGNORECASE)
LAST_AND = re.compile(r".*\b(?=(?:and|or)\b)", re.IGNORECASE | re.DOTALL)
DECADE = re.compile(r"(?<!\d)(?:(?:early |mid-?|late )?((?:19|20)\d0)['’]?s|['’](\d0)s)\b")
SPELT = {"sixties": 1960, "seventies": 1970, "eighties": 1980, "nineties": 1990, "fifties": 1950, "forties": 1940}
PERSON = re.compile(r"\b[A-Z][a-z]+(?:[ ][A-Z](?:\.|[a-z]+)){1,2}\b")
QUOTED = re.compile(r"[\"“*]([^\"”*]{2,80})[\"”*]")
_EMPTY = (
    "user user's person taste tastes likes like liked loves love enjoys enjoy enjoyed prefers prefer preference "
    "preferences movies movie films film books book shows show favourite favorite genre genres theme themes era eras "
    "style styles interest interests interested watch watched watching read reading items item such also including "
    "appear appears seem seems tend tends based here these those some one more most very other"
)
EMPTY = COMMON | frozenset(_EMPTY.split())
"""Words of every profile, which claim nothing."""
THEME_WORDS = 2
"""Words beyond the empty ones that a statement needs to be a claim of its own."""
ARTICLES = ("the", "a", "an")
LONGEST = 12
"""Words of the longest title that is looked for."""
FIRST, MOST = 0xE000, 6400
"""Where the private characters of Unicode begin, and how many there are: each stands for one title of a text."""
PRIVATE = re.compile("[\ue000-\uf8ff]")


@dataclass(frozen=True)
class Claim:
    """One claim of a profile.

    text: the statement it stands in.
    value: what is claimed: a taste's name, a decade (``1990``), a title, a name, or the statement itself.
    liked: false where the statement denies it.
    """

    kind: Kind
    text: str
    value: str
    liked: bool


class Titles:
    """The titles of a catalogue, to be found in prose.

    A title of one word counts only in quotes, for it may be a word of the language. Of several words it must begin with
    a capital or a figure; an article before it may be written small, or be missing.
    """

    def __init__(self, titles: Sequence[str]):
        keys = [title_key(title).split() for title in titles]
        self.known = {" ".join(key) for key in keys}
        parts = {" ".join(key[at : at + n]) for key in keys for n in (2, 3) for at in range(len(key) - n + 1)}
        self.parts = frozenset(parts)
        """Two or three words in a row of some title: "Star Trek" is no person."""

    def mask(self, text: str) -> tuple[str, list[tuple[str, str]]]:
        """The text with one private character in place of each title, and per title how it was written and its key.

        What a title says is neither a claim nor a denial, and its full stops end no sentence.
        """
        plain = PRIVATE.sub("", text)
        found = sorted(self._found(plain))
        out, end, named = [], 0, []
        for start, stop, key in found[:MOST]:
            out += [plain[end:start], chr(FIRST + len(named))]
            named.append((plain[start:stop], key))
            end = stop
        return "".join([*out, plain[end:]]), named

    def _found(self, text: str) -> list[tuple[int, int, str]]:
        """Start, end and key of every title; the longest first, none within another."""
        marks = list(WORD.finditer(text))
        taken = [False] * len(marks)
        out = []
        for length in range(min(len(marks), LONGEST), 1, -1):
            for at in range(len(marks) - length + 1):
                span = marks[at : at + length]
                head = span[1] if span[0][0].lower() in ARTICLES else span[0]
                # A title starts with a capital; "love and war" in prose is none.
                if any(taken[at : at + length]) or not (head[0][0].isupper() or head[0][0].isdigit()):
                    continue
                written = text[span[0].start() : span[-1].end()]
                if (key := self._key(written)) is not None:
                    taken[at : at + length] = [True] * length
                    out.append((span[0].start(), span[-1].end(), key))
        prose = sorted(out)
        for match in QUOTED.finditer(text):
            start, stop = match.span(1)
            # None of these overlap, so the first that ends after the start is the only one that may reach into it.
            after = bisect.bisect_right(prose, start, key=lambda found: found[1])
            if (key := self._key(match[1])) is not None and (after == len(prose) or stop <= prose[after][0]):
                out.append((start, stop, key))
        return out

    def _key(self, written: str) -> str | None:
        key = title_key(written)
        return next((form for form in (key, *(f"{article} {key}" for article in ARTICLES)) if form in self.known), None)


def unmasked(text: str, named: Sequence[tuple[str, str]]) -> str:
    """A masked text as it was written."""
    return PRIVATE.sub(lambda mark: named[ord(mark[0]) - FIRST][0], text)


def statements(text: str) -> list[tuple[str, bool]]:
    """The parts of a text that have a polarity of their own, each with whether it speaks of a liking.

    A denial holds from its verb on ("likes comedy and does not like horror"). Where no liking stands before it in its
    part of the sentence, it also holds for what is before it ("horror is not for them"). Over commas it holds to the
    end of the clause or to the next liking: "they hate horror, war and musicals" likes none. "Rather than" and the like
    deny what follows them. Likings that are worded as denials ("can't get enough of") are likings.
    """
    out: list[tuple[str, bool]] = []
    for start, stop in _spans(CLAUSE, text):
        liked = True
        told: list[tuple[str, bool]] = []
        clause = text[start:stop]
        # Of equal length, so that places in the one are places in the other.
        masked = KEEN.sub(lambda found: "\x01" * len(found[0]), clause)
        masked = NEUTRAL.sub(lambda found: "\x02" * len(found[0]), masked)
        for at, end in _parts(masked):
            for a, b, polarity in _polarities(masked, at, end, liked):
                told.append((clause[a:b], polarity))
                liked = polarity
        for polarity, parts in itertools.groupby(told, key=lambda one: one[1]):
            if joined := "".join(part for part, _ in parts).strip(" ,-*\t"):
                out.append((joined, polarity))
    return out


def _spans(separator: re.Pattern[str], text: str) -> list[tuple[int, int]]:
    """Start and end of what lies between the separators."""
    marks = list(separator.finditer(text))
    return list(zip([0, *(mark.end() for mark in marks)], [*(mark.start() for mark in marks), len(text)], strict=True))


def _parts(masked: str) -> list[tuple[int, int]]:
    """Start and end of the parts of a clause: after each comma, and from each conjunction before a verb."""
    cuts = {match.end() for match in re.finditer(",", masked)} | {
        match.start() for match in CONJUNCTION.finditer(masked)
    }
    edges = [0, *sorted(cuts - {0}), len(masked)]
    return list(itertools.pairwise(edges))


def _polarities(masked: str, at: int, end: int, liked: bool) -> list[tuple[int, int, bool]]:
    """Start, end and polarity of the one or two statements of a part.

    Args:
        liked: the polarity before the part.
    """
    part = masked[at:end]
    found = NEGATION.search(part)
    if found is None:
        return [(at, end, liked or LIKING.search(part) is not None)]
    before = part[: found.start()]
    likes = LIKING.search(before) is not None
    if found["apart"]:
        cut = found.start()
    elif (relative := RELATIVE.search(before)) is not None:
        cut = relative.start()
    elif likes:
        cut = found.start()
        # "... and horror is avoided" denies what is before its verb.
        predicate = BE.search(before) or BE.search(part[: found.end()])
        if predicate is not None and (last := LAST_AND.match(before[: predicate.start()])) is not None:
            cut = last.end()
    elif found[0].lower() == "not" and before.strip() and PASSIVE.search(before) is None:
        cut = found.start()
    else:
        cut = 0
    if not part[:cut].strip():
        return [(at, end, False)]
    return [(at, at + cut, liked or likes), (at + cut, end, False)]


def extract(profile: str, tastes: Tastes, titles: Titles) -> list[Claim]:
    """The claims of a profile, each once however often it is made.

    Args:
        titles: those of the catalogue.

    A statement that names no genre, era, title or person and says something beyond what all profiles say is one claim,
    of a theme.
    """
    masked, named = titles.mask(profile)
    out: dict[tuple[Kind, str, bool], Claim] = {}
    for part, liked in statements(masked):
        found: list[tuple[Kind, str]] = [("title", named[ord(mark) - FIRST][1]) for mark in PRIVATE.findall(part)]
        found += [("genre", tastes.names[at]) for at in tastes.in_text(part)]
        found += [("era", str(decade)) for decade in _decades(part)]
        found += [("person", name) for name in _persons(part, tastes, titles)]
        text = unmasked(part, named)
        if not found and len([word for word in words(part) if word not in EMPTY]) >= THEME_WORDS:
            found = [("theme", text)]
        for kind, value in found:
            out.setdefault((kind, value, liked), Claim(kind, text, value, liked))
    return list(out.values())


def title_key(title: str) -> str:
    """How titles are compared: their words, without case and punctuation."""
    return " ".join(words(title))


def _decades(clause: str) -> list[int]:
    found = [int(full) if full else 1900 + int(short) for full, short in DECADE.findall(clause)]
    return sorted({*found, *(decade for word, decade in SPELT.items() if re.search(rf"\b{word}\b", clause, re.I))})


def _persons(part: str, tastes: Tastes, titles: Titles) -> list[str]:
    """Names: two or three words with capitals, in no title, that name no taste and are not in every profile."""
    out = []
    for match in PERSON.finditer(part):
        names = match[0].split()
        # The first word of a statement has a capital anyway.
        if names[0].lower() in EMPTY or (match.start() == 0 and len(names) > 2):
            names = names[1:]
        name = " ".join(names)
        if len(names) < 2 or title_key(name) in titles.parts:
            continue
        if not any(pattern(taste).search(name) for taste in tastes.names):
            out.append(name)
    return out
