"""Extracts the claims of a profile: genres, eras, titles, persons, and themes; liked or disliked."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from langptune.language.tastes import Tastes, pattern
from langptune.language.wording import COMMON, WORD, words

Kind = Literal["genre", "era", "title", "person", "theme"]

# A polarity ends with the sentence, or where a contrast begins. The colon of "Dislikes: horror" ends nothing. A run of
# such characters is matched from its first one only: from each, a long run would take time quadratic in its length.
CLAUSE = re.compile(
    r"(?<![.!?;\n])[.!?;\n]+(?=\s|$)|"
    r"(?:(?<!:)(?<!\bdislikes)(?<!\bavoids)(?<!\bhates)|(?<=\bdislikes:)|(?<=\bavoids:)|(?<=\bhates:)):+(?=\s|$)|"
    r"(?<!\bnothing )(?<!\banything )\bbut\b|\b(?:however|although|though|while|whereas)\b",
    re.IGNORECASE,
)
_TYPED = r"(?:do|does|did|ca|wo|is|are|was|were|would|could|should|have|has)nt"
"""Denials as they are typed without an apostrophe."""
_NOT = rf"(?:not|never|cannot|{_TYPED}|\w+n['’]t)"
_CANNOT = r"(?:(?:can|could)(?:not|n['’]?t| not)|never|can['’]?t)"
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
"""Likings with the wording of denials: "can't get enough of comedy", "never misses a western"."""
NEUTRAL = re.compile(
    rf"\b(?:{_NOT}\s+{_ADVERB}(?:only|just|merely|simply|exclusively|solely|limited|confined|restricted|necessarily|unlike|"
    r"to mention|surprising\w*)|whether or not|if not|why not|(?:more|as) often (?:than|as) not)\b",
    re.IGNORECASE,
)
"""Words that look like a denial but deny nothing: "not only horror but also war"."""
APART = (
    r"rather than|instead of|as opposed to|except(?: for)?|anything but|without(?! (?:a )?(?:doubt|fail|question)\b)"
)
_NO = r"(?:no|little|less|lacks?(?: of)?|zero|without)"
NEGATION = re.compile(
    r"\b(?:dislik\w+|hat(?:e|es|ed|ing)|avoid\w*|loath\w+|detest\w*|despis\w+|never|not|nor|neither|cannot|no longer|"
    rf"(?:have|had|has) (?:quite )?enough of|{_TYPED}|"
    r"bores? (?:me|us|them|him|her)(?: to (?:death|tears))?|"
    rf"{_NO} (?:interest|fan|taste|love|liking|fondness|appetite|patience|time|desire)\b(?!-)|"
    r"uninterested|bored (?:by|with)|(?:tired|sick) of|averse to|(?:put|turned) off by|stays? away from|"
    rf"steers? clear of|sh(?:y|ies) away from|(?P<apart>{APART}))\b|\b\w+n['’]t\b",
    re.IGNORECASE,
)
_WITHOUT = (
    r"(?:no(?! (?:one|doubt|matter|wonder|less|fewer)\b)|zero|nothing|(?:less|fewer)(?! (?:than|known)\b))\b(?!-)"
)
IMPERATIVE = re.compile(
    rf"\s*(?:(?:and|or|but|so|please|pls|just|also|with)\s+)*(?:{_WITHOUT}|"
    r"(?:skip|stop|drop|forget|enough (?:of|with)|spare me|leave out|get rid of|keep away)\b)",
    re.IGNORECASE,
)
"""Denials as people type them, at the start of a part: "no horror", "less war", "skip the musicals"."""
AFFIRMATIVE = re.compile(
    r"\s*(?:(?:and|but|so|please)\s+)*(?:just|only|more(?! than\b)|give me|show me)\b", re.IGNORECASE
)
"""After an imperative denial, these words begin a liking: "no horror, just comedy"."""
_VERBS = (
    r"lik(?:es|ed|ing)|lov(?:e|es|ed|ing)|enjoy\w*|prefer\w*|favou?rs?|favou?rites?|admir\w+|appreciat\w+|ador\w+|"
    r"drawn to|fans? of|fond of|keen on|into|passionate about|interested in"
)
_SUBJECT = r"(?:i|we|you|they|he|she|who|users?|person|viewers?)"
_AUXILIARY = r"(?:do|does|did|is|are|was|were|be|been|has|have|had|would|will|can|could|may|might|must|should)"
# "films like Alien" compares; a person, an auxiliary or an adverb before "like" makes it a verb.
LIKING = re.compile(
    rf"\b(?:{_VERBS}|(?:{_SUBJECT}|{_AUXILIARY}|to|and|or|also|really|still|always|especially|generally|not) like)\b"
    "|\x01+",
    re.IGNORECASE,
)
# Words that may come between "and" and the verb of a new statement.
_BEFORE_VERB = (
    rf"(?:(?:{_SUBJECT}|{_AUXILIARY}|the|this|that|their|a|an|also|really|often|sometimes|usually|generally|strongly|mostly|"
    r"deeply|especially|particularly|actively|typically|clearly|definitely|absolutely|always|rarely|even|then|still|"
    r"simply|seems?|appears?|tends?|to|big|huge|great|very|much|not|quite|more|most|some|has|strong|known)\s+)*"
)
CONJUNCTION = re.compile(
    rf"\b(?:and|or|nor|yet|plus|because|since|as|so|if|when|unless)\b(?=\s+{_BEFORE_VERB}"
    rf"(?:{_VERBS}|like\b|\x01|{_WITHOUT}|{NEGATION.pattern.replace('?P<apart>', '?:')}))|\bnor\b",
    re.IGNORECASE,
)
"""The start of a part of a sentence with its own verb, and therefore its own polarity."""
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
"""Words that occur in every profile and claim nothing."""
THEME_WORDS = 2
"""Minimum number of words, apart from the empty ones, in a statement that is a claim."""
ARTICLES = ("the", "a", "an")
LONGEST = 12
"""Limit on the titles that are searched for, in words."""
FIRST, MOST = 0xE000, 6400
"""The first private character of Unicode, and their number: each stands for one title in a text."""
PRIVATE = re.compile("[\ue000-\uf8ff]")


@dataclass(frozen=True)
class Claim:
    """One claim of a profile.

    text: the statement that contains it.
    value: the object of the claim: a taste's name, a decade (``1990``), a title, a name, or the statement itself.
    liked: false if the statement denies it.
    """

    kind: Kind
    text: str
    value: str
    liked: bool


class Titles:
    """Finds the titles of a catalogue in prose.

    A title of one word counts only in quotes, because it may be an ordinary word. A longer title must begin with a
    capital or a digit; its article may be in lower case or missing.
    """

    def __init__(self, titles: Sequence[str]):
        keys = [title_key(title).split() for title in titles]
        self.known = {" ".join(key) for key in keys}
        parts = {" ".join(key[at : at + n]) for key in keys for n in (2, 3) for at in range(len(key) - n + 1)}
        self.parts = frozenset(parts)
        """Two or three consecutive words of a title: "Star Trek" is not a person."""

    def mask(self, text: str) -> tuple[str, list[tuple[str, str]]]:
        """The text with each title replaced by a private character, and each title's spelling in the text and its key.

        Words within a title are neither claims nor denials, and its full stops end no sentence.
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
                # A title starts with a capital; "love and war" in prose is not a title.
                if any(taken[at : at + length]) or not (head[0][0].isupper() or head[0][0].isdigit()):
                    continue
                written = text[span[0].start() : span[-1].end()]
                if (key := self._key(written)) is not None:
                    taken[at : at + length] = [True] * length
                    out.append((span[0].start(), span[-1].end(), key))
        prose = sorted(out)
        for match in QUOTED.finditer(text):
            start, stop = match.span(1)
            # These do not overlap, so only the first one that ends after the start can overlap with the quotation.
            after = bisect.bisect_right(prose, start, key=lambda found: found[1])
            if (key := self._key(match[1])) is not None and (after == len(prose) or stop <= prose[after][0]):
                out.append((start, stop, key))
        return out

    def _key(self, written: str) -> str | None:
        key = title_key(written)
        return next((form for form in (key, *(f"{article} {key}" for article in ARTICLES)) if form in self.known), None)


