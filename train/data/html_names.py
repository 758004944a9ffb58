"""The names that the HTML scanner knows: elements, words of class and id, character references.

Out: one table of hashes with open addressing, (keys, values), in which each vocabulary begins with a seed of its own; the
UTF-8 of all character references; the class of each byte of text.
Sources: WHATWG HTML, 13.1.2 (void and raw-text elements), 13.2.6.4.7 (implied end tags), 13.5 (named references).
"""

import html.entities
from typing import Any

import numpy as np
import numpy.typing as npt

from train.data.jit import jit_inner

Table = npt.NDArray[Any]
"""uint64: NUM_SLOTS keys, then their values."""
NUM_SLOTS = 4096
ELEMENT_SEED, WORD_SEED, REFERENCE_SEED = map(np.uint64, (0x2545F4914F6CDD1D, 0x61C8864680B583EB, 0x1B873593CC9E2D51))
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

# Element kinds, bits 0-5 of an element's value.
OTHER, P, LI, TERM, CELL, ROW, ROWS, TABLE, HEADING, PRE, LINK, LIST, DIV, BREAK, TITLE, ROOT = range(16)
NAV, ASIDE, FOOTER, HEADER, FORM, MAIN, ARTICLE, SECTION, FIGURE, CAPTION, QUOTE, BUTTON, RULE, IMAGE = range(16, 30)
KIND = 63
# Traits of elements, further bits of the same value.
LEVEL_SHIFT = 6
"""What separates the element from what surrounds it: 0 nothing (inline), 1 a tab, 2 a new line, 3 a blank line."""
VOID, RAW, HIDE, SCOPE, FOREIGN = 1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12
"""No content; text up to its end tag that is not shown; content that is not shown; a border for implied ends; svg."""

_LINE, _BLANK = 2 << LEVEL_SHIFT, 3 << LEVEL_SHIFT
_ELEMENTS = {
    "p": P | _BLANK, "li": LI | _LINE, "dt dd": TERM | _LINE, "td th": CELL | SCOPE | 1 << LEVEL_SHIFT, "tr": ROW | _LINE,
    "thead tbody tfoot": ROWS | _LINE, "table": TABLE | SCOPE | _BLANK, "caption": CAPTION | SCOPE | _LINE,
    "h1 h2 h3 h4 h5 h6": HEADING | _BLANK, "pre listing xmp plaintext": PRE | _BLANK, "a": LINK,
    "ul ol dl dir menu": LIST | _BLANK, "div center details dialog fieldset hgroup search address summary": DIV | _LINE,
    "legend optgroup option": DIV | _LINE, "br": BREAK | VOID, "title": TITLE, "html body": ROOT | _LINE,
    "nav": NAV | _LINE, "aside": ASIDE | _BLANK, "footer": FOOTER | _LINE, "header": HEADER | _LINE, "form": FORM | _LINE,
    "main": MAIN | _BLANK, "article": ARTICLE | _BLANK, "section": SECTION | _BLANK, "figure": FIGURE | _BLANK,
    "figcaption": CAPTION | _BLANK, "blockquote": QUOTE | _BLANK, "button": BUTTON | SCOPE | _LINE,
    "hr": RULE | VOID | _BLANK, "img": IMAGE | VOID,
    "area base basefont bgsound col embed frame input link meta param source track wbr": VOID,
    "script style noscript iframe noembed noframes textarea": RAW,
    "template select datalist object audio video canvas map annotation annotation-xml": HIDE, "svg": HIDE | FOREIGN | SCOPE,
    "foreignobject": HIDE | SCOPE,
}  # fmt: skip

# What an element's own class, id and role say, and what its ancestors are: bits of a node's flags.
IS_NAV, IS_SIDE, IS_FOOT, IS_HEAD, IS_COMMENT, IS_SHARE, IS_RELATED, IS_PROMO, IS_META, IS_NOTE = (
    1 << bit for bit in range(10)
)
IS_CONTENT, IS_BODY = 1 << 10, 1 << 11
"""Words such as "content" and "article"; words that name nothing but the body of an article, such as "articleBody"."""
IN_LIST, IN_TABLE, IN_FIGURE, IN_FORM, IN_QUOTE, IN_HEADING, IN_MAIN, IN_ARTICLE, IN_PRE, IN_TERM, IN_P = (
    1 << bit for bit in range(12, 23)
)
IS_LISTING = 1 << 23
BOILERPLATE = (
    IS_LISTING
    | IS_NAV
    | IS_SIDE
    | IS_FOOT
    | IS_HEAD
    | IS_COMMENT
    | IS_SHARE
    | IS_RELATED
    | IS_PROMO
    | IS_META
    | IS_NOTE
)

