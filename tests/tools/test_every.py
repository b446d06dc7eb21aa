"""`every` tries all cases and names those that fail."""

import pytest
from every import MOST, every


def test_all_cases_are_tried_and_failures_are_named():
    tried = []

    @every("x", [1, 2])
    @every(("y", "z"), [(3, int), (4, float)])
    def check(fixture, x, y, z):
        tried.append((fixture, x, y, z))
        assert x * y not in (3, 8)

    with pytest.raises(AssertionError) as caught:
        check(fixture="f")
    assert tried == [("f", x, y, z) for x in (1, 2) for y, z in ((3, int), (4, float))]
    first, *lines = str(caught.value).splitlines()
    lines = [line for line in lines if line.startswith("x=")]
    assert first == "failed with"
    assert [line.split(": ")[:2] for line in lines] == [
        ["x=1, y=3, z=int", "AssertionError"],
        ["x=2, y=4, z=float", "AssertionError"],
    ]
    assert isinstance(caught.value.__cause__, AssertionError)


def test_the_end_after_many_failures():
    tried = []

    @every("x", range(1000))
    def check(x):
        tried.append(x)
        pytest.fail("wrong")

    with pytest.raises(AssertionError, match=r"x=0: Failed: wrong\n(.*\n)*the remaining cases"):
        check()
    assert tried == list(range(MOST))


def test_skipped_if_all_cases_are():
    @every("x", [1, 2, 3])
    def check(x, least):
        if x > least:
            pytest.skip(f"{x} is too large")

    with pytest.raises(pytest.skip.Exception, match="3 is too large"):
        check(least=0)
    check(least=1)


@pytest.mark.parametrize("a", [1, 2])
@every("x", [3, 4])
def test_with_parameters_and_fixtures_of_pytest(request, x, a):
    assert x in (3, 4)
    assert request.node.name == f"test_with_parameters_and_fixtures_of_pytest[{a}]"


def test_values_are_required():
    with pytest.raises(ValueError, match="no values of x"):
        every("x", [])
