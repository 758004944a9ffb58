"""What spaCy's English tokenizer knows of characters and of special words.

Out: a class (bits) per code point, the special words ("don't" is "do" and "n't"; ":-)" is one word) and the units.
datatrove's filters count spaCy's words, so equal verdicts need equal words. Source: the rules of
spaCy 3.8 (MIT), spacy/lang/{char_classes,punctuation,tokenizer_exceptions}.py and spacy/lang/en; the punctuation sets of
datatrove 0.10 (Apache-2.0), utils/text.py. tests/parity/test_data_quality.py holds the tables against the installed spaCy.
"""

import functools
import itertools
import unicodedata
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

SPACE, ALPHA, LOWER, UPPER, DIGIT, ICON, QUOTE, PREFIX, SUFFIX, BEFORE_DOT, CURRENCY, INFIX = (
    1 << bit for bit in range(12)
)
"""White space, and the classes in spaCy's patterns: ALPHA to QUOTE are its character classes, DIGIT is [0-9]; a PREFIX or a
SUFFIX splits off alone; a dot after BEFORE_DOT splits off; CURRENCY splits off after a digit; an INFIX may divide a word."""
SYMBOL, LETTER, PUNCTUATION, SENTENCE_END, TERMINAL = (1 << bit for bit in range(12, 17))
"""datatrove's punctuation, str.isalpha, Unicode category P, the marks of spaCy's sentencizer, datatrove's line ends."""
HOST, WORD, DECIMAL, DOT, UNIT_END, JOIN_FIRST, JOIN_SECOND = (1 << bit for bit in range(17, 24))
"""Characters of host names, \\w, \\d and "."; the last one of a unit; the first one of the first two words of a special word
that is joined."""


def _codes(ranges: str) -> Iterator[int]:
    """Code points of "41-5A 61": hexadecimal, both ends included."""
    for text in ranges.split():
        first, _, last = text.partition("-")
        yield from range(int(first, 16), int(last or first, 16) + 1)


_CASED = (
    "41-5A 61-7A C0-D6 D8-F6 F8-1BF 1C4-2AF 386 388-38A 38C 38E-38F 391-3A9 3AC-3AF 3B1-3C9 3CC-3CE 400-401 403-40A"
    " 40C-40D 410-451 453-45A 45C-45D 490-491 496-497 4A2-4A3 4AE-4AF 4BA-4BB 4D8-4D9 4E8-4E9 1D00-1D25 1D6B-1D77"
    " 1D79-1D9A 1E00-1EFF 2C60-2C7B 2C7E-2C7F A722-A76F A771-A787 A78B-A78E A790-A7B9 A7FA AB30-AB5A AB60-AB64"
    " FF21-FF3A FF41-FF5A"
)
_UNCASED = (
    "591-5F4 620-64A 66E-6D5 6E5-6FF 750-77F 8A0-8BD 900-9FF B80-CFF D80-DFF 1100-137F 2E80-2FDF 2FF0-30FF 31C0-31EF"
    " 3200-4DBF 4E00-9FFF AC00-D7AF F900-FAFF FB1D-FBB1 FBD3-FD3D FD50-FDC7 FDF0-FDFB FE30-FE4F FE70-FEFC 1EE00-1EEBB"
    " 1F200-1F2FF 20000-2A6DF 2A700-2EBEF 2F800-2FA1F"
)
_NO_ICONS = (
    "166D 2B97 2BC9 2BFF 2E50-2E51 32FF FD40-FD4F FDCF FDFE-FDFF 1019C 11FD5-11FDC 11FE1-11FF1 1CF50-1CFC3 1D1E9-1D1EA"
    " 1E14F 1ED2E 1F10D-1F10F 1F16C-1F16F 1F1AD 1F6D5-1F6D7 1F6DC-1F6DF 1F6FA-1F6FC 1F774-1F776 1F77B-1F77F 1F7D9 1F7E0-1F7EB"
    " 1F7F0 1F8B0-1F8B1 1F90C-1F90F 1F93F 1F971-1F972 1F977-1F979 1F97B 1F9A3-1F9AF 1F9BA-1F9BF 1F9C3-1F9CF 1FA00-1FA53"
    " 1FA6E-1FBCA"
)
"""Symbols of Unicode 11.1 to 15: spaCy's list of icons is older."""
_ENDS = (
    "21 2E 3F 589 61D-61F 6D4 700-702 7F9 837 839 83D-83E 964-965 104A-104B 1362 1367-1368 166E 1735-1736 17D4-17D6 17D9-17DA"
    " 1803 1809 1944-1945 1AA8-1AAB 1B5A-1B5B 1B5E-1B5F 1B7D-1B7E 1C3B-1C3C 1C7E-1C7F 203C-203D 2047-2049 2E2E 2E3C"
    " 2E53-2E54 3002 A4FF A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB FE52 FE56-FE57"
    " FF01 FF0E FF1F FF61 10A56-10A57 10F55-10F59 10F86-10F89 11047-11048 110BE-110C1 11141-11143 111C5-111C6 111CD"
    " 111DE-111DF 11238-11239 1123B-1123C 112A9 1144B-1144C 115C2-115C3 115C9-115D7 11641-11642 1173C-1173E 11944 11946"
    " 11A42-11A43 11A9B-11A9C 11C41-11C42 11EF7-11EF8 11F43-11F44 16A6E-16A6F 16AF5 16B37-16B38 16B44 16E98 1BC9F 1DA88"
)
_NO_SENTENCE_ENDS = (
    "61D-61E 837-83E 17D4-17DA 1B7D-1B7E 2E53-2E54 10F55-10F59 10F86-10F89 11944-11946 11EF7-11EF8 11F43-11F44 16E98"
)
_SYMBOLS = (
    "0-8 B-1F 22-2D 2F 3A-3E 40 5B-60 7B-9F AB B4 BB 2013-2014 2019 201C-201E 2026 2236 2501 25BA 3001 3008-300D 3010-3011"
    " FF05 FF08-FF09 FF0C FF11 FF1A-FF1B FF5E"
)
_QUOTES = "22 27 2C 60 AB B4 BB 2018-201A 201C-201E 2329-232A 27E6-27E7 3008-3011 3014-3015 FF08-FF09"
_PUNCT = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
_CURRENCY = "$£€¥฿₽﷼₴₠₡₢₣₤₥₦₧₨₩₪₫₭₮₯₰₱₲₳₵₶₷₸₹₺₻₼₾₿"
UNITS = tuple(
    (
        "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa Pa "
        "mbar mb MB kb KB gb GB tb TB T G M K % км км² км³ м м² м³ дм дм² дм³ см см² см³ мм мм² мм³ нм кг г мг м/с км/ч "
        "кПа Па мбар Кб КБ кб Мб МБ мб Гб ГБ гб Тб ТБ тбكم كم² كم³ م م² م³ سم سم² سم³ مم مم² مم³ كم غرام جرام جم كغ ملغ "
        "كوب اكواب "
    ).split()
)
LAST_LETTER = 0x33480
"""Beyond it no character is a letter, digit, space or punctuation mark (Unicode 15)."""


