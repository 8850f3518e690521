"""The site builds, without a warning and without a dead link; the tests of its pages wait for it."""

from build import build


def test_the_site_builds(checked):
    output, lock = checked
    with lock:
        assert build(output) == 0
