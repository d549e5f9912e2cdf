"""Which of IFEval's languages a text is in: by its script, and where several share one by their commonest words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping

# Scripts as Unicode names its letters.
_SCRIPTS: Mapping[str, str] = {
    "kn": "KANNADA", "pa": "GURMUKHI", "gu": "GUJARATI", "te": "TELUGU", "ta": "TAMIL", "bn": "BENGALI", "th": "THAI",
    "ko": "HANGUL", "hi": "DEVANAGARI", "mr": "DEVANAGARI", "ne": "DEVANAGARI", "ru": "CYRILLIC", "bg": "CYRILLIC",
    "ar": "ARABIC", "fa": "ARABIC", "ur": "ARABIC", "ja": "HIRAGANA", "zh": "CJK",
}  # fmt: skip
_WORDS: Mapping[str, str] = {
    "en": "the of and to in is that it for was on are as with his they be at this have from or by but not what all",
    "de": "der die und das ist nicht ein eine zu den von mit sich des auf für im dem auch es an werden aus er hat dass",
    "it": "di che è la il un una per non sono in con del della le si ma come anche più gli questo alla ho nel",
    "pt": "de que o a e do da em um para com não uma os no se na por mais as dos como mas ao ele das à seu sua ou",
    "es": "de la que el en y a los se del las un por con no una su para es al lo como más o pero sus le ha me si",
    "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont avec son",
    "vi": "và của là có không được cho một người trong các những với này đã để khi tôi bạn như nhưng đến về ra rất",
    "fi": "ja on ei se että hän oli joka mutta ovat kun niin myös kuin tämä sen olla mitä jos ole minä sinä voi",
    "sw": "ya na wa kwa ni la katika za kuwa hii cha kama yake au lakini sana hilo vya hiyo pia watu moja huo",
    "hi": "है के में की से को का और हैं यह एक पर नहीं कि था भी लिए इस हो ने",
    "mr": "आहे आणि च्या या मध्ये हे ते एक आहेत होते तो ही नाही साठी असे की पण मी",
    "ne": "छ र को मा छन् यो हो लाई पनि गर्न भने एक थियो हुन्छ तर गरेको गर्दै",
    "ru": "и в не на что с по это как он для к но от из у же мы вы так его все было бы",
    "bg": "на и да за се от в е с не по са като което но до това той си ще към или при",
    "ar": "من في على أن إلى التي هذا عن مع كان ما هو لا هذه ذلك الذي بين كل",
    "fa": "و در به از که این را با است برای آن یک خود تا کرد بر هم نیز می شود",
    "ur": "کے کی میں ہے اور کا سے کو نے پر ہیں یہ کہ ایک ہو نہیں تھا بھی اس",
}


def is_in(language: str, text: str) -> bool:
    """Whether `text` is in `language`, a code of two letters. What is too short to tell is taken for it."""
    script = _SCRIPTS.get(language, "LATIN")
    letters = Counter(unicodedata.name(c, "?").split()[0] for c in text if c.isalpha())
    if not letters:
        return True
    found = letters.most_common(1)[0][0]
    if language == "ja":
        return letters["HIRAGANA"] + letters["KATAKANA"] > 0
    if found != script:
        return False
    rivals = [code for code in _WORDS if _SCRIPTS.get(code, "LATIN") == script]
    if language not in rivals:
        return True
    said = re.findall(r"[^\W\d_]+(?:[\u0900-\u097f]*)", text.lower())
    counts = {code: sum(word in set(_WORDS[code].split()) for word in said) for code in rivals}
    return counts[language] == max(counts.values())