@functools.cache
def character_classes() -> npt.NDArray[np.uint32]:
    classes = np.zeros(0x110000, np.uint32)
    for code in range(LAST_LETTER):
        character, category = chr(code), unicodedata.category(chr(code))
        classes[code] = (
            SPACE * character.isspace()
            | LETTER * character.isalpha()
            | WORD * (character.isalnum() or character == "_")
            | DECIMAL * (category == "Nd")
            | PUNCTUATION * category.startswith("P")
            | (ICON | PREFIX | SUFFIX | INFIX) * (category == "So")
        )
    for code in _codes(_NO_ICONS):
        classes[code] &= ~np.uint32(ICON | PREFIX | SUFFIX | INFIX)
    for code in _codes(_CASED):
        character = chr(code)
        classes[code] |= (
            ALPHA | LOWER * (character.islower() or code == 0x294) | UPPER * (character.isupper() or code == 0x3A2)
        )
    for bits, ranges in (
        (ALPHA | LOWER | UPPER, _UNCASED), (DIGIT, "30-39"), (HOST, "30-39 41-5A 61-7A A1-FFFF"), (TERMINAL, _ENDS),
        (SENTENCE_END, _ENDS), (SYMBOL, f"{_ENDS} {_SYMBOLS}"), (QUOTE | PREFIX | SUFFIX | BEFORE_DOT, _QUOTES),
    ):  # fmt: skip
        classes[list(_codes(ranges))] |= bits
    classes[list(_codes(_NO_SENTENCE_ENDS))] &= ~np.uint32(SENTENCE_END)
    for bits, characters in (
        (PREFIX | SUFFIX | BEFORE_DOT, _PUNCT), (PREFIX | SUFFIX, "—–"), (PREFIX, "§%="), (PREFIX | CURRENCY, _CURRENCY),
        (BEFORE_DOT, "%²-+|0123456789"), (INFIX, ".…+-*^,–—~:<>=/"), (DOT, "."),
    ):  # fmt: skip
        classes[[ord(character) for character in characters]] |= bits
    classes[classes & LOWER > 0] |= BEFORE_DOT
    return classes


