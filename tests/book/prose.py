"""The gates on a page's text: numbers and their sources, the code that is shown, and the lists of chapters."""

import ast
import io
import json
import re
import tokenize
import unicodedata
from decimal import Decimal
from functools import cache
from pathlib import Path

SOURCED = re.compile(r"(\S*(?:\s%)?)\s*<!-- ([\w-]+\.json):(\S+) -->")
NUMBER = re.compile(r"(?<![\w.,])(?:(?<!\d)[-−–+])?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?$")
TYPED = re.compile(
    r"(?<![\w.,/#–-])(?<!Python )(?<!CC BY )([-−+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?)"
    r"(?![\w.,/]*\d)(\s?%|\sper\s?cent)?"
)
YEAR = re.compile(r"\b(?:in|until|since|before|after)\s\Z", re.IGNORECASE)
IN_FORMULA = re.compile(r"(?:(?<![\w.])|(?<=approx))(\d*\.\d+)(?![\w.])")
GLUED = re.compile(r"-->(?:[\w.,]*\d|\s*[%‰^×⁻⁰¹²³⁴-⁹])")
"""What is read as part of the number before a source."""
# What is left of a source that is misspelt: it is no comment, or it is one that names no source.
REMAINS = re.compile(r"<\s*!|<\s*-+|-\s*!?>|&lt;|\.json\b")
FORMULA = re.compile(r"\$\$.*?\$\$|\$[^$]*\$", re.DOTALL)
FENCED = re.compile(r"^ *(`{3,}) *([^\n`]*)\n(.*?)^ *\1 *$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(?!\{)|\{(?:code-cell|literalinclude|bibliography)\}")
"""What stands between fences and is no prose: all that is no directive, and these."""
EXERCISES = re.compile(r"^(`{3,})\{exercise\}.*?^\1\s*$", re.MULTILINE | re.DOTALL)
DIRECTIVES = {"code-cell", "literalinclude", "bibliography", "glossary", "figure", "dropdown", "exercise"}
DIRECTIVES |= {"solution", "solution-start", "solution-end", "prf:theorem", "prf:proof", "prf:lemma", "prf:proposition"}
FOREIGN = {
    "a directive": re.compile(r"^ *[`:~]{3,} *\{([^}]*)\}", re.MULTILINE),
    "a class": re.compile(r"^ *:class: *(.*)|\{([.#][^}]*|[^}`$]*=[\"'][^}`$]*)\}", re.MULTILINE),
    "HTML": re.compile(r"(</?[a-zA-Z][^>\n]*>)"),
    "a comment": re.compile(r"^(%.*)", re.MULTILINE),
    "a number": re.compile(r"(\d(?:·\d|,\d\d?(?![\d])|[¼-¾⅐-⅞]|\s?‰))"),
    "a typed number of a figure or a statement": re.compile(
        r"\b((?:figure|fig\.|table|theorem|lemma|proposition|equation|eq\.|section|chapter)\s\(?\d)", re.IGNORECASE
    ),
}
UNSEEN = re.compile(
    r"(\\(?:[hv]?phantom|(?:text)?color(?:box)?|class|cssId|style|href|require|[rl]lap|smash|def|newcommand))\b"
)
"""Commands of MathJax's that hide, paint or rename."""
CLASSES = {"dropdown", ".cards", ".cards .verdicts"}
DROPDOWN = re.compile(r"^(`{3,})\{dropdown\} *([^\n]*)\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)
INCLUDE = re.compile(r"\{literalinclude\} *(\S+)\n((?:^:.*\n)*)", re.MULTILINE)


def sources(text: str, results: Path) -> list[str]:
    """A number followed by <!-- file.json:key.path --> is that number, at the rounding at which it is typed.

    There is no other comment in a page, and nothing that looks like one that went wrong.
    """
    problems, rest = [], plain(text)
    for typed, file, path in SOURCED.findall(rest):
        shown = NUMBER.search(typed.rstrip("$%*|\\ \u00a0\u202f"))
        if shown is None:
            problems.append(f"no number before <!-- {file}:{path} -->")
            continue
        try:
            value = _look_up(json.loads((results / file).read_text(encoding="utf-8")), path)
        except (OSError, KeyError, IndexError, ValueError, TypeError) as error:
            problems.append(f"{file}:{path} cannot be read: {error!r}")
            continue
        number = _decimal(shown.group())
        exact = Decimal(repr(value)) * (100 if "%" in typed else 1)
        half_a_unit = Decimal(5).scaleb(number.as_tuple().exponent - 1)
        if abs(number - exact) > half_a_unit:
            problems.append(f"{shown.group()} is typed where {file}:{path} is {value}")
    problems += [f"{m.group()!r} goes on after the source of a number" for m in GLUED.finditer(rest)]
    problems += [f"a comment inside the formula {f!r}" for f in FORMULA.findall(rest) if "<!" in f]
    rest = SOURCED.sub(" ", FORMULA.sub(" ", rest))
    for left in REMAINS.finditer(rest):
        around = " ".join(rest[max(0, left.start() - 30) : left.end() + 30].split())
        problems.append(f"a comment, or what is left of one, that names no source: {around!r}")
    return problems


def captions(notebook) -> str:
    """What code cells say in words: captions, alternative texts and comments."""
    texts = []
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        own = cell.metadata.get("mystnb", {})
        texts += [own.get("figure", {}).get("caption", ""), own.get("image", {}).get("alt", "")]
        tokens = tokenize.generate_tokens(io.StringIO(cell.source).readline)
        texts += [token.string for token in tokens if token.type == tokenize.COMMENT]
    return "\n\n".join(map(str, texts))


def unsourced(text: str, known: str, elsewhere: str = "") -> list[str]:
    """A fraction or a share in prose names its source, or stands in the chapter's outputs or code, with its sign.

    A whole number of three digits or more may stand elsewhere in the book's outputs or code: it is a size or a setting.
    Exempt are exercises, which make up numbers, versions, and in formulas that hold more than the one number those of
    three digits.
    """
    prose = plain(EXERCISES.sub(" ", SOURCED.sub(" ", text)))
    prose = re.sub(r"(?<=\d)[–/](?=\d)", " ", prose)
    formulas = [*FORMULA.findall(prose), *re.findall(r"(?<!`)`([-−+]?\d*\.\d+)`", unfenced(text))]
    prose += "\n\n" + "\n".join(b[3] for b in FENCED.finditer(text) if b[2].strip() in ("", "text"))
    prose = FORMULA.sub(lambda m: m.group().strip("$") if NUMBER.fullmatch(m.group().strip("$ ")) else " ", prose)
    shown, anywhere = _numbers(known), _numbers(known) | _numbers(elsewhere)
    shares, problems = {100 * value for value in shown}, []
    for match in TYPED.finditer(prose):
        number, fraction, share = _decimal(match[1]), "." in match[1], match[2] and match[1] != "95"
        year = match[1].isdigit() and 1900 <= number < 2100 and YEAR.search(prose[: match.start()])
        if not (fraction or share) and (len(match[1].strip("-−+")) < 3 or year):
            continue
        half_a_unit = Decimal(5).scaleb(number.as_tuple().exponent - 1)
        pool = anywhere if not (fraction or share) else shown | shares if share else shown
        if not any(abs(value - number) <= half_a_unit for value in pool):
            problems.append(f"{match[1]} has no source, and is in no output")
    for typed in (found for formula in formulas for found in IN_FORMULA.findall(formula)):
        number, digits = _decimal(typed), len(typed.replace(".", "").lstrip("0"))
        half_a_unit = Decimal(5).scaleb(number.as_tuple().exponent - 1)
        if digits >= 4 and not any(abs(value - number) <= half_a_unit for value in shown):
            problems.append(f"{typed}, in a formula or code, has no source, and is in no output")
    return problems


def foreign(text: str) -> list[str]:
    """A page holds nothing that the other gates cannot read, or that its readers cannot see."""
    allowed = {"a directive": DIRECTIVES, "a class": CLASSES, "a comment": {"% modules", "% costs"}}
    rest = FORMULA.sub(" ", plain(text))
    found = {(kind, next(filter(None, m.groups()), "")) for kind, form in FOREIGN.items() for m in form.finditer(rest)}
    found |= {("a directive", m[1]) for m in FOREIGN["a directive"].finditer(text)}
    found |= {("a command", name) for formula in FORMULA.findall(unfenced(text)) for name in UNSEEN.findall(formula)}
    strange = [(kind, what) for kind, what in sorted(found) if what not in allowed.get(kind, ())]
    return [f"{kind} that pages do not have: {what!r}" for kind, what in strange]


def unseen(text: str) -> list[str]:
    """Characters that are not seen, or that look like others: of no width, controls, letters and digits from afar."""
    found = []
    for sign in sorted({*text} - {*map(chr, range(32, 127)), "\n"}):
        kind, name = unicodedata.category(sign), unicodedata.name(sign, repr(sign))
        letter = kind[0] == "L" and not name.startswith(("LATIN", "GREEK", "SUPERSCRIPT", "SUBSCRIPT"))
        if letter or kind in ("Cf", "Cc", "Co", "Cs", "Cn", "Nd", "Zl", "Zp") or "FULLWIDTH" in name:
            found.append(f"the sign {name}")
    return found


def unfenced(text: str) -> str:
    """Text without code, with what stands in directives and in the titles of dropdowns."""

    def words(block: re.Match) -> str:
        title = block[2].removeprefix("{dropdown}") if block[2].startswith("{dropdown}") else ""
        return " " if CODE.match(block[2]) else f"{title}\n{unfenced(block[3])}"

    return FENCED.sub(words, text)


def plain(text: str) -> str:
    """Text without front matter, code, addresses and roles."""
    text = unfenced(re.sub(r"\A---\n.*?\n---\n", " ", text, flags=re.DOTALL))
    text = re.sub(r"\{[\w:]+\}`([^`<]*)<[^`>]*>`", r" \1 ", text)
    text = re.sub(r"\{[\w:]+\}`[^`]*`|``.+?``|`[^`\n]*`", " ", text)
    return re.sub(r"\]\([^)]*\)", "] ", text)


def included(page: Path, checks: dict[str, tuple[str, str]]) -> list[str]:
    """Code that is shown is what its dropdown's title says: it ends in ": names", and a check is the one just above.

    Args:
        page: the chapter.
        checks: of every claim the file and the function that check it.
    """
    text, problems = page.read_text(encoding="utf-8"), []
    outside = DROPDOWN.sub(lambda m: " " if "{literalinclude}" in m.group() else m.group(), text)
    if "{literalinclude}" in outside:
        problems.append("code is shown outside a dropdown, so without a name")
    for dropdown in DROPDOWN.finditer(text):
        title, shown = dropdown[2], INCLUDE.findall(dropdown[3])
        objects = [re.findall(r"^:pyobject: *(\S+)$", options, re.MULTILINE) for _, options in shown]
        objects = [names[0] if len(names) == 1 else None for names in objects]
        if shown and title.rpartition(": ")[2].split(", ") != objects:
            problems.append(f"the title {title!r} names other code than is shown: {objects}")
        for (path, options), name in zip(shown, objects, strict=True):
            file = (page.parent / path).resolve()
            if set(re.findall(r"^:([\w-]+):", options, re.MULTILINE)) != {"language", "pyobject"}:
                problems.append(f"{path}: expected the options language and pyobject and no others")
            elif not file.is_file() or name not in _objects(ast.parse(file.read_text(encoding="utf-8"))):
                problems.append(f"{path} has no {name}")
        if shown and "check" in title:
            above = re.findall(r"^verify\(\"([^\"]+)\"\)", text[: dropdown.start()], re.MULTILINE)
            wanted = checks.get(above[-1]) if above else None
            if wanted is None or (Path(shown[0][0]).name, objects[0]) != wanted:
                problems.append(f"{title!r} shows {objects[0]}, where the check just above is {wanted}")
    return problems


def unlisted(pages: dict[str, str], listing: str, link: str) -> list[str]:
    """Every chapter stands once in a list of chapters, and in the list's order."""
    found = [page for page in re.findall(link, listing) if page in pages]
    if found == list(pages):
        return []
    missing, twice = [p for p in pages if p not in found], sorted({p for p in found if found.count(p) > 1})
    return [f"{page} is missing" for page in missing] + [f"{page} stands twice" for page in twice] or [
        "the order differs"
    ]


def _objects(tree: ast.Module, prefix: str = "") -> set[str]:
    found = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found |= {prefix + node.name}
            found |= _objects(node, f"{prefix}{node.name}.") if isinstance(node, ast.ClassDef) else set()
    return found


def _decimal(text: str) -> Decimal:
    return Decimal(re.sub("[−–]", "-", re.sub("[,_]", "", text)))


@cache
def _numbers(text: str) -> set[Decimal]:
    """All numbers in a text, and their sizes: a loss of 2 is a gain of −2."""
    found = {_decimal(n) for n in re.findall(r"(?:(?<![\w.])[-−])?\d[\d,_]*(?:\.\d+)?(?:e[-+]?\d\d?(?!\w))?", text)}
    return found | {abs(value) for value in found}


def _look_up(data: object, path: str) -> float:
    for key in path.split("."):
        data = data[int(key)] if isinstance(data, list) else data[key]
    if isinstance(data, bool) or not isinstance(data, (int, float)):
        raise ValueError(f"not a number: {data!r}")
    return data
