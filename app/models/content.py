"""Content: items by their columns alone, so that an item is found before any event names it."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from app.errors import MantaError
from app.models.column_encoders import ColumnEncoder, Vectors, encoder_of
from app.models.column_model import ColumnModel
from app.models.history_decay import HistoryDecay
from app.models.interactions import Catalogue
from app.models.vectors import vector_size


class ContentParams(HistoryDecay):
    """Parameters of `content`."""

    n_factors: int = Field(64, ge=2, le=512, description="Dimensions of a column of words (more distinct words).")
    list_weight: float = Field(1.0, ge=0, description="Weight of columns that are lists of strings (genres).")
    text_weight: float = Field(0.7, ge=0, description="Weight of string columns, word by word (titles).")
    number_weight: float = Field(1.0, ge=0, description="Weight of number columns (year, price).")
    vector_weight: float = Field(1.0, ge=0, description="Weight of columns that are vectors of numbers.")


class ContentModel(ColumnModel):
    """Cosine between an item and the decayed mean of the history's items, over idf-weighted columns.

    Each column becomes a block of unit length times its kind's weight: lists of strings and texts are multi-hot with
    idf, reduced to `n_factors` by SVD when they have more words; numbers spread over soft quantile buckets; vectors are
    taken as they are. A missing value is a block of zeros.
    Searched: n_factors 16-128; list_weight, text_weight, number_weight 0-2; place_tau 1-50, log.
    Paper: Lops et al., "Content-based recommender systems", Recommender Systems Handbook, 2011.
    """

    family: ClassVar[str] = "content"
    kind_of_params: ClassVar[type[HistoryDecay]] = ContentParams
    params: ContentParams

    def made_encoders(self, catalogue: Catalogue, seed: int) -> Sequence[ColumnEncoder]:
        names = sorted(catalogue.columns.column_names)
        made = [encoder_of(name, catalogue.columns.column(name), self.params.n_factors, seed) for name in names]
        return [encoder for encoder in made if encoder is not None and self.weight_of(encoder) > 0]

    def weight_of(self, encoder: ColumnEncoder) -> float:
        return float(getattr(self.params, f"{encoder.kind}_weight"))


class VectorParams(HistoryDecay):
    """Parameters of `vector`."""

    column: str = Field("", description="The item column whose vectors are compared; empty: all that hold vectors.")


class ItemVectors(ColumnModel):
    """Cosine between an item's vector (a picture's or a text's embedding) and the decayed mean of the history's.

    Vectors are columns of the items, lists of numbers of one size; several columns count the same. An item without a
    vector is not found by it; data without such a column get no scores.
    Searched: place_tau 1-50, log; place_floor 0-0.3.
    Paper: McAuley et al., "Image-based recommendations on styles and substitutes", SIGIR 2015 (items by the vectors of
    their pictures).
    """

    family: ClassVar[str] = "vector"
    kind_of_params: ClassVar[type[HistoryDecay]] = VectorParams
    params: VectorParams

    def made_encoders(self, catalogue: Catalogue, seed: int) -> Sequence[ColumnEncoder]:
        del seed
        wanted = self.params.column
        sizes = {
            name: vector_size(catalogue.columns.column(name))
            for name in sorted(catalogue.columns.column_names)
            if wanted in ("", name)
        }
        found = [Vectors(name, size) for name, size in sizes.items() if size]
        if wanted and not found:
            kind = catalogue.columns.column(wanted).type if wanted in sizes else "no such column"
            raise MantaError(f"family vector: column {wanted!r}: found {kind}, wanted lists of numbers of one size")
        return found

    def weight_of(self, encoder: ColumnEncoder) -> float:
        del encoder
        return 1.0