_CONTRACTIONS = (
    ("i", "'m m 'm|a m|a"),
    (
        "i you he she it we they who what when where why how there that this these those",
        "'ll ll 'll|'ve ll|ve 'd d 'd|'ve d|ve",
    ),
    ("i you we they who what when where why how there these those", "'ve ve"),
    ("you we they who what when where why how there these those", "'re re"),
    ("he she it who what when where why how there that this", "'s s"),
    ("ca could do does did had may might must need ought sha should wo would", "n't nt n't|'ve nt|ve"),
    ("could might must should would", "'ve ve"),
    ("ai are is was were have has dare", "n't nt"),
)  # fmt: skip
_SPLIT = (
    "y'|all y|all how|'d|'y How|'d|'y not|'ve not|ve Not|'ve Not|ve can|not Can|not gon|na Gon|na got|ta Got|ta let|'s Let|'s"
    " c'm|on C'm|on °|C|. °|F|. °|K|. °|c|. °|f|. °|k|."
)
_WHOLE = r"""
em 'em ll 'll nuff 'nuff 'S 's ‘S ‘s and/or w/o 're 'Cause 'cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz 'bout ma'am Ma'am
o'clock O'clock Mt. Ak. Ala. Apr. Ariz. Ark. Aug. Calif. Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. Ind. Jan.
Jul. Jun. Kan. Kans. Ky. La. Mar. Mass. Mich. Minn. Miss. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Nov. Oct.
Okla. Ore. Pa. S.C. Sep. Sept. Tenn. Va. Wash. Wis. 'd a.m. Adm. Bros. co. Co. Corp. D.C. Dr. e.g. E.g. E.G. Gen. Gov.
i.e. I.e. I.E. Inc. Jr. Ltd. Md. Messrs. Mo. Mont. Mr. Mrs. Ms. p.m. Ph.D. Prof. Rep. Rev. Sen. St. vs. v.s. \t \n — '
\") <space> '' C++ ä. ö. ü. :) :-) :)) :-)) :))) :-))) (: (-: =) (= :] :-] [: [-: [= =] :o) (o: :} :-} 8) 8-) (-8 ;)
;-) (; (-; :( :-( :(( :-(( :((( :-((( ): )-: =( >:( :') :'-) :'( :'-( :/ :-/ =/ =| :| :-| ]= =[ :1 :P :-P :p :-p :O
:-O :o :-o :0 :-0 :() >:o :* :-* :3 :-3 =3 :> :-> :X :-X :x :-x :D :-D ;D ;-D =D xD XD xDD XDD 8D 8-D ^_^ ^__^ ^___^
>.< >.> <.< ._. ;_; -_- -__- v.v V.V v_v V_V o_o o_O O_o O_O 0_o o_0 0_0 o.O O.o O.O o.o 0.0 o.0 0.o @_@ <3 <33 <333
</3 (^_^) (-_-) (._.) (>_<) (*_*) (¬_¬) ಠ_ಠ ಠ︵ಠ (ಠ_ಠ) ¯\(ツ)/¯ (╯°□°）╯︵┻━┻ ><(((*>
"""
_DROPPED = frozenset("Ill ill Its its Hell hell Shell shell Shed shed were Were Well well Whore whore".split())


@functools.cache
def special_words() -> dict[str, tuple[str, ...]]:
    """Words that are divided by the table and not by the patterns, and those never divided: word -> its parts."""
    whole = [*_WHOLE.split(), *(f"{chr(code)}." for code in range(ord("a"), ord("z") + 1))]
    for stem in ("doin", "goin", "nothin", "nuthin", "ol", "somethin", "lovin", "havin"):
        whole += [stem, f"{stem}'", stem.title(), f"{stem.title()}'"]
    divided = [word.split("|") for word in _SPLIT.split()]
    for stems, endings in _CONTRACTIONS:
        for stem, ending in itertools.product(stems.split(), endings.split()):
            divided += [[stem, *ending.split("|")], [stem.title(), *ending.split("|")]]
    divided += [[str(hour), period] for hour in range(1, 13) for period in ("a.m.", "am", "p.m.", "pm")]
    found = {word: (word,) for word in whole} | {"".join(parts): tuple(parts) for parts in divided}
    found = {word: parts for word, parts in found.items() if word not in _DROPPED} | {"Ill.": ("Ill.",)}
    curly = {word.replace("'", "’"): tuple(part.replace("'", "’") for part in parts) for word, parts in found.items()}
    return found | curly
