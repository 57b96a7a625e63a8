"""The source of shards: blocks of one shard each, from few blocks that Ray Data holds."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pipeline.dataset.plan import Shard
from pipeline.engine import source
from pipeline.engine.transport import envelope_of

SHARDS = [Shard("000001", number, f"shards/{number // 4}.parquet", number % 4) for number in range(10)]


@pytest.mark.usefixtures("shared_ray")
@pytest.mark.parametrize(("per_block", "held"), [(4, 3), (10, 10)])
def test_each_block_is_one_shard(per_block: int, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a block has two shards, a shard is lost or changed, or Ray Data holds a block for each shard of a large run."""
    monkeypatch.setattr(source, "SHARDS_PER_BLOCK", per_block)
    dataset = source.shard_blocks(SHARDS)
    blocks = [pa.table(block) for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow")]
    found = [envelope_of(block).shard for block in blocks]
    assert sorted(found, key=lambda shard: shard.number) == SHARDS
    (given,) = (operator for operator in dataset._logical_plan.dag.post_order_iter() if operator.name == "FromItems")
    assert len(given.output_data()) == held
    assert source.has_stage(len(SHARDS)) == (held < len(SHARDS))
