"""The gates on a chapter's cells and outputs: each takes what it checks and returns the problems that it found.

Those on its text are in prose.py, those on claims in evidence.py.
"""

import ast
import builtins
import re
from pathlib import Path

from fingerprint import as_md, inputs, read_ipynb, read_md
from prose import unseen

MAX_LINES, MAX_CELL_LINES, MAX_WIDTH = 120, 18, 90
MAX_DIGITS = 6
DISPLAYS = {"plt.show()": "image/png", "verify(": "text/markdown", "table(": "text/markdown"}
FLOAT = re.compile(r"(?<![\w.])(\d+\.\d+|\d+(?=[eE][-+]?\d))(?:[eE][-+]?\d+)?")
KINDS = {"text/plain", "text/markdown", "image/png", "image/svg+xml"}
"""What an output may hold: the rest is compared by nobody, or shown by the site in place of what is."""
TAGS = {"hide-input"}
"""Tags that a code cell may have: they change how it looks, not whether it is run, compared or shown."""
METADATA = {"kernelspec", "language_info", "jupytext", "vaebook"}
CELL_METADATA = {"mystnb.figure.caption", "mystnb.figure.name", "mystnb.image.alt", "mystnb.markdown_format"}
"""Other metadata of a notebook and of a code cell; more of them may hide code or outputs, or show them otherwise."""
HIDING = {"capture_output", "clear_output", "redirect_stdout", "redirect_stderr", "get_ipython", "update_display"}
HIDING |= {"environ", "getenv", "exec", "eval", "setattr", "delattr", "globals", "__import__", "import_module", "patch"}
HIDING |= {"suppress", "open", "compile", "breakpoint", "exit", "quit", "input", "vars", "locals", "type", "object"}
HIDING |= {"write_text", "write_bytes", "unlink", "rename", "savefig"}
MODULES = {"IPython", "itertools", "json", "math", "matplotlib", "numpy", "pathlib", "scipy", "sklearn", "textwrap"}
MODULES |= {"torch", "vaebook", "zuko"}
"""What a chapter may import: others know the clock or the machine, or change what is printed."""
SHOWING = {"print": "", "table": "vaebook.tables.", "verify": "vaebook.claims."}
SHOWING |= dict.fromkeys(("display", "Markdown"), "IPython.display.")
"""What shows something, and where it comes from."""
CHANGING = {"append", "extend", "insert", "update", "setdefault", "pop", "clear", "remove", "sort", "reverse"}
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
EFFECTS = {"append", "extend", "update", "fit", "print", "set_num_threads", "manual_seed", "use_style"}
"""What a statement may call for its effect alone; besides, whatever ends in _, and all that draws."""
MIN_ALT = 40


def pairing(md: Path) -> list[str]:
    """.md and .ipynb hold the same cells: type, source, tags and other metadata."""
    ipynb = md.with_suffix(".ipynb")
    if not ipynb.exists():
        return [f"{md.name} has no {ipynb.name}; run make execute"]
    written, stored = read_md(md), read_ipynb(ipynb)
    problems = []
    if any(notebook.metadata.get("kernelspec") != KERNEL for notebook in (written, stored)):
        problems.append("a kernel other than python3")
    if md.read_text(encoding="utf-8") != as_md(written):
        problems.append(f"{md.name} is not written as JupyterLab writes it; make execute does")
    pairs = list(zip(inputs(written), inputs(stored), strict=False))
    if len(written.cells) != len(stored.cells):
        problems.append(f"{len(written.cells)} cells in the .md, {len(stored.cells)} in the .ipynb")
    for number, (left, right) in enumerate(pairs, start=1):
        differs = [key for key in left if left[key] != right[key]]
        if differs:
            shown = f"{left[differs[0]]!r} / {right[differs[0]]!r}"
            problems.append(f"cell {number} differs in {', '.join(differs)}: {shown}")
    return problems


