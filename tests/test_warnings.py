"""Which warnings fail a test: all of ours, and no deprecation that a library meets inside itself."""

import warnings

import pytest

DEPRECATIONS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


def warn(module, category):
    """Warns as a line of that module does."""
    exec("warnings.warn('it will go', category)", {"__name__": module, "warnings": warnings, "category": category})


@pytest.mark.parametrize("category", DEPRECATIONS)
@pytest.mark.parametrize(
    "module", ["composer", "composer.prior.pca", "decomposers.t5", "conditions", "tests.test_tasks"]
)
def test_what_we_call_must_not_be_deprecated(module, category):
    with pytest.raises(category):
        warn(module, category)


@pytest.mark.parametrize("category", DEPRECATIONS)
@pytest.mark.parametrize("module", ["torch", "lightning.pytorch.cli", "composer_of_others", "their.composer"])
def test_what_a_library_calls_may_be_deprecated(module, category):
    with warnings.catch_warnings(record=True) as seen:
        warn(module, category)
    assert [warning.category for warning in seen] == [category]  # shown, but no error


@pytest.mark.parametrize("module", ["composer.networks.unet", "torch"])
def test_other_warnings_are_errors_whoever_gives_them(module):
    with pytest.raises(UserWarning):
        warn(module, UserWarning)
