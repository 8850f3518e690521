"""Continuous integration: what is published, on what is tested, and what a runner without root gets or is told."""

import ast
import os
import re
import subprocess

import pytest
import yaml
from fingerprint import ROOT

from vaebook import data

WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")}


def holds(expression, github):
    """Evaluate a condition of a workflow in a given context; what the context lacks is None."""

    def look_up(match):
        value = github
        for key in match.group().split(".")[1:]:
            value = value.get(key) if isinstance(value, dict) else None
        return repr(value)

    python = re.sub(r"github(?:\.\w+)+", look_up, expression).replace("&&", " and ").replace("||", " or ")
    return eval(" ".join(python.split()), {})


def run_of(**changed):
    """What a finished run of the tests on a push to main tells, with changes."""
    run = {"conclusion": "success", "event": "push", "head_branch": "main"}
    run |= {"head_repository": {"full_name": "us/book"}} | changed
    return {"event_name": "workflow_run", "repository": "us/book", "event": {"workflow_run": run}}


FORK = {"full_name": "them/book"}


@pytest.mark.parametrize(
    ("github", "published"),
    [
        (run_of(), True),
        (run_of(conclusion="failure"), False),
        (run_of(event="pull_request"), False),
        (run_of(event="pull_request", head_repository=FORK), False),
        (run_of(head_repository=FORK), False),
        (run_of(head_branch="other"), False),
        (run_of(event="schedule"), False),
        ({"event_name": "workflow_dispatch", "ref": "refs/heads/main", "repository": "us/book"}, True),
        ({"event_name": "workflow_dispatch", "ref": "refs/heads/other", "repository": "us/book"}, False),
        ({"event_name": "pull_request", "ref": "refs/heads/main", "repository": "us/book"}, False),
    ],
)
def test_only_pushes_to_this_repository_are_published(github, published):
    jobs = WORKFLOWS["pages"]["jobs"]
    assert bool(holds(jobs["build"]["if"], github)) is published
    for job, earlier in (("deploy", "build"), ("notebooks", "deploy")):
        assert jobs[job]["needs"] == earlier and "if" not in jobs[job]  # so it is skipped with it
    assert not any(word in str(jobs["build"].get("permissions", {})) for word in ("write", "id-token"))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_pinned_and_may_do_little(name):
    """A tag can be moved to other code; a commit cannot. Beside it stands the version that it is."""
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text()
    used = re.findall(r"uses: *(.*)", text)
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line) for line in used), used
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    more = {job: what["permissions"] for job, what in WORKFLOWS[name]["jobs"].items() if "permissions" in what}
    deploy, notebooks = {"pages": "write", "id-token": "write"}, {"actions": "read", "contents": "write"}
    assert more == ({"deploy": deploy, "notebooks": notebooks} if name == "pages" else {})


def test_the_branch_of_notebooks_holds_them_and_nothing_else(tmp_path):
    """Run in a clone of an empty repository, twice: what was there before goes."""

    def git(*command):
        done = subprocess.run(["git", *command], cwd=clone, capture_output=True, text=True, check=True)
        return done.stdout.split()

    clone = tmp_path
    git("init", "--bare", "origin")
    git("clone", "--quiet", "origin", "clone")
    clone = tmp_path / "clone"
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--allow-empty", "-m", "start")
    sources = tmp_path / "sources"
    for names in (["old.ipynb", "mixture/index.ipynb"], ["mixture/index.ipynb", "intro.md"]):
        for name in names:
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            (sources / name).write_text("{}")
        subprocess.run(["sh", ROOT / ".ci" / "notebooks", sources], cwd=clone, capture_output=True, check=True)
        (sources / "old.ipynb").unlink(missing_ok=True)
    git("fetch", "--quiet", "origin", "notebooks")
    assert git("ls-tree", "-r", "--name-only", "FETCH_HEAD") == ["mixture/index.ipynb"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_no_job_keeps_the_right_to_push_runs_for_hours_or_takes_what_others_write_for_a_command(name):
    for job in WORKFLOWS[name]["jobs"].values():
        assert job.get("timeout-minutes", 360) <= 90
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
            assert "${{" not in step.get("run", "")
    assert "pull_request_target" not in str(WORKFLOWS[name]) and "secrets" not in str(WORKFLOWS[name])


DOWNLOADS = (
    r"\b(urllib|requests|httpx|aiohttp|pooch|ftplib|huggingface_hub|wget|curl|http\.client|(from|import) http|urlopen"
    r"|load_state_dict_from_url)\b"
)
"""Names by which something can be downloaded."""


def test_data_and_results_that_are_downloaded_have_a_checksum():
    """One module downloads, and so does the first cell of the site's notebooks; both compare SHA-256."""
    paths = [path for folder in ("vaebook", "book") for path in (ROOT / folder).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix() for path in paths if re.search(DOWNLOADS, path.read_text())}
    # links.py takes addresses apart
    assert found == {"vaebook/data.py", "book/_ext/portable.py", "book/_tools/links.py"}
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in data.FASHION_SHA256.values())
    scripts = [ROOT / "Makefile", *(ROOT / ".ci").iterdir(), *(ROOT / "book" / "_tools").glob("*.sh")]
    for script in (*scripts, *(ROOT / ".github" / "workflows").glob("*.yml")):
        assert not re.search(r"\b(curl|wget)\b", script.read_text())


