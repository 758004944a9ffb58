"""How many old items go beside new ones. Without torch: configurations ask."""


def num_replay(num_new: int, ratio: float) -> int:
    """Old items beside `num_new` new ones, so that they are `ratio` of the mixed batch: 32 new at 0.2 are 8 old."""
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio is {ratio}: the share of replayed items must be at least 0 and below 1")
    return round(num_new * ratio / (1 - ratio))
