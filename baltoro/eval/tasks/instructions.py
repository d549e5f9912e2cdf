"""The 25 instructions of IFEval, each a check of an answer's text.

Definitions: Zhou et al., arXiv:2311.07911, table 1 and appendix; google-research/instruction_following_eval. Strict:
the text as it is. Two checks of the original lean on libraries and are done here without: sentences are split at . !
and ? followed by a blank and no abbreviation (the original: NLTK's punkt), languages are told apart by their script,
and where that is Latin, Arabic, Cyrillic or Devanagari by their commonest words (the original: langdetect).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from baltoro.eval.tasks.languages import is_in

Json = Any
Check = Callable[[str, Mapping[str, Json]], bool]
_CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|prof|st|sr|jr|vs|etc|e\.g|i\.e|inc|ltd|no|[a-z])\.$", re.IGNORECASE)


def follows(instruction: str, text: str, arguments: Mapping[str, Json]) -> bool:
    """instruction: its id, as `keywords:existence`. An empty answer follows none."""
    return bool(text.strip()) and CHECKS[instruction](text, arguments)


def _relation(count: int, relation: str | None, wanted: int) -> bool:
    return count < wanted if relation == "less than" else count >= wanted


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def sentences(text: str) -> int:
    count = 0
    rest = ""
    for piece in re.split(r"(?<=[.!?])[\"')\]]*\s+|\n{2,}", text.strip()):
        rest = f"{rest} {piece}".strip()
        if rest and not _ABBREVIATION.search(rest):
            count, rest = count + 1, ""
    return count + bool(rest)


def _keywords(text: str, arguments: Mapping[str, Json]) -> bool:
    return all(re.search(word, text, re.IGNORECASE) for word in arguments["keywords"])


def _frequency(text: str, arguments: Mapping[str, Json]) -> bool:
    count = len(re.findall(arguments["keyword"], text, re.IGNORECASE))
    return _relation(count, arguments.get("relation"), arguments["frequency"])


def _forbidden(text: str, arguments: Mapping[str, Json]) -> bool:
    return not any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in arguments["forbidden_words"])


def _letter(text: str, arguments: Mapping[str, Json]) -> bool:
    count = text.lower().count(arguments["letter"].lower())
    return _relation(count, arguments.get("let_relation"), arguments["let_frequency"])


def _paragraphs(text: str, arguments: Mapping[str, Json]) -> bool:
    """Parted by ***; the first and the last may be empty."""
    parts = re.split(r"\s?\*\*\*\s?", text)
    inner = [part for place, part in enumerate(parts) if part.strip() or place not in (0, len(parts) - 1)]
    return len(inner) == arguments["num_paragraphs"] and all(part.strip() for part in inner)


def _first_word(text: str, arguments: Mapping[str, Json]) -> bool:
    """Of the nth paragraph, parted by empty lines."""
    parts = re.split(r"\n\n", text)
    place = arguments["nth_paragraph"]
    if sum(bool(part.strip()) for part in parts) != arguments["num_paragraphs"] or place > len(parts):
        return False
    paragraph = parts[place - 1].strip()
    if not paragraph:
        return False
    first = re.match(r"[\"']*([^.,?!'\"]*)", paragraph.split()[0])
    return first is not None and first[1].lower() == arguments["first_word"].lower()


def _postscript(text: str, arguments: Mapping[str, Json]) -> bool:
    marker = arguments["postscript_marker"]
    patterns = {"P.P.S": r"\s*p\.\s?p\.\s?s.*$", "P.S.": r"\s*p\.\s?s\..*$"}
    pattern = patterns[marker] if marker in patterns else r"\s*" + re.escape(str(marker).lower()) + r".*$"
    return re.search(pattern, text.lower(), re.MULTILINE) is not None


def _bullets(text: str, arguments: Mapping[str, Json]) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    return len(stars) + len(re.findall(r"^\s*-.*$", text, re.MULTILINE)) == arguments["num_bullets"]


def _highlights(text: str, arguments: Mapping[str, Json]) -> bool:
    single = [each for each in re.findall(r"\*[^\n\*]*\*", text) if each.strip("*").strip()]
    double = [each for each in re.findall(r"\*\*[^\n\*]*\*\*", text) if each[2:-2].strip()]
    return len(single) + len(double) >= arguments["num_highlights"]


def _sections(text: str, arguments: Mapping[str, Json]) -> bool:
    parts = re.split(r"\s?" + arguments["section_spliter"] + r"\s?\d+\s?", text)
    return len(parts) - 1 >= arguments["num_sections"]


def _json(text: str, _: Mapping[str, Json]) -> bool:
    inner = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        inner = inner.removeprefix(fence)
    try:
        json.loads(inner.removesuffix("```").strip())
    except ValueError:
        return False
    return True


def _title(text: str, _: Mapping[str, Json]) -> bool:
    return any(title.strip("<>").strip() for title in re.findall(r"<<[^\n]+>>", text))


def _two_responses(text: str, _: Mapping[str, Json]) -> bool:
    parts = text.split("******")
    kept = [part.strip() for place, part in enumerate(parts) if part.strip() or place not in (0, len(parts) - 1)]
    return len(kept) == 2 and all(kept) and kept[0] != kept[1]


def _repeat(text: str, arguments: Mapping[str, Json]) -> bool:
    return text.strip().lower().startswith(arguments["prompt_to_repeat"].strip().lower())


def _end(text: str, arguments: Mapping[str, Json]) -> bool:
    return text.strip().strip('"').lower().endswith(arguments["end_phrase"].strip().lower())


def _capital_words(text: str, arguments: Mapping[str, Json]) -> bool:
    count = sum(word.isupper() for word in re.findall(r"[\w'-]+", text))
    return _relation(count, arguments.get("capital_relation"), arguments["capital_frequency"])


def _quotation(text: str, _: Mapping[str, Json]) -> bool:
    inner = text.strip()
    return len(inner) > 1 and inner[0] == inner[-1] == '"'


CHECKS: Mapping[str, Check] = {
    "keywords:existence": _keywords,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letter,
    "language:response_language": lambda text, a: is_in(a["language"], text),
    "length_constraints:number_sentences": lambda text, a: _relation(
        sentences(text), a["relation"], a["num_sentences"]
    ),
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": lambda text, a: _relation(len(words(text)), a["relation"], a["num_words"]),
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": lambda text, a: (
        len(re.findall(r"\[.*?\]", text)) >= a["num_placeholders"]
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": lambda text, _: any(choice in text for choice in _CHOICES),
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat,
    "startend:end_checker": _end,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": lambda text, _: text.isupper() and is_in("en", text),
    "change_case:english_lowercase": lambda text, _: text.islower() and is_in("en", text),
    "punctuation:no_comma": lambda text, _: "," not in text,
    "startend:quotation": _quotation,
}