def stored_outputs(ipynb: Path) -> list[str]:
    """All code cells were run once, in order, without errors and warnings, and what they displayed is there."""
    problems = []
    code = [cell for cell in read_ipynb(ipynb).cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, start=1):
        if cell.execution_count != number:
            problems.append(f"code cell {number} has execution count {cell.execution_count}")
        kinds = {output.output_type for output in cell.outputs}
        if "error" in kinds:
            problems.append(f"code cell {number} stores an error")
        if any(output.get("name") == "stderr" for output in cell.outputs):
            problems.append(f"code cell {number} stores text from stderr")
        for data in (output.get("data", {"text/plain": ""}) for output in cell.outputs):
            odd = {*data} - KINDS or {"image/svg+xml"} & {*data} - ({"image/svg+xml"} if "image/png" in data else set())
            problems += [f"code cell {number} stores {mime}, which nothing compares" for mime in sorted(odd)]
        if any(output.get("metadata") for output in cell.outputs):
            problems.append(f"code cell {number} stores an output with metadata")
        problems += [f"code cell {number} shows {what}" for what in unseen(shown_text(cell))]
        mimes = {mime for output in cell.outputs for mime in output.get("data", {})}
        if {"figure", "image"} & {*cell.metadata.get("mystnb", {})} and "image/png" not in mimes:
            problems.append(f"code cell {number} describes a picture but stores none")
        lines = cell.source.strip().splitlines() or [""]
        for call, mime in DISPLAYS.items():
            if lines[-1].startswith(call) and mime not in mimes:
                problems.append(f"code cell {number} ends in {call} but stores no {mime}")
        if "print(" in cell.source and "stream" not in kinds:
            problems.append(f"code cell {number} prints but stores no text")
    return problems


def code_size(sources: list[str]) -> list[str]:
    """Chapters are thin: few lines, short ones, no classes, no functions of more than one statement."""
    problems, total = [], 0
    for number, source in enumerate(sources, start=1):
        lines = [line for line in source.splitlines() if line.strip() and not line.strip().startswith("#")]
        total += len(lines)
        if not lines:
            problems.append(f"code cell {number} is empty")
        if len(lines) > MAX_CELL_LINES:
            problems.append(f"code cell {number} has {len(lines)} lines of code, more than {MAX_CELL_LINES}")
        if max(map(len, source.splitlines()), default=0) > MAX_WIDTH:
            problems.append(f"code cell {number} has a line of more than {MAX_WIDTH} characters: readers must scroll")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                problems.append(f"code cell {number} defines the class {node.name}")
            if isinstance(node, ast.FunctionDef) and len(node.body) > 1:
                problems.append(f"code cell {number} defines the function {node.name}")
    if total > MAX_LINES:
        problems.append(f"{total} lines of code, more than {MAX_LINES}")
    return problems


def unrounded(ipynb: Path) -> list[str]:
    """No output shows a float with more digits than anyone should read."""
    problems = []
    code = [cell for cell in read_ipynb(ipynb).cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, start=1):
        shown = FLOAT.findall(shown_text(cell))
        problems += [f"code cell {number} shows {digits}" for digits in shown if _long(digits)]
    return problems


def shown_text(cell) -> str:
    """All text that a code cell shows."""
    data = [output.get("data", {"text/plain": output.get("text", "")}) for output in cell.outputs]
    return "\n".join(d[mime] for d in data for mime in ("text/plain", "text/markdown", "text/html") if mime in d)


