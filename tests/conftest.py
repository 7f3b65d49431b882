"""What every test shares."""

from __future__ import annotations

import pyro
import pytest


@pytest.fixture(autouse=True)
def param_store_of_its_own():
    """Pyro's parameter store is global: what a test of plain Pyro use leaves there, no other test sees."""
    with pyro.get_param_store().scope():
        yield