def unmasked(text: str, named: Sequence[tuple[str, str]]) -> str:
    """The original of a masked text."""
    return PRIVATE.sub(lambda mark: named[ord(mark[0]) - FIRST][0], text)


def statements(text: str) -> list[tuple[str, bool]]:
    """The parts of a text that have their own polarity, each with whether it expresses a liking.

    A denial applies from its verb on ("likes comedy and does not like horror"). Without a liking before it in its part
    of the sentence, it also applies to what precedes it ("horror is not for them"). Across commas it applies up to the
    end of the clause or the next liking: "they hate horror, war and musicals" likes none. "Rather than" and similar
    words deny what follows them; so do "no", "less" and "skip" at the start of a part. Likings with the wording of
    denials ("can't get enough of") are likings.
    """
    return [
        (text[start:stop].strip(STRIPPED), liked) for clause in clauses(text) for start, stop, liked in clause.parts
    ]


STRIPPED = " ,-*\t"
"""Characters around a statement that are no part of it."""


@dataclass(frozen=True)
class Clause:
    """A clause of a text.

    stop: where it ends and its separator (a full stop, a colon, "but") begins.
    parts: start, end and polarity of its statements, in order, without empty ones.
    """

    stop: int
    parts: list[tuple[int, int, bool]]


def clauses(text: str) -> list[Clause]:
    """The clauses of a text with the places of its ``statements``."""
    out = []
    for start, stop in _spans(CLAUSE, text):
        liked = True
        polar: list[tuple[int, int, bool]] = []
        clause = text[start:stop]
        # Replacements keep the length, so that positions are the same in both strings.
        masked = KEEN.sub(lambda found: "\x01" * len(found[0]), clause)
        masked = NEUTRAL.sub(lambda found: "\x02" * len(found[0]), masked)
        typed = False
        for at, end in _parts(masked):
            if typed and AFFIRMATIVE.match(masked, at, end):
                liked = True
            typed = typed or IMPERATIVE.match(masked, at, end) is not None
            for a, b, polarity in _polarities(masked, at, end, liked):
                polar.append((start + a, start + b, polarity))
                liked = polarity
        parts = []
        for polarity, group in itertools.groupby(polar, key=lambda one: one[2]):
            same = list(group)
            first, last = same[0][0], same[-1][1]
            if text[first:last].strip(STRIPPED):
                parts.append((first, last, polarity))
        out.append(Clause(stop, parts))
    return out


