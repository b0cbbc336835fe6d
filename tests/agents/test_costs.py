"""What a team's rows cost: the model of each role has a price of its own."""

from __future__ import annotations

from pathlib import Path

from matrix.data.journal import Journal
from matrix.data.sorting import read_rows
from matrix.pipelines.metrics import summarise
from matrix.run.progress import Counts
from matrix.run.session import Served
from matrix.run.workload import Workload
from matrix.spec import Price, RunSpec
from tests.agents.small_teams import team_file, team_spec, work
from tests.fake_engine import FakeEngine

CODE = """
async def writer(state, tools):
    return await tools.llm([{"role": "user", "content": "write"}])

async def judge(state, tools):
    return await tools.llm([{"role": "user", "content": "judge"}])
"""


async def test_each_role_has_its_own_model_s_price(tmp_path: Path) -> None:
    cheap, dear = {"output_per_million": 1.0}, {"input_per_million": 0.0, "output_per_million": 100.0}
    plain = team_spec(
        team_file(tmp_path, CODE), order=["writer", "judge"], repeat=False, price=cheap,
        roles={"judge": {"app": "big"}},
    ).model_dump()  # fmt: skip
    big = {"engine": plain["engine"], "model": {**plain["model"], "name": "big-model", "price": dear}}
    spec = RunSpec.model_validate({**plain, "apps": {"big": big}})
    assert spec.role_prices == {"writer": Price(**cheap), "judge": Price(**dear)}
    counts = Counts()
    with Journal(tmp_path / "rows", "driver") as journal:
        async with FakeEngine() as small, FakeEngine() as large:
            served = {spec.main_app: Served([small.url], None, 0, 0), "big": Served([large.url], None, 0, 0)}
            workload = Workload(spec, served, journal.append, run_dir=tmp_path, writer="driver", actors={})
            async with workload:
                await workload.pipeline.run(iter(work({"q": 1}, {"q": 2})))
            assert [request["model"] for request in large.requests] == ["big-model", "big-model"]
            assert len(small.requests) == 2
    rows = list(read_rows(tmp_path / "rows"))
    tokens = [int(row.history[0].calls[0].usage["completion_tokens"]) for row in rows]
    assert [row.cost_usd for row in rows] == [count * 101e-6 for count in tokens]
    for row in rows:
        counts.add(row)
    assert counts.usd(spec.model.price) == sum(row.cost_usd for row in rows)
    summary = summarise(rows, []).to_dict(spec.role_prices)
    assert summary["agents"]["judge"]["cost_usd"] == round(sum(tokens) * 1e-4, 6)
    assert summary["agents"]["writer"]["cost_usd"] == round(sum(tokens) * 1e-6, 6)
