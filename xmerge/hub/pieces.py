"""Fetching parts of shards: the bytes that are used, in pieces that are kept one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from xmerge.errors import StorageError
from xmerge.files import free_bytes, storage_error
from xmerge.hub.faults import Doing
from xmerge.hub.ranges import Range, RangesIgnoredError, stream_range
from xmerge.hub.reading import read_shard_headers
from xmerge.hub.sparse import NEAR, SparseShard, cut_pieces, join_ranges, open_sparse, subtract_ranges
from xmerge.interrupt import open_pool

AT_ONCE = 4
"""Requests under way for one model: with their pieces, what a kill costs at most."""


def fetch_ranges(repo: str, commit: str, wanted: Mapping[str, Sequence[Range]], folder: Path) -> bool:
    """Fetch parts of shards into files with holes, of the shards' names and sizes and with their headers.

    What an earlier call has fetched stays, if it is intact: a kill costs the pieces that are under way.

    Args:
        repo: `org/name` on the Hub.
        commit: The pinned commit.
        wanted: For each shard, which of its bytes.
        folder: Where the files are to be; nobody else writes there.

    Returns:
        False: the server does not give parts of files, and some of this is missing.

    Raises:
        HubError: A name is not that of a shard of this commit, or a shard may not be read or has a wrong size.
        HubUnavailableError: The Hub cannot answer for now.
        StorageError: The folder is full or cannot be written.
        Interrupted: A stop was requested.
    """
    headers = read_shard_headers(repo, commit, list(wanted))
    try:
        with ExitStack() as opened:
            pieces = []
            for name, header in headers.items():
                shard, intact = opened.enter_context(open_sparse(folder / name, header.size, header.header))
                missing = subtract_ranges(join_ranges(wanted[name], NEAR), intact)
                doing = Doing(repo, revision=commit, file=name)
                pieces += [_Piece(shard, doing, header.size, piece) for piece in cut_pieces(missing)]
            _require_space(folder, sum(piece.place.nbytes for piece in pieces))
            _fetch_all(pieces)
    except RangesIgnoredError:
        return False
    except OSError as error:
        raise storage_error(error, folder) from error
    return True


@dataclass(frozen=True)
class _Piece:
    """A part of a shard that one request asks for."""

    shard: SparseShard
    doing: Doing
    size: int
    """Bytes of the whole shard."""
    place: Range

    def fetch(self) -> None:
        """Bring it here, and note it in the journal when all of it has come."""
        digest, place = hashlib.sha256(), self.place.start
        for block in stream_range(self.doing, self.size, self.place):
            self.shard.write(place, block)
            digest.update(block)
            place += len(block)
        self.shard.note(self.place, digest.hexdigest())


def _require_space(folder: Path, needed: int) -> None:
    free = free_bytes(folder)
    if free is not None and needed > free:
        raise StorageError(
            "there is too little space for what is to be fetched from the Hub.",
            where=str(folder),
            why=f"{needed:,} bytes are needed and {free:,} are free.",
            remedy="free some, or name an output on a larger disk.",
        )


def _fetch_all(pieces: Sequence[_Piece]) -> None:
    """Fetch several pieces at once; the first that fails ends the others."""
    with open_pool(AT_ONCE, "piece") as pool:
        futures = [pool.submit(piece.fetch) for piece in pieces]
        wait(futures, return_when=FIRST_EXCEPTION)
        for ended in (future for future in futures if future.done()):
            ended.result()