def hidden(notebook, allowed=()) -> list[str]:
    """No cell asks not to be compared: no marker of nbval's, no other tag, no magic, nothing that swallows output."""
    problems = [f"the notebook has the metadata {key}" for key in sorted({*notebook.metadata} - METADATA)]
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == "raw" or (cell.cell_type == "markdown" and cell.metadata):
            problems.append(f"cell {number} is raw, or text with metadata")
    for number, cell in enumerate(_code(notebook), start=1):
        if number in allowed:
            continue
        words = re.sub(r"[\W_]+", "", " ".join(re.findall(r"#.*", cell.source))).lower()
        if "nbval" in words or "pytestvalidate" in words:
            problems.append(f"code cell {number} has a comment that speaks to nbval")
        tags = cell.metadata.get("tags", [])
        tags = tags if isinstance(tags, list) else [tags]
        problems += [f"code cell {number} has the tag {tag!r}" for tag in tags if tag not in TAGS]
        odd = sorted({*_paths(cell.metadata)} - CELL_METADATA - {"tags"})
        problems += [f"code cell {number} has the metadata {key}" for key in odd]
        try:
            tree = ast.parse(cell.source)
        except SyntaxError:
            problems.append(f"code cell {number} is not plain Python: a magic?")
            continue
        names = {getattr(n, "id", None) or getattr(n, "name", None) for n in ast.walk(tree)}
        names |= {getattr(n, "attr", None) for n in ast.walk(tree)} - {
            "eval",
            "type",
            "compile",
        }  # of a network or tensor
        problems += [f"code cell {number} uses {name}, which can hide output" for name in sorted(HIDING & names)]
        if any(isinstance(node, (ast.Try, ast.TryStar)) for node in ast.walk(tree)):
            problems.append(f"code cell {number} goes on after an error")
        problems += [f"code cell {number} uses {name}" for name in sorted(filter(None, names)) if name[0] == "_" < name]
        for node in ast.walk(tree):
            imported = [a.name for a in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            modules = [node.module or "."] if isinstance(node, ast.ImportFrom) else imported
            problems += [f"code cell {number} imports {m}" for m in modules if m.partition(".")[0] not in MODULES]
            problems += [f"code cell {number} imports {name}" for name in imported if name == "*" or "._" in f".{name}"]
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
                problems += [f"code cell {number} prints with {k.arg}" for k in node.keywords if k.arg != "sep"]
    return problems


def typed(notebook) -> list[str]:
    """No result is typed into the code: a decimal fraction of three digits or more that a cell shows is computed."""
    problems, digits = [], re.compile(r"(?<![\w.])\d*\.\d+(?![\w.]*\d)")
    shown = {n for cell in _code(notebook) for n in digits.findall(shown_text(cell)) if _long(n, 2)}
    for number, cell in enumerate(_code(notebook), start=1):
        for node in ast.walk(ast.parse(cell.source)):
            value = node.value if isinstance(node, ast.Constant) else None
            if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div)):
                value = _folded(node)
            written = digits.findall(value if isinstance(value, str) else repr(value))
            rounded = {
                n: {f"{float(n):.{d}f}" for d in range(len(n.partition(".")[2]) + 1)} for n in written if _long(n, 2)
            }
            found = [n for n, forms in rounded.items() if forms & shown]
            problems += [f"code cell {number} types {n}, which is shown as a result" for n in found]
    return problems


def exercises(text: str) -> list[str]:
    """Every exercise is followed by its solution, of some words or a cell."""
    asked, solved = (
        re.findall(rf"^`{{3,}}\{{{kind}", text, re.MULTILINE)
        for kind in (r"exercise\}[^\n]*\n:label: (\S+)", r"solution(?:-start)?\} *(\S+)")
    )
    problems = [] if asked == solved else [f"exercises {asked} have the solutions {solved}"]
    order = "".join(re.findall(r"^`{3,}\{(exercise|solution)(?:-start)?\}", text, re.MULTILINE))
    if order.replace("exercisesolution", ""):
        problems.append("a solution does not stand below its exercise")
    body = r"^(`{3,})\{solution\} *(\S+)\n(?::[^\n]*\n)*(.*?)^\1$"
    between = r"^(`{3,})\{solution-start\} *(\S+)\n.*?^\1$(.*?)^`{3,}\{solution-end\}"
    bodies = [found for form in (body, between) for found in re.findall(form, text, re.MULTILINE | re.DOTALL)]
    written = [label for _, label, words in bodies if len(words.split()) >= 5]
    return problems + [f"{label} has an empty solution" for label in solved if label not in written]


