"""Which of 18 programming languages a file is in, by its name and, where names are ambiguous, by its content.

In: a path and the file's first bytes. Out: a name of LANGUAGES, or OTHER for everything else: a language that is not in the
table, data, markup, and files that share a suffix with one of the 18 (Objective-C headers, Qt translations in .ts, Rebol
in .r, Smalltalk in .cs). Order: file name, suffix, then content: a test per ambiguous suffix, `#!` line and editor modeline.
Sources: the order of strategies and the idea of a test per suffix are those of GitHub's linguist; the tests are our own.
"""

import codecs
import re
from collections.abc import Callable
from typing import NamedTuple

OTHER = "other"
MAX_LOOK_BYTES = 128 << 10
"""Content tests read no more than this."""


class Language(NamedTuple):
    """How files of a language are recognised. Fields of several words are split at spaces."""

    suffixes: str
    comment: str
    """A line comment with {} for its text."""
    interpreters: str = ""
    """Programs of a `#!` line, without version digits."""
    file_names: str = ""
    modes: str = ""
    """Names that Emacs and Vim modelines use, beside the language's own."""


LANGUAGES = {
    "python": Language(
        ".py .pyi .pyw .py3", "# {}", "python pypy", "SConstruct SConscript wscript .pythonrc", "python3 py"
    ),
    "javascript": Language(
        ".js .mjs .cjs .jsx .es6", "// {}", "node nodejs bun", "Jakefile", "js js2 js-jsx jsx javascriptreact"
    ),
    "typescript": Language(".ts .tsx .mts .cts", "// {}", "ts-node tsx deno", "", "ts tsx typescriptreact"),
    "java": Language(".java", "// {}"),
    "c": Language(".c .h .H", "// {}", "tcc"),
    "c++": Language(
        ".cpp .cc .cxx .c++ .C .hpp .hh .hxx .h++ .ipp .ixx .cppm .tpp .tcc .txx .inl", "// {}", "", "", "cpp c++11"
    ),
    "c#": Language(".cs .csx", "// {}", "dotnet-script", "", "cs csharp"),
    "go": Language(".go", "// {}", "gorun", "", "golang"),
    "rust": Language(".rs", "// {}", "rust-script cargo", "", "rs"),
    "ruby": Language(
        ".rb .rake .gemspec .ru .podspec .rbw .jbuilder .thor",
        "# {}",
        "ruby jruby rake rbx",
        "Rakefile Gemfile Guardfile Capfile Vagrantfile Podfile Fastfile Brewfile Thorfile Appraisals Dangerfile",
        "rb enh-ruby",
    ),
    "php": Language(".php .phtml .php3 .php4 .php5 .php7 .php8 .phps", "<?php /* {} */ ?>", "php", "", "php3"),
    "swift": Language(".swift", "// {}", "swift"),
    "kotlin": Language(".kt .kts", "// {}", "kotlin kscript", "", "kt"),
    "scala": Language(".scala .sbt .sc", "// {}", "scala scala-cli amm"),
    "shell": Language(
        ".sh .bash .zsh .ksh .bats .command",
        "# {}",
        "sh bash dash zsh ksh ash mksh bats",
        ".bashrc .bash_profile .bash_login .bash_logout .bash_aliases .profile .zshrc .zshenv .zprofile .kshrc PKGBUILD",
        "sh shell-script bash zsh ksh",
    ),
    "sql": Language(".sql .pgsql .plsql .pks .pkb .ddl .dml .tsql", "-- {}", "", "", "plsql pgsql mysql"),
    "lua": Language(".lua .wlua .rockspec", "-- {}", "lua luajit texlua"),
    "r": Language(".r .R", "# {}", "Rscript", ".Rprofile", "ess-r ess"),
}
"""The 18 languages. Every other one is OTHER."""

_BY_SUFFIX = {suffix: name for name, language in LANGUAGES.items() for suffix in language.suffixes.split()}
_BY_FILE_NAME = {name: key for key, language in LANGUAGES.items() for name in language.file_names.split()}
_BY_INTERPRETER = {program: key for key, language in LANGUAGES.items() for program in language.interpreters.split()}
_BY_MODE = {mode: key for key, language in LANGUAGES.items() for mode in (key, *language.modes.split())}

