"""The gates on claims: each is proved and checked where it is stated, and its check compares two different things."""

import ast
import copy
import inspect
import re
import textwrap

import torch
from prose import unfenced

STATEMENT = re.compile(r"^:::\{prf:(?!proof)\w+\}[^\n]*\n:label: (\S+)", re.MULTILINE)
PROOF = re.compile(r"^:::\{prf:proof\}[^\n]*\n(.*?)^:::$", re.MULTILINE | re.DOTALL)
SEEDS, WHOLE = range(24), 1e-9
LOOSE, FAR, CLOSE = {1e-6: 0.01, 5e-8: 1e-3}, 100, 1e-5
"""Tolerances, in sizes of the claim, above which one must be needed, and what part of it a residual then uses; and the
largest size of a falsehood, and its smallest distance from the truth, in sizes of the claim."""


def labels(notebook) -> list[str]:
    """Labels of the numbered statements of a chapter, in order."""
    return [what for kind, what in _events(notebook) if kind == "statement"]


def unproved(notebook) -> list[str]:
    """After each statement, and before the next, come its proof and the shown evidence of its check."""
    problems, events = [], _events(notebook)
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for form in re.findall(r"^.*[`:~]{3,} *\{prf:.*(?:\n:.*)?", text, re.MULTILINE):
        if not STATEMENT.match(form) and not form.startswith(":::{prf:proof}"):
            problems.append(f"{form!r} is no statement with a label, nor a proof")
    proofs = [" ".join(words.split()) for words in PROOF.findall(unfenced(text))]
    problems += [
        f"two statements have the proof {p[:40]!r}" for p in sorted({p for p in proofs if proofs.count(p) > 1})
    ]
    starts = [i for i, (kind, _) in enumerate(events) if kind == "statement"]
    for start, end in zip(starts, [*starts[1:], len(events)], strict=False):
        own, label = events[start + 1 : end], events[start][1]
        if ("proof", "") not in own:
            problems.append(f"{label} has no proof before the next statement")
        if ("evidence", label) not in own:
            problems.append(f"{label} has no verify(…) before the next statement whose evidence is shown and good")
    return problems


def compares_with_itself(evidence_of) -> list[str]:
    """Describe the entries of a claim's two sides that are the same bits whatever the seed.

    Two computations of a real number differ in the last bits now and then; a number is the same as itself. Whole
    numbers (and what is all but 0) may agree, but not all entries of a claim: then nothing was compared.

    Args:
        evidence_of: seed → Evidence of one claim.
    """
    always = real = torch.tensor(True)
    for seed in SEEDS:
        m = evidence_of(seed).measurement
        lhs, rhs = torch.broadcast_tensors(*(torch.as_tensor(s, dtype=torch.float64).detach() for s in (m.lhs, m.rhs)))
        always = always & (lhs == rhs)
        real = real & ((lhs - lhs.round()).abs() > WHOLE)
        if not (always & real).any() and not always.all():
            return []
    if bool(always.all()):
        return ["both sides are the same numbers"]
    same = int((always & real).sum())
    return [f"{same} of {always.numel()} entries are the same bits on both sides"] if same else []


def loose(found) -> list[str]:
    """Describe why a claim's evidence could hardly have been against it: a wide tolerance, a falsehood out of reach."""
    m = found.measurement
    falsehood = (m.lhs if m.falsehood_lhs is None else m.falsehood_lhs, m.falsehood_rhs)
    own, other = (
        max(float(torch.as_tensor(s).detach().abs().max()) for s in sides) for sides in ((m.lhs, m.rhs), falsehood)
    )
    tolerance = m.tolerance or 0.0
    wide = any(tolerance > loose * own and found.residual < needed for loose, needed in LOOSE.items())
    problems = [
        f"a tolerance of {m.tolerance} for numbers of size {own:.3g}, which agree to {found.residual:.1g} of it"
    ]
    far = [f"a falsehood of size {other:.3g} for a claim of size {own:.3g}"] * (other > FAR * own)
    unit = m.tolerance if m.stderr is None else m.stderr if m.falsehood_stderr is None else m.falsehood_stderr
    gap = found.margin * float(torch.as_tensor(unit).max())
    if (m.stderr is None) == (found.claim.kind in ("MC", "empirical")):
        far.append(f"a claim of the kind {found.claim.kind}, whose allowance is of the other kind")
    return problems * wide + far + [f"a falsehood that is {gap:.1g} from the truth"] * (gap < CLOSE * own)