def silent(notebook) -> list[str]:
    """What a cell computes in order to show is shown: no statement comes to nothing, and no value is lost."""
    problems, read, bound = [], set(), {}
    for number, cell in enumerate(_code(notebook), start=1):
        tree = ast.parse(cell.source)
        drawn = _drawn_on(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                read.add(node.id)
            bound |= {name: number for name in _bound_alone(node)}
            unseen = isinstance(node, ast.Expr) and (node is not tree.body[-1] or not cell.outputs)
            if unseen and not _has_effect(node.value, drawn):
                problems.append(f"code cell {number} shows nothing of {ast.unparse(node)[:60]!r}")
            if _never_changes(node):
                problems.append(f"code cell {number} has a branch that never changes: {ast.unparse(node)[:60]!r}")
        if any(line.partition("#")[0].rstrip().endswith(";") for line in cell.source.splitlines()):
            problems.append(f"code cell {number} has a semicolon, which hides a value")
    problems += [f"code cell {n} computes {name}, which nothing uses" for name, n in bound.items() if name not in read]
    return problems + _rebound(notebook)


def alt_texts(notebook) -> list[str]:
    """Every picture has a description of what is to be seen, of some length and more than one word over and over."""
    problems, texts, captions = [], [], []
    for number, cell in enumerate(_code(notebook), start=1):
        figure = cell.metadata.get("mystnb", {}).get("figure")
        if figure is not None:
            captions.append(" ".join(str(figure.get("caption", "")).split()))
            if len(captions[-1].split()) < 5 or captions.count(captions[-1]) > 1:
                problems.append(f"the figure of code cell {number} has no caption of its own, of five words or more")
        if any(mime.startswith("image/") for output in cell.outputs for mime in output.get("data", {})):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
            texts.append((f"the picture of code cell {number}", alt if isinstance(alt, str) else ""))
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            texts += [
                (f"the picture {path}", alt) for alt, path in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)", cell.source)
            ]
            for path, body in re.findall(
                r"^[`:]{3,}\{(?:figure|image)\} *(\S+)\n(.*?)^[`:]{3,}$", cell.source, re.M | re.S
            ):
                texts.append((f"the picture {path}", "".join(re.findall(r"^:alt: *(.+)", body, re.M))))
            texts += [
                (tag, "".join(re.findall(r"alt=[\"']([^\"']*)", tag))) for tag in re.findall(r"<img[^>]*>", cell.source)
            ]
    for place, alt in texts:
        if [other for _, other in texts].count(alt) > 1:
            problems.append(f"{place} has the alternative text of another picture")
        if " ".join(alt.split()) in captions:
            problems.append(f"{place} has a caption for its alternative text")
        words = re.findall(r"\w+", alt)
        if len(" ".join(alt.split())) < MIN_ALT or len(set(words)) < 5:
            problems.append(f"{place} has an alternative text of {len(alt)} characters, fewer than {MIN_ALT}")
    return problems


def _long(digits: str, most: int = MAX_DIGITS) -> bool:
    return len(digits.replace(".", "").lstrip("0")) > most


def _paths(metadata: dict, above: str = "") -> list[str]:
    """Every entry of nested metadata, as figure.caption."""
    found = [
        _paths(value, f"{above}{key}.") if isinstance(value, dict) else [above + key] for key, value in metadata.items()
    ]
    return [path for paths in found for path in paths]


