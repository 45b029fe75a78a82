"""The mutants of tests/mutants.py fit the code as it is. Running them takes long, and happens apart."""

from pathlib import Path

import pytest

from tests.mutants import MUTANTS, Mutant

TESTS = Path(__file__).parents[1]
CHECKOUT = TESTS.parent


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_what_a_mutant_takes_out_is_there_and_so_are_the_tests_that_notice(mutant: Mutant) -> None:
    assert (CHECKOUT / mutant.file).read_text().count(mutant.text) == 1
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}" in (TESTS / file).read_text()
