"""Signatures beside datatrove's, in one process, on real text. By hand: `pytest -m benchmark`."""

import re
import time

import pyarrow as pa
import pytest

from data_prep.minhash import MinhashConfig, band_keys


@pytest.mark.benchmark
@pytest.mark.parametrize(("bands", "rows"), [(14, 8), (20, 6)])
def test_signatures_are_20_times_as_fast_as_those_of_datatrove(real_text, tmp_path, bands, rows):
    theirs = pytest.importorskip("datatrove.pipeline.dedup.minhash", reason="datatrove is not installed")
    from datatrove.data import Document

    texts = re.split(r"\n(?== )", real_text("lm/wiki_vital_en.train.txt.gz"))[:4000]
    batch, config = pa.record_batch({"text": texts}), MinhashConfig(bands=bands, rows=rows)
    documents = [Document(text=text, id=str(k)) for k, text in enumerate(texts)]
    step = theirs.MinhashDedupSignature(str(tmp_path), theirs.MinhashConfig(num_buckets=bands, hashes_per_bucket=rows))
    works = {
        "ours": lambda: band_keys(batch, config),
        "datatrove": lambda: step.run(iter(documents)),
    }
    band_keys(batch.slice(0, 100), config)
    step.run(iter(documents[:100]))
    seconds: dict[str, float] = dict.fromkeys(works, float("inf"))
    for _ in range(2):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    size = sum(len(text.encode()) for text in texts) / 1e6
    print({name: f"{size / spent:.2f} MB/s" for name, spent in seconds.items()})
    assert seconds["datatrove"] > 20 * seconds["ours"]