def _code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _drawn_on(tree: ast.Module) -> set[str]:
    """Names that stand for matplotlib, a figure or axes in this cell."""
    names = {"plt", "plots"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _root(node.value) in names:
            names |= {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        if isinstance(node, (ast.For, ast.comprehension)) and names & _names(node.iter):
            names |= _names(node.target)
    return names


def _has_effect(value: ast.expr, drawn: set[str]) -> bool:
    """Whether a statement does something: it calls what has an effect, or draws."""
    if not isinstance(value, ast.Call):
        return False
    name = value.func.attr if isinstance(value.func, ast.Attribute) else getattr(value.func, "id", "")
    if name in EFFECTS or (name.endswith("_") and not name.endswith("__")):
        return True
    return isinstance(value.func, ast.Attribute) and _root(value) in drawn and not name.startswith("get")


def _bound_alone(node: ast.AST) -> list[str]:
    """Names that an assignment binds one by one: those of a tuple cannot be left out."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    walrus = [node.target] if isinstance(node, ast.NamedExpr) else []
    return [target.id for target in [*targets, *walrus] if isinstance(target, ast.Name)]


def _rebound(notebook) -> list[str]:
    """What is imported, and what shows, is what it says: no name stands for something else, and nothing is changed."""
    trees = [ast.parse(cell.source) for cell in _code(notebook)]
    origins: dict[str, set[str]] = {name: set() for name in SHOWING}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            whole = "" if isinstance(node, ast.Import) else f"{node.module}."
            for name in node.names:
                origin = f"{whole}{name.name}" if whole or name.asname else name.name.partition(".")[0]
                origins.setdefault(name.asname or origin.rpartition(".")[2], set()).add(origin)
    problems = [f"{name} has two meanings: {sorted(found)}" for name, found in origins.items() if len(found) > 1]
    for name in SHOWING:
        strange = [o for o in origins[name] if o != SHOWING[name] + name]
        problems += [f"{name} is {origin}" for origin in strange]
    for number, tree in enumerate(trees, start=1):
        for node in ast.walk(tree):
            changed = node.func if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in CHANGING else None
            if changed and not any(isinstance(n, ast.Call) for n in ast.walk(changed)) and _root(changed) in origins:
                problems.append(f"code cell {number} changes {ast.unparse(changed.value)}")
            if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
                problems.append(f"code cell {number} changes {ast.unparse(node)}")
            name = getattr(node, "name", None) or getattr(node, "arg", None)
            if isinstance(getattr(node, "ctx", None), (ast.Store, ast.Del)):
                name = ast.unparse(node) if isinstance(node, ast.Name) or _root(node) in origins else None
            elif not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.arg)):
                continue
            if name is not None and (name in origins or not name.isidentifier()):
                problems.append(f"code cell {number} gives {name} another meaning")
    return problems


def _never_changes(node: ast.AST) -> bool:
    """Whether a condition, a loop or a comparison comes out the same whatever was computed."""
    if isinstance(node, (ast.If, ast.While, ast.IfExp, ast.Assert)):
        return _fixed(node.test) or isinstance(node.test, ast.Tuple)
    if isinstance(node, ast.BoolOp):  # `… or "none"` is a word for what is shown
        return any(_fixed(v) and not isinstance(getattr(v, "value", None), str) for v in node.values)
    if isinstance(node, (ast.For, ast.comprehension)):
        none = ast.unparse(node.iter) in ("[]", "()", "{}", "''", "range(0)")
        return none or any(map(_fixed, getattr(node, "ifs", [])))
    if isinstance(node, ast.BinOp):
        itself = ast.dump(node.left) == ast.dump(node.right) and not isinstance(node.left, ast.Constant)
        return itself and isinstance(node.op, (ast.Sub, ast.Div))
    return isinstance(node, ast.Compare) and ast.dump(node.left) in map(ast.dump, node.comparators)


def _fixed(test: ast.expr) -> bool:
    """Whether an expression has no name in it but Python's own functions."""
    return _names(test) <= set(dir(builtins))


def _folded(node: ast.AST) -> object:
    """What a sum or product of constants comes to; nothing for all others."""
    parts = (ast.Constant, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop)
    if not all(isinstance(n, parts) and not isinstance(n, (ast.Pow, ast.LShift)) for n in ast.walk(node)):
        return None
    try:
        value = eval(compile(ast.Expression(node), "", "eval"), {})
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _root(node: ast.AST) -> str | None:
    """The name at the start of a chain of attributes, calls and subscripts."""
    while not isinstance(node, ast.Name):
        node = getattr(node, "value", None) or getattr(node, "func", None)
        if node is None:
            return None
    return node.id
