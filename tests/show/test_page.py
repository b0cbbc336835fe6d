from __future__ import annotations

import base64
import json
import re
from hashlib import sha256
from pathlib import Path

import pytest

from matrix.errors import DataError
from matrix.show.find import find_run
from matrix.show.page import write_page
from matrix.show.totals import Totals
from tests.show.conversations import HOSTILE, talk, write_run


@pytest.fixture
def html(tmp_path: Path) -> str:
    row = talk(0, said=HOSTILE)
    totals = Totals()
    totals.add(row)
    run = find_run(write_run(tmp_path / "run", row))
    assert write_page(tmp_path / "page.html", run, totals, [row], "a note") == (tmp_path / "page.html").stat().st_size
    assert not list(tmp_path.glob(".*"))
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_data_ends_where_it_should_and_is_whole(html: str) -> None:
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', html, re.DOTALL)
    assert not set("<>&\u2028\u2029") & set(data)
    found = json.loads(data)
    assert found["run"]["note"] == "a note"
    assert found["rows"][0]["turns"][1]["parts"][1]["text"] == HOSTILE


def test_the_policy_names_the_page_s_own_script_and_style_by_their_hashes(html: str) -> None:
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy.startswith("default-src 'none';")
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(sha256(text.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}';" in policy
    assert "unsafe" not in policy


def test_nothing_in_it_comes_from_elsewhere(html: str) -> None:
    without_data = re.sub(r'<script id="data".*?</script>', "", html, flags=re.DOTALL)
    assert "http://" not in without_data
    assert "https://" not in without_data
    assert "innerHTML" not in without_data


def test_a_page_that_can_t_be_written_is_said(tmp_path: Path) -> None:
    run = find_run(write_run(tmp_path / "run", talk(0)))
    with pytest.raises(DataError, match="the page was not written"):
        write_page(tmp_path / "nowhere" / "page.html", run, Totals(), [], "")