def test_the_weekly_run_looks_for_known_vulnerabilities_and_lists_licences():
    steps = " ".join(step.get("run", "") for step in WORKFLOWS["weekly"]["jobs"]["newest"]["steps"])
    assert "pip-audit" in steps
    assert "--requirement requirements.txt" in steps
    assert "pip-licenses" in steps


def test_tested_are_the_oldest_and_the_newest_python_and_macos():
    tested = {
        (row["os"].split("-")[0], row["python"])
        for row in WORKFLOWS["test"]["jobs"]["test"]["strategy"]["matrix"]["include"]
    }
    assert tested == {("ubuntu", "3.11"), ("ubuntu", "3.13"), ("macos", "3.12")}


def test_what_was_built_is_ignored_and_cleaned():
    clean = (ROOT / "Makefile").read_text().split("\nclean:")[1]
    for folder in ("build", "dist", "_build", ".venv"):
        assert subprocess.run(["git", "check-ignore", "-q", f"{folder}/x"], cwd=ROOT, check=False).returncode == 0, (
            folder
        )
        assert re.search(rf"rm -rf [^\n]*(?<!\S){re.escape(folder)}(?!\S)", clean), folder


@pytest.fixture
def runner(tmp_path):
    """A function that runs .ci/run on a machine that has only what it is given, as an ordinary user."""
    (tmp_path / ".ci").mkdir()
    script = (ROOT / ".ci" / "run").read_text().replace("/usr/share/datasets", "/no/such/folder")
    (tmp_path / ".ci" / "run").write_text(script)
    commands = {"id": "echo 1000", "make": 'echo "make $*" >>log', "python3": "exit 0"}

    def run(**more):
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "dirname").symlink_to("/usr/bin/dirname")
        (folder / "env").symlink_to("/usr/bin/env")
        for name, body in (commands | {name.replace("_", "-"): body for name, body in more.items()}).items():
            (folder / name).write_text(f"#!/bin/bash\n{body}\n")
            (folder / name).chmod(0o755)
        environment = {"PATH": str(folder)}
        command = ["/bin/bash", ".ci/run"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr, (tmp_path / "log").read_text().splitlines()

    return run


APT, SUDO = 'echo "apt-get $*" >>log', 'shift; echo sudo >>log; "$@"'


@pytest.mark.skipif(not os.path.exists("/bin/bash"), reason="no bash")
def test_with_sudo_everything_is_installed(runner):
    said, log = runner(apt_get=APT, sudo=SUDO, true="exit 0")
    assert said == ""
    assert "apt-get install -y -qq --no-install-recommends chromium" in log
    assert "apt-get install -y -qq --no-install-recommends dataset-fashion-mnist" in log
    assert log[-2:] == ["make test", "make test-slow"]


@pytest.mark.parametrize(
    "more",
    [{}, {"apt_get": APT}, {"apt_get": APT, "sudo": "exit 1"}, {"apt_get": "exit 100", "sudo": SUDO, "true": "exit 0"}],
    ids=["no apt-get", "no sudo", "sudo wants a password", "apt-get fails"],
)
def test_what_cannot_be_installed_is_said_with_what_is_skipped(runner, more):
    said, log = runner(**more)
    assert re.search(r"Not installed: chromium .* the tests that open every page in a browser", said)
    assert re.search(r"Not installed: dataset-fashion-mnist .* the tests on Fashion-MNIST", said)
    assert [line for line in log if line.startswith("make")] == ["make test", "make test-slow"]


def unpicklers(tree):
    """Names and calls in a syntax tree that would run a pickle."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            yield from (
                name for name in names if name.split(".")[0] in {"pickle", "dill", "cloudpickle", "joblib", "shelve"}
            )
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
            owner = ast.unparse(node.func.value)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if owner == "torch" and given.get("weights_only") != "True":
                yield "torch.load"
            if given.get("allow_pickle", "False") != "False":
                yield f"{owner}.load"


@pytest.mark.parametrize("folder", ["vaebook", "book", "tests"])
def test_nothing_is_ever_unpickled(folder):
    found = {str(path): list(unpicklers(ast.parse(path.read_text()))) for path in (ROOT / folder).rglob("*.py")}
    assert found
    assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize(
    "code", ["import pickle", "from joblib import load", "torch.load(p)", "np.load(p, allow_pickle=True)"]
)
def test_what_would_unpickle_is_seen(code):
    assert list(unpicklers(ast.parse(code)))
