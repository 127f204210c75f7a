"""The rankers that there are, by the kind that a bundle's manifest and a sweep file name."""

from app.ranking.lambdarank import LambdaParams, LambdaRanker
from app.ranking.network import NetworkParams, NetworkRanker
from app.ranking.ranker import Ranker

RANKERS: dict[str, type[Ranker]] = {NetworkRanker.kind: NetworkRanker, LambdaRanker.kind: LambdaRanker}

__all__ = ["RANKERS", "LambdaParams", "LambdaRanker", "NetworkParams", "NetworkRanker"]
