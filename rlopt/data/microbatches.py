"""Splitting an update into each rank's micro-batches."""

import numpy as np
import torch
from torch import Tensor

from rlopt.core.batches import Unit
from rlopt.core.errors import RloptError
from rlopt.core.table import Update

LEAST_SAVED = 64
"""Tokens of padding for which one more micro-batch pays, at least; and a 64th of the budget."""


def partition(lengths: Tensor, units: Tensor, ranks: int, token_budget: int, packed: bool = False) -> list[list[list[int]]]:
    """Which sequences make which micro-batch of which rank: `[rank][micro-batch]` rows, the same number for all ranks.

    Sequences of similar length go together, at most `token_budget` tokens with padding in one micro-batch, and fewer where
    that saves padding; those of one unit (`units` `[B]`) stay together. Collectives inside a forward pass need ranks in step,
    so micro-batches are halved until their number divides; when even single units do not, or are fewer than ranks, empty
    lists of rows fill the gap. `packed`: there is no padding, and the budget is of real tokens.

    Raises:
        RloptError: one unit alone is over the budget.
    """
    members: dict[int, list[int]] = {}
    for row, unit in enumerate(units.tolist()):
        members.setdefault(unit, []).append(row)
    longest = {unit: int(lengths[rows].max()) for unit, rows in members.items()}
    total = {unit: int(lengths[rows].sum()) for unit, rows in members.items()}
    cost = max(total[unit] if packed else longest[unit] * len(rows) for unit, rows in members.items())
    if cost > token_budget:
        raise RloptError(
            f"learner.token_budget={token_budget}: what must stay together has {cost} tokens; raise it to {cost} at least"
        )
    pieces: list[list[int]] = [[]]  # of units
    rows_in_piece = tokens = 0
    for unit in sorted(members, key=lambda unit: longest[unit]):  # ascending, so the new unit is the widest of its piece
        rows = rows_in_piece + len(members[unit])
        if (tokens + total[unit] if packed else rows * longest[unit]) > token_budget:
            pieces.append([])
            rows_in_piece = tokens = 0
        pieces[-1].append(unit)
        rows_in_piece, tokens = rows_in_piece + len(members[unit]), tokens + total[unit]
    if not packed:
        least = max(LEAST_SAVED, token_budget // 64)
        pieces = [part for piece in pieces for part in _less_padding(piece, members, longest, least)]
    while len(pieces) % ranks:
        widest = max(range(len(pieces)), key=lambda i: len(pieces[i]))
        piece = pieces.pop(widest)
        if len(piece) == 1:
            pieces.append(piece)
            break
        pieces += [piece[: len(piece) // 2], piece[len(piece) // 2 :]]
    micro_batches = [[row for unit in piece for row in members[unit]] for piece in pieces]
    micro_batches += [[]] * (-len(micro_batches) % ranks)
    return [micro_batches[rank::ranks] for rank in range(ranks)]


def _less_padding(piece: list[int], members: dict[int, list[int]], longest: dict[int, int], least: int) -> list[list[int]]:
    """`piece`, the shortest units first, cut where that saves most padding; and its parts again, while it saves `least`."""
    rows = np.cumsum([len(members[unit]) for unit in piece])
    widths = np.array([longest[unit] for unit in piece])
    saved = rows[:-1] * (widths[-1] - widths[:-1])  # by a cut behind each unit but the last
    if not len(saved) or saved.max() < least:
        return [piece]
    cut = int(saved.argmax()) + 1
    return [part for side in (piece[:cut], piece[cut:]) for part in _less_padding(side, members, longest, least)]


def microbatches(update: Update, unit: Unit, ranks: int, token_budget: int, packed: bool = False) -> list[list[Update]]:
    """The micro-batches of each rank, as `partition` lays them out; a dummy copy of another fills a gap.

    `unit`: what must stay in one micro-batch.
    """
    units = update.group if unit == "group" else torch.arange(len(update))
    layout = partition(update.lengths, units, ranks, token_budget, packed)
    spare = next(rows for share in layout for rows in share if rows)
    return [[update.take(rows) if rows else update.take(spare).dummy() for rows in share] for share in layout]
