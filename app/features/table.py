"""The feature table of many candidates: the one entrance for training and serving."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.errors import BundleError
from app.features.catalogue import FEATURES
from app.features.definition import FeatureContext
from app.features.spec import FeatureSpec, describe_columns
from app.models.interactions import Catalogue

__all__ = ["ON_REQUEST", "FeatureContext", "feature_names", "features", "make_spec"]

# In a spec only when named (docs/experiments.md has the figures). `session` and `session_content` cost half as much as
# all the others together, and gained nothing that could be told from noise on the demo's ratings. As for the other two:
# examples know the time of the very next event; serving knows that of the newest event of anybody, which may be days
# ahead of a user whose events arrive late or are replayed: a ranker that had learned from the gap between them ranked
# far worse than its own sources.
ON_REQUEST = ("idle_time", "session", "session_content", "session_idle")


def make_spec(
    catalogue: Catalogue,
    sources: Sequence[str],
    *,
    without: Sequence[str] = (),
    also: Sequence[str] = (),
    user_numbers: Sequence[str] = (),
    context_numbers: Sequence[str] = (),
    session_gap_s: float = 1800.0,
) -> FeatureSpec:
    """The spec of all features that make sense for the catalogue's columns, less those named in `without`.

    Args:
        also: features of ON_REQUEST to have all the same.
        sources: candidate sources, in the order of the bundle's mix.
        user_numbers, context_numbers: keys of user columns and request context to use as features.
        session_gap_s: the longest silence within a session, seconds.
    """
    return FeatureSpec(
        sources=tuple(sources),
        features=tuple(name for name in FEATURES if name not in without and (name not in ON_REQUEST or name in also)),
        user_numbers=tuple(user_numbers),
        context_numbers=tuple(context_numbers),
        session_gap_s=session_gap_s,
        **describe_columns(catalogue),
    )


def feature_names(spec: FeatureSpec) -> tuple[str, ...]:
    """The names of the F columns that `features` gives under a spec.

    Raises:
        BundleError: the spec names a feature that this version does not have.
    """
    unknown = [name for name in spec.features if name not in FEATURES]
    if unknown:
        raise BundleError(f"feature spec: found features {unknown}, wanted some of {sorted(FEATURES)}")
    return tuple(column for name in spec.features for column in FEATURES[name].columns(spec))


def features(spec: FeatureSpec, context: FeatureContext) -> NDArray[np.float32]:
    """float32 (R, F), C-contiguous and finite: the features of every candidate in the order of `feature_names`."""
    parts = [FEATURES[name].compute(context) for name in spec.features if FEATURES[name].columns(spec)]
    if not parts:
        return np.zeros((len(context.candidates.rows), 0), np.float32)
    return np.ascontiguousarray(np.concatenate(parts).T)
