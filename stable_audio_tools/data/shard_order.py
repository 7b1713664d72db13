"""The order in which recordings in shards are read: a function of (seed, epoch)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from stable_audio_tools.data.sample import SampleKey
from stable_audio_tools.runtime.seeds import derive_seed
from stable_audio_tools.schema.dataset import WebDataset


class ShardOrder:
    """The order of recordings in shards: shard by shard, then mixed in a buffer.

    The buffer holds as many recordings as it may; one that is drawn leaves it for the next one of the shards.
    All of it is a function of (seed, epoch).

    Args:
        shard_rows: the rows of each shard.
        seed: of the order.
        num_samples: draw shards until there are so many; None is an epoch of each recording once.
        buffer: recordings in the buffer; 0 keeps the order of the shards.
    """

    def __init__(
        self, shard_rows: Sequence[range], *, seed: int, num_samples: int | None, buffer: int
    ) -> None:
        self.shard_rows = list(shard_rows)
        self.seed = seed
        self.buffer = buffer
        self.resampled = num_samples is not None
        self.num_samples = sum(map(len, shard_rows)) if num_samples is None else num_samples

    @classmethod
    def asked_for(
        cls, config: WebDataset, shard_rows: Sequence[range], seed: int, batch_size: int
    ) -> ShardOrder:
        """The order of ``config`` for batches of ``batch_size``, all ranks together."""
        num_samples = config.epoch_steps * batch_size if config.resampled_shards else None
        return cls(shard_rows, seed=seed, num_samples=num_samples, buffer=config.shuffle_buffer)

    def __call__(self, epoch: int) -> Iterator[SampleKey]:
        draws = random.Random(derive_seed("shards", self.seed, epoch))
        keys = self._drawn(epoch, draws) if self.resampled else self._in_turn(epoch, draws)
        return _mixed(keys, self.buffer, random.Random(derive_seed("shuffle", self.seed, epoch)))

    def _in_turn(self, epoch: int, draws: random.Random) -> Iterator[SampleKey]:
        for rows in draws.sample(self.shard_rows, len(self.shard_rows)):
            yield from (SampleKey(row, epoch) for row in rows)

    def _drawn(self, epoch: int, draws: random.Random) -> Iterator[SampleKey]:
        """A shard that is drawn again in an epoch gives other crops: the key counts its visits."""
        visits = [0] * len(self.shard_rows)
        left = self.num_samples
        while left > 0:
            number = draws.randrange(len(self.shard_rows))
            rows = self.shard_rows[number][:left]
            yield from (SampleKey(row, (epoch << 20) + visits[number]) for row in rows)
            visits[number] += 1
            left -= len(rows)


def _mixed(keys: Iterator[SampleKey], buffer: int, draws: random.Random) -> Iterator[SampleKey]:
    held: list[SampleKey] = []
    for key in keys:
        if len(held) < buffer:
            held.append(key)
            continue
        if not held:
            yield key
            continue
        place = draws.randrange(len(held))
        yield held[place]
        held[place] = key
    draws.shuffle(held)
    yield from held
