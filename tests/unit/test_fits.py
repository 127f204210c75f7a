"""Where the fits for a bundle begin: at the live bundle's models, if it has any of these sizes."""

from pathlib import Path

import numpy as np

from app.bundles.registry import open_registry
from app.models.families import make
from app.models.interactions import Catalogue
from app.models.warm import rows_before
from app.settings import Settings
from tests.unit.chain_world import N_ITEMS, interactions
from tests.unit.tiny_bundle import write_tiny
from tune.fits import live_models
from tune.trial import refit


def test_fits_begin_at_the_models_of_the_live_bundle(tmp_path: Path) -> None:
    settings = Settings()
    assert live_models(settings, tmp_path) == ({}, None)
    registry = open_registry(settings, tmp_path)
    folder = write_tiny(tmp_path / "bundles", "b", mix=(("ials", 20), ("popularity", 20)), events=300)
    registry.register("b", folder, {"id": "b"})
    assert live_models(settings, tmp_path) == ({}, None)  # registered, not live
    registry.move("b", {settings.default_surface: None})
    registry.close()
    found, begun_at = live_models(settings, tmp_path)
    assert (list(found), begun_at) == (["ials"], "b")
    (folder / "manifest.json").unlink()
    assert live_models(settings, tmp_path) == ({}, None)

    data, items = interactions(), Catalogue.of([f"i{row}" for row in range(N_ITEMS)])
    model, before = found["ials"]
    histories = data.histories()

    def scores(params: dict[str, int], begin: bool) -> np.ndarray:
        start = (model, before) if begin else None
        return refit("ials", params, data, items, seed=0, before=start).score(histories)

    begun = make("ials").begin_at(model, rows_before(before, items)).fit(data, items)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(scores({}, begin=True), begun.score(histories))
    assert not np.array_equal(scores({}, begin=True), scores({}, begin=False))
    np.testing.assert_array_equal(scores({"n_factors": 8}, begin=True), scores({"n_factors": 8}, begin=False))