_WORDS = {
    IS_NAV: "nav navs navi navigation navbar topnav subnav globalnav sitenav navheader navfooter menu menus menubar submenu "
    "dropdown megamenu breadcrumb breadcrumbs crumb crumbs pagination paginator pager paging toc tabs tab skip skiplink jump "
    "pagenav sitemap directory catlinks toolbar menuitem tablist drawer hamburger",
    IS_SIDE: "sidebar sidebars sidenav side aside widget widgets rail complementary leftbar rightbar rightcol leftcol "
    "sphinxsidebar sphinxsidebarwrapper gutter secondary",
    IS_FOOT: "footer foot footers bottom copyright colophon legal disclaimer contentinfo imprint pagefoot endnote foottext",
    IS_HEAD: "header head masthead banner topbar top logo brand branding hero",
    IS_COMMENT: "comment comments commentlist commentary disqus respond reply replies feedback discussion discuss forum "
    "livefyre rating ratings review reviews vote votes",
    IS_SHARE: "share sharing shares social socials sharedaddy addthis addtoany twitter facebook linkedin pinterest whatsapp "
    "weibo wechat weixin follow sns tools print email icons icon actions action toolbox",
    IS_RELATED: "related recommend recommended recommendation recommendations recirc recirculation trending popular latest "
    "similar suggested suggestions outbrain taboola teaser teasers carousel slider hot "
    "relatedposts readmore morefrom ranking rank promoted headlines",
    IS_LISTING: "more gallery slideshow next prev previous list listing grid card cards feed item items results archive",
    IS_PROMO: "ad ads adv advert adverts advertisement advertising adbox adsbygoogle adslot sponsor sponsored sponsors promo "
    "promos promotion newsletter newsletters subscribe subscription signup signin login register cookie cookies consent "
    "gdpr popup pop modal overlay lightbox cta donate donation paywall app apps download marketing dialog alert "
    "notification toast shopping store offer offers dfp google gg ntes",
    IS_META: "meta byline bylines author authors bio date dates dateline time timestamp published publish updated tags tag "
    "taglist category categories cat keywords info postmeta source views readtime kicker eyebrow label labels contributor "
    "credit credits editor",
    IS_NOTE: "caption captions figcaption thumb thumbnail hidden hide noprint tooltip editsection screenreader offscreen "
    "visuallyhidden sr reader infobox navbox metadata reflist reference references mbox hatnote",
    IS_CONTENT: "content contents article articles main post posts entry story body text maincontent prose markdown "
    "document documentation page blog news detail details paragraph paragraphs richtext rich book chapter section",
    IS_BODY: "articlebody articlecontent articletext articlecontents storybody storycontent storytext postbody postcontent "
    "posttext entrycontent entrybody entrytext maintext bodytext bodycontent blogpost blogcontent newsbody newscontent "
    "newstext textcontent contenttext markdownbody hentry instapaper",
}  # fmt: skip
_ROLES = {"navigation": IS_NAV, "complementary": IS_SIDE, "contentinfo": IS_FOOT, "banner": IS_HEAD}

ORDINARY, SPACE_BYTE, OPEN_BYTE, AMPERSAND, NUL_BYTE, BEYOND, COMMA, FULL_STOP = range(8)
IS_WORD_BYTE = 8
"""Classes of the bytes of text; IS_WORD_BYTE is a bit of its own, of letters and digits."""


def _byte_classes() -> npt.NDArray[np.uint8]:
    classes = np.zeros(256, np.uint8)
    classes[128:] = BEYOND
    for byte, found in {
        60: OPEN_BYTE,
        38: AMPERSAND,
        0: NUL_BYTE,
        44: COMMA,
        46: FULL_STOP,
        33: FULL_STOP,
        63: FULL_STOP,
    }.items():
        classes[byte] = found
    classes[[9, 10, 12, 13, 32]] = SPACE_BYTE
    for byte in range(128):
        if chr(byte).isalnum():
            classes[byte] = IS_WORD_BYTE
    return classes


BYTE_CLASSES = _byte_classes()


@jit_inner
def extend(key: np.uint64, byte: int) -> np.uint64:
    """The hash of a name that has one byte more. Unsigned, because the product of signed integers must not overflow."""
    return (key ^ np.uint64(byte)) * _MULTIPLIER


@jit_inner
def look_up(table: Table, key: np.uint64) -> int:
    """The value of a key, 0 if it is unknown."""
    slot = np.int64(key >> np.uint64(40)) & (NUM_SLOTS - 1)
    while table[slot]:
        if table[slot] == key:
            return int(np.int64(table[NUM_SLOTS + slot]))
        slot = (slot + 1) & (NUM_SLOTS - 1)
    return 0


def hash_name(name: str, seed: np.uint64) -> int:
    """`extend` for each byte of a name."""
    key = int(seed)
    for byte in name.encode():
        key = (key ^ byte) * int(_MULTIPLIER) & 0xFFFFFFFFFFFFFFFF
    return key


def build_table() -> tuple[Table, npt.NDArray[np.uint8]]:
    """(table, UTF-8 of all character references). A reference's value is its place there, shifted by 8, and its length."""
    entries: dict[int, int] = {}

    def add(name: str, seed: np.uint64, value: int) -> None:
        key = hash_name(name, seed)
        assert key, f"{name!r} has the hash of an empty slot"
        assert key not in entries or seed == WORD_SEED, f"two names have the hash of {name!r}"
        entries[key] = entries.get(key, 0) | value

    for names, value in _ELEMENTS.items():
        for name in names.split():
            add(name, ELEMENT_SEED, value)
    for value, names in _WORDS.items():
        for name in names.split():
            add(name, WORD_SEED, value)
    for name, value in _ROLES.items():
        add(name, WORD_SEED, value)
    texts = bytearray()
    for name, text in html.entities.html5.items():
        add(name, REFERENCE_SEED, len(texts) << 8 | len(text.encode()))
        texts += text.encode()
    table = np.zeros(2 * NUM_SLOTS, np.uint64)
    for key, value in entries.items():
        slot = key >> 40 & (NUM_SLOTS - 1)
        while table[slot]:
            slot = (slot + 1) & (NUM_SLOTS - 1)
        table[slot], table[NUM_SLOTS + slot] = key, value
    return table, np.frombuffer(bytes(texts), np.uint8)