_NEVER_CODE = frozenset(
    "png jpg jpeg gif webp bmp ico icns tif tiff psd svg eps ttf otf woff woff2 eot mp3 mp4 wav ogg webm mov avi flac pdf doc "
    "docx xls xlsx ppt pptx odt epub zip tar gz tgz bz2 xz zst 7z rar jar whl egg class pyc pyo pyd so dylib dll exe o a lib "
    "obj bin dat npy npz pt pth onnx safetensors gguf parquet arrow feather db sqlite pkl csv tsv json jsonl ndjson yaml yml "
    "toml xml html htm css scss less md rst lock map ipynb po pot mo".split()
)

_MARKUP = re.compile(r"\s*<(?:\?xml|!DOCTYPE|html|svg|TS[ >])", re.IGNORECASE)
_SHEBANG = re.compile(r"#!\s{0,8}(\S{1,256})((?:[ \t]{1,8}[^\s]{1,256}){0,8})")
_EMACS_MODE = re.compile(
    r"-\*-[ \t]*(?:[^\n]{0,200}?\bmode:[ \t]*)?([A-Za-z][\w+#-]{0,30}?)[ \t]*(?:;[^\n]{0,200})?-\*-", re.IGNORECASE
)
_VIM_MODE = re.compile(r"\b(?:vim?|ex):[^\n]{0,200}?\b(?:ft|filetype|syntax)=([\w+-]{1,30})")
_C_NOISE = re.compile(r"/\*.*?(?:\*/|\Z)|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"?|'(?:\\.|[^'\\\n]){1,4}'", re.DOTALL)
_DIRECTIVE = re.compile(r"[ \t]*#[ \t]*(ifdef|ifndef|if|elif|else|endif)\b([^\n]*)")
_OBJECTIVE_C = re.compile(
    r"^[ \t]*@(?:interface|protocol|class|implementation|property|end|optional|import)\b"
    r"|^[ \t]*#[ \t]*import[ \t]*[<\"][^>\"\n]+\.h[>\"]"
    r"|\b(?:NS_ASSUME_NONNULL_BEGIN|NS_ENUM|NS_OPTIONS|FOUNDATION_EXPORT|UIKIT_EXTERN)\b",
    re.MULTILINE,
)
_CPP = re.compile(
    r"^[ \t]*#[ \t]*include[ \t]*<[A-Za-z_0-9/]+>"  # a header without a suffix: the standard library's, Qt's
    r"|^[ \t]*#[ \t]*include[ \t]*[<\"][^>\"\n]+\.(?:hpp|hh|hxx|ipp|inl|tcc)[>\"]"
    r"|^[ \t]*(?:export[ \t]+)?template[ \t]*<|^[ \t]*(?:inline[ \t]+)?namespace\b[^;\n]*(?:\{|$)"
    r"|^[ \t]*using[ \t]+(?:namespace[ \t]+\w|[\w:]+[ \t]*(?:=|;))"
    r"|^[ \t]*(?:enum[ \t]+)?class[ \t]+[A-Za-z_\[]"
    r"|^[ \t]*struct[ \t]+(?:\w+[ \t]+)?\w+[ \t]*(?:final[ \t]*)?:[ \t]*(?:public|private|virtual|\w+::|\w+[ \t]*[{<])"
    r"|^[ \t]*(?:public|private|protected)[ \t]*(?:\w+[ \t]*)?:"
    r"|\b[A-Za-z_]\w*::[~A-Za-z_]|\b(?:static|dynamic|reinterpret|const)_cast[ \t]*<"
    r"|\boperator[ \t]*(?:[-+*/%=<>!&|^~\[]|\([ \t]*\)|new\b|delete\b)|^[ \t]*virtual[ \t]+[\w~]"
    r"|^[ \t]*(?:explicit|friend|mutable)[ \t]+[\w:]|\b(?:constexpr|noexcept|nullptr|decltype|typename)\b"
    r"|\bconst[ \t]+\w+[ \t]*&[ \t]*\w+[ \t]*[,)=]|\)[ \t]*(?:const[ \t]*)?override\b|=[ \t]*(?:delete|default)[ \t]*;",
    re.MULTILINE,
)
_C_LIKE = re.compile(
    r"^[ \t]*#[ \t]*(?:include|define|ifdef|ifndef|undef)\b|^[ \t]*(?:static|extern|typedef|struct)\b", re.MULTILINE
)
_NOT_C = re.compile(
    r"^[ \t]*(?:%(?:macro|define|include)|\.(?:macro|globl|text)|\{\$|#(?:declare|macro|local))\b", re.MULTILINE
)
_PHP = re.compile(r"<\?(?:php\b|=|\s)", re.IGNORECASE)
_SQL = re.compile(
    r"^[ \t(]{0,80}(?:select|insert|update|delete|create|alter|drop|with|begin|set|use|grant|revoke|declare|merge|exec|execute"
    r"|truncate|pragma|copy|explain|commit|start|replace|comment|lock|call|do|vacuum|analyze|delimiter|rollback|attach)\b"
    r"(?![ \t]*[=(:]|\.)",
    re.IGNORECASE | re.MULTILINE,
)
_SQL_COMMENT = re.compile(r"--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
_SMALLTALK = re.compile(r"^![\w\s]{1,200}methodsFor: |\bsubclass: #\w+", re.MULTILINE)
_REBOL = re.compile(r"\s*(?:;[^\n]*\n\s*)*(?:rebol|red)(?:/\w+)?\s*\[", re.IGNORECASE)
_R = re.compile(
    r"<-|^[ \t]*#|\bfunction[ \t]*\(|\b(?:library|require|source|c|list|data\.frame|print|cat)[ \t]*\(", re.MULTILINE
)
_SUPERCOLLIDER = re.compile(
    r"\bSynthDef\b|^[ \t]*\+?[A-Z]\w*\s*(?::\s*\w+\s*)?\{\s*(?:var|classvar|\*?\w+\s*\{)|\{\s*(?:arg\b|\|\w+)|\.play\b",
    re.MULTILINE,
)
_SCALA = re.compile(r"^[ \t]*(?:import|package|object|case|class|trait|def|val|var|enum|given)\b|//>", re.MULTILINE)


def detect_language(path: str, content: bytes, *, header_language: str = "c") -> str:
    """A name of LANGUAGES, or OTHER. `content` is the file or its beginning; nothing of it is executed.

    `header_language` is what a header is that reads alike in C and in C++: macros, or nothing but #include lines.
    """
    name = path.rpartition("/")[2]
    suffix = _suffix(name)
    by_name = _BY_FILE_NAME.get(name) or _BY_SUFFIX.get(suffix)
    text = _decode(content[:MAX_LOOK_BYTES])
    if by_name is not None and by_name != "php" and _MARKUP.match(text):
        return OTHER
    test = _TESTS.get(suffix)
    if by_name is not None and test is None and by_name != "shell":
        return by_name
    declared = _from_shebang(text) or _from_modeline(text)
    if test is not None:
        return (declared if declared is not None and declared != "shell" else test(text)) or header_language
    return declared or by_name or OTHER


def language_of_name(path: str) -> str | None:
    """What the name alone says; None where the content decides."""
    name = path.rpartition("/")[2]
    suffix = _suffix(name)
    by_name = _BY_FILE_NAME.get(name) or _BY_SUFFIX.get(suffix)
    return None if suffix in _TESTS or by_name == "shell" else by_name


def is_never_code(path: str) -> bool:
    """Whether the suffix is one of images, documents, data and binaries: such files need not be read."""
    _, dot, suffix = path.rpartition("/")[2].lower().rpartition(".")
    return bool(dot) and suffix in _NEVER_CODE


def _suffix(name: str) -> str:
    """Lower case, but for .C, .H and .R whose capital means something. A hidden file's name is no suffix."""
    stem, dot, suffix = name.rpartition(".")
    if not dot or not stem:
        return ""
    return f".{suffix}" if f".{suffix}" in _BY_SUFFIX else f".{suffix.lower()}"


def _decode(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    return content.removeprefix(codecs.BOM_UTF8).decode("latin-1")  # patterns are ASCII; a character stays a byte


def _from_shebang(text: str) -> str | None:
    """OTHER for a program that is not in the table."""
    match = _SHEBANG.match(text)
    if match is None:
        return None
    program = match[1].rpartition("/")[2]
    words = match[2].split()
    if program == "env":
        program = next((word.rpartition("/")[2] for word in words if not word.startswith("-") and "=" not in word), "")
    return _BY_INTERPRETER.get(program) or _BY_INTERPRETER.get(re.sub(r"[\d.]+(?:\.exe)?$", "", program), OTHER)


def _from_modeline(text: str) -> str | None:
    lines = text[:2000].split("\n", 5)
    match = _EMACS_MODE.search("\n".join(lines[:2])) or _VIM_MODE.search("\n".join((*lines[:5], text[-400:])))
    if match is None or match[1].lower() in ("coding", "mode", "tab-width", "indent-tabs-mode"):
        return None
    return _BY_MODE.get(match[1].lower(), OTHER)


def _c_family(text: str) -> str:
    """Of a header: what stands outside of comments, strings and parts that only a C++ compiler reads.

    Empty for one that reads alike in both languages.
    """
    code = _C_NOISE.sub(lambda match: _quoted(match[0]), text)
    if _OBJECTIVE_C.search(code):
        return OTHER
    common = _without_cplusplus_parts(code)
    if _CPP.search(common):
        return "c++"
    if re.search(r"[;}]", common):
        return "c"
    return "c++" if _CPP.search(code) else ""


def _quoted(noise: str) -> str:
    """Comments go; a string that an #include names stays, for its suffix tells the language."""
    return noise if noise.startswith('"') and "." in noise and len(noise) < 200 else " "


def _without_cplusplus_parts(code: str) -> str:
    """Without what stands between `#ifdef __cplusplus` and its #else or #endif: C headers have such parts."""
    kept: list[str] = []
    is_hidden: list[bool] = []
    for line in code.split("\n"):
        match = _DIRECTIVE.match(line)
        if match is None:
            if not any(is_hidden):
                kept.append(line)
        elif match[1] in ("if", "ifdef", "ifndef"):
            is_hidden.append(match[1] != "ifndef" and "__cplusplus" in match[2] and "!" not in match[2])
        elif is_hidden and match[1] == "endif":
            is_hidden.pop()
        elif is_hidden:
            is_hidden[-1] = False
    return "\n".join(kept)


def _include_file(text: str) -> str:
    if _PHP.search(text):
        return _php(text)
    return _c_family(text) if _C_LIKE.search(text) and re.search(r"[;{]", text) and not _NOT_C.search(text) else OTHER


def _php(text: str) -> str:
    """Pages with PHP in them are PHP, pages without are HTML. Hack says `<?hh`."""
    return "php" if _PHP.search(text) else OTHER


def _typescript(text: str) -> str:
    is_transport_stream = text[0:1] == text[188:189] == text[376:377] == "G"  # MPEG: a sync byte every 188
    return OTHER if is_transport_stream or text.lstrip().startswith("<") else "typescript"


def _c_sharp(text: str) -> str:
    return OTHER if _SMALLTALK.search(text) or not re.search(r"[;{]", text) else "c#"


def _rust(text: str) -> str:
    return OTHER if re.search(r"^[ \t]{0,80}#pragma[ \t]+(?:version|rs)\b", text, re.MULTILINE) else "rust"


def _r(text: str) -> str:
    return "r" if not _REBOL.match(text) and _R.search(text) else OTHER


def _sql(text: str) -> str:
    return "sql" if _SQL.search(_SQL_COMMENT.sub(" ", text)) else OTHER


def _scala(text: str) -> str:
    return "scala" if _SCALA.search(text) and not _SUPERCOLLIDER.search(text) else OTHER


_TESTS: dict[str, Callable[[str], str]] = {
    ".h": _c_family,
    ".H": _c_family,
    ".C": lambda text: _c_family(text) or "c++",
    ".inc": _include_file,
    ".ts": _typescript,
    ".cs": _c_sharp,
    ".rs": _rust,
    ".r": _r,
    ".R": _r,
    ".sc": _scala,
    **dict.fromkeys(LANGUAGES["sql"].suffixes.split(), _sql),
    **dict.fromkeys(LANGUAGES["php"].suffixes.split(), _php),
}
"""By suffix: what the content says. A `#!` line or a modeline that names a language is stronger."""
