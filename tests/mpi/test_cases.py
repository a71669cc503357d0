"""Every case of cases_*.py is one test here; each rank count is started once (see harness.py)."""

from __future__ import annotations

import pytest
from conftest import SECONDS
from harness import Case, Outcome, load_cases, run_cases


@pytest.fixture(scope="session")
def outcomes(request: pytest.FixtureRequest) -> dict[int, dict[str, Outcome]]:
    """By rank count, filled at its first test with all of its selected cases."""
    return {}


CASES = [
    pytest.param(
        x,
        id=f"{x.name}-{x.ranks}",
        marks=[pytest.mark.long] * x.long + [pytest.mark.cuda] * x.cuda,
    )
    for x in load_cases()
]


@pytest.mark.parametrize("case", CASES)
def test_case(
    case: Case, outcomes: dict[int, dict[str, Outcome]], request: pytest.FixtureRequest
) -> None:
    if case.ranks not in outcomes:
        selected = [
            item.callspec.params["case"]
            for item in request.session.items
            if item.originalname == "test_case" and "case" in item.callspec.params
        ]
        outcomes[case.ranks] = run_cases([c for c in selected if c.ranks == case.ranks])
    outcome = outcomes[case.ranks][case.name]
    request.config.stash[SECONDS][f"{case.name}-{case.ranks}"] = outcome.seconds
    if not outcome.passed:
        pytest.fail(outcome.report, pytrace=False)
