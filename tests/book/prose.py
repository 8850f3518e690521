"""The gates on a page's text: numbers and their sources, the code that is shown, and the lists of chapters."""

import ast
import json
import re
from decimal import Decimal
from pathlib import Path

SOURCED = re.compile(r"(\S*(?:\s%)?)\s*<!-- ([\w-]+\.json):(\S+) -->")
NUMBER = re.compile(r"[-−+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?$")
DECIMAL = re.compile(r"(?<![\w.,/])[-−+]?(?:\d{1,3}(?:,\d{3})+|\d+)\.\d+(?![\w.]*\d)")
# What is left of a source that is misspelt: it is no comment, or it is one that names no source.
REMAINS = re.compile(r"<\s*!|<\s*-+|-\s*!?>|&lt;|\.json\b")
FORMULA = re.compile(r"\$\$.*?\$\$|\$[^$]*\$", re.DOTALL)
FENCED = re.compile(
    r"^(`{3,})(?!\{(?:exercise|solution|dropdown|note|admonition))[^\n]*\n.*?^\1\s*$", re.MULTILINE | re.DOTALL
)
EXERCISES = re.compile(r"^(`{3,})\{(?:exercise|solution)\}.*?^\1\s*$", re.MULTILINE | re.DOTALL)
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
        number = Decimal(shown.group().replace("−", "-").replace(",", ""))
        exact = Decimal(repr(value)) * (100 if "%" in typed else 1)
        half_a_unit = Decimal(5).scaleb(number.as_tuple().exponent - 1)
        if abs(number - exact) > half_a_unit:
            problems.append(f"{shown.group()} is typed where {file}:{path} is {value}")
    problems += [f"a comment inside the formula {f!r}" for f in FORMULA.findall(rest) if "<!" in f]
    rest = SOURCED.sub(" ", FORMULA.sub(" ", rest))
    for left in REMAINS.finditer(rest):
        around = " ".join(rest[max(0, left.start() - 30) : left.end() + 30].split())
        problems.append(f"a comment, or what is left of one, that names no source: {around!r}")
    return problems


def unsourced(text: str, known: str) -> list[str]:
    """A decimal fraction in a chapter's prose names its source, or stands in its outputs or its code.

    Exempt are exercises, which make up numbers, and formulas that hold more than the one number.
    """
    prose = plain(EXERCISES.sub(" ", SOURCED.sub(" ", text)))
    prose = FORMULA.sub(lambda m: m.group().strip("$") if NUMBER.fullmatch(m.group().strip("$ ")) else " ", prose)
    shown = [abs(Decimal(n.replace(",", ""))) for n in re.findall(r"\d[\d,]*(?:\.\d+)?", known)]
    problems = []
    for match in DECIMAL.finditer(prose):
        number = abs(Decimal(match.group().replace("−", "-").replace(",", "")))
        half_a_unit = Decimal(5).scaleb(number.as_tuple().exponent - 1)
        if not any(abs(value - number) <= half_a_unit for value in shown):
            problems.append(f"{match.group()} has no source, and is in no output")
    return problems


def plain(text: str) -> str:
    """Text without front matter, code, addresses and roles."""
    text = FENCED.sub(" ", re.sub(r"\A---\n.*?\n---\n", " ", text, flags=re.DOTALL))
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


def _look_up(data: object, path: str) -> float:
    for key in path.split("."):
        data = data[int(key)] if isinstance(data, list) else data[key]
    if isinstance(data, bool) or not isinstance(data, (int, float)):
        raise ValueError(f"not a number: {data!r}")
    return data