def _spans(separator: re.Pattern[str], text: str) -> list[tuple[int, int]]:
    """Start and end of the texts between separators."""
    marks = list(separator.finditer(text))
    return list(zip([0, *(mark.end() for mark in marks)], [*(mark.start() for mark in marks), len(text)], strict=True))


def _parts(masked: str) -> list[tuple[int, int]]:
    """Start and end of the parts of a clause: after each comma and line, and from each conjunction before a verb."""
    cuts = {match.end() for match in re.finditer("[,\n]", masked)} | {
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
    if IMPERATIVE.match(part):
        return [(at, end, False)]
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
    """The claims of a profile, without repetitions.

    Args:
        titles: titles of the catalogue.

    A statement that names no genre, era, title or person, and has words other than those of every profile, is one claim
    about a theme.
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
    """The normalised form of a title: its words, without case and punctuation."""
    return " ".join(words(title))


def _decades(clause: str) -> list[int]:
    found = [int(full) if full else 1900 + int(short) for full, short in DECADE.findall(clause)]
    return sorted({*found, *(decade for word, decade in SPELT.items() if re.search(rf"\b{word}\b", clause, re.I))})


def _persons(part: str, tastes: Tastes, titles: Titles) -> list[str]:
    """Names: two or three capitalised words that are not part of a title, not a taste, and not in every profile."""
    out = []
    for match in PERSON.finditer(part):
        names = match[0].split()
        # The first word of a statement is always capitalised.
        if names[0].lower() in EMPTY or (match.start() == 0 and len(names) > 2):
            names = names[1:]
        name = " ".join(names)
        if len(names) < 2 or title_key(name) in titles.parts:
            continue
        if not any(pattern(taste).search(name) for taste in tastes.names):
            out.append(name)
    return out