def derived(check) -> list[str]:
    """Describe where, in a check's code, one side of its measurement is made from the other."""
    function = ast.parse(textwrap.dedent(inspect.getsource(check))).body[0]
    inline, problems = _Inline(function), []
    within = {
        node for f in ast.walk(function) if isinstance(f, ast.FunctionDef) and f is not function for node in ast.walk(f)
    }
    returns = [node for node in ast.walk(function) if isinstance(node, ast.Return) and node not in within]
    if returns != function.body[-1:]:
        problems.append("a check ends in its one return, of what it measures")
    for node in ast.walk(function):
        fixed = isinstance(node, (ast.If, ast.IfExp)) and not any(isinstance(n, ast.Name) for n in ast.walk(node.test))
        if fixed or isinstance(node, (ast.Try, ast.TryStar, ast.With, ast.While, ast.Match)):
            problems.append(f"a check has a {type(node).__name__.lower()}, which may leave out what is measured")
    for call in ast.walk(function):
        if isinstance(call, ast.Call) and getattr(call.func, "id", getattr(call.func, "attr", "")) == "Measurement":
            given = dict(zip(("lhs", "rhs"), call.args, strict=False)) | {k.arg: k.value for k in call.keywords}
            for left, right in _pairs(given["lhs"], given["rhs"]):
                texts = [ast.unparse(inline.visit(copy.deepcopy(side))) for side in (left, right)]
                short, long = sorted(texts, key=len)
                if all(map(_is_constant, texts)):
                    problems.append(f"both sides are constants: {short[:80]!r}")
                if not any(map(_is_constant, texts)) and (short == long or _within(short, long, given)):
                    problems.append(f"one side is {short[:80]!r}, the other is made from it: {long[:80]!r}")
    return problems


def _events(notebook) -> list[tuple[str, str]]:
    """Statements, proofs and evidence in the order of the chapter."""
    events = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            events += [("evidence", label) for label in _shown(cell)]
            continue
        text = unfenced(cell.source)
        found = [(m.start(), "statement", m[1]) for m in STATEMENT.finditer(text)]
        found += [(m.start(), "proof", "") for m in PROOF.finditer(text) if len(m[1].split()) >= 10]
        events += [(kind, what) for _, kind, what in sorted(found)]
    return events


def _shown(cell) -> list[str]:
    """The claim of which a cell's last statement, on its own, shows good evidence; or nothing."""
    last = (ast.parse(cell.source).body or [ast.Pass()])[-1]
    call = getattr(last, "value", None) if isinstance(last, ast.Expr) else None
    if not isinstance(call, ast.Call) or getattr(call.func, "id", None) != "verify" or len(call.args) != 1:
        return []
    label = getattr(call.args[0], "value", None)
    texts = [output.get("data", {}).get("text/markdown", "") for output in cell.outputs]
    good = [t for t in texts if f"**Check of `{label}`**" in t and re.search(r"\| holds +\|", t) and "| rejected" in t]
    return [label] if len(good) == 1 and not call.keywords else []


class _Inline(ast.NodeTransformer):
    """Replace each local name that is bound once, and never changed, by what it stands for."""

    def __init__(self, function: ast.FunctionDef):
        self.values, changed = {}, set()
        for node in ast.walk(function):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    for name, value in _pairs(target, node.value):
                        if isinstance(name, ast.Name):
                            changed |= {name.id} & set(self.values)
                            self.values[name.id] = value
            if isinstance(node, ast.AugAssign):
                changed.add(getattr(node.target, "id", None))
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("append", "extend"):
                changed.add(getattr(node.func.value, "id", None))
        for name in changed:
            self.values.pop(name, None)

    def visit_Name(self, node):
        if node.id not in self.values:
            return node
        inner = copy.copy(self)
        inner.values = {name: value for name, value in self.values.items() if name != node.id}
        return inner.visit(copy.deepcopy(self.values[node.id]))


def _pairs(left: ast.expr, right: ast.expr) -> list[tuple[ast.expr, ast.expr]]:
    """Entries that belong together, where both sides are lists of the same length, in the same call or none."""
    lists = [side.args[0] if isinstance(side, ast.Call) and side.args else side for side in (left, right)]
    if all(isinstance(side, (ast.List, ast.Tuple)) for side in lists) and len(lists[0].elts) == len(lists[1].elts):
        return list(zip(lists[0].elts, lists[1].elts, strict=True))
    return [(left, right)]


def _within(short: str, long: str, given: dict) -> bool:
    """Whether an equality's one side occurs in its other; an inequality may say that a sum is larger than a part."""
    relation = given.get("relation")
    equality = relation is None or getattr(relation, "value", None) == "=="
    return equality and re.search(rf"(?<![\w.]){re.escape(short)}(?![\w(])", long) is not None


def _is_constant(text: str) -> bool:
    (tree,) = ast.parse(f"[{text}]", mode="eval").body.elts  # a list may hold *values
    if isinstance(tree, ast.Call) and ast.unparse(tree.func) in ("torch.zeros_like", "torch.ones_like"):
        return True  # of the other side it takes the shape only
    return not any(isinstance(n, ast.Name) and n.id not in ("torch", "math") for n in ast.walk(tree))
