"""Each kind of source yields the documents that were put into it, or says what is wrong with them."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import document
from data_prep.collect import collect
from data_prep.files import InputError
from data_prep.sources import Hub, Jsonl, Parquet, Source, Text

ROWS = [{"key": f"k{number}", "body": f"Text {number} with ünïcode.\n"} for number in range(5)]


def texts(source: Source) -> list[str]:
    return [text for _, text in source.documents(1, {})]


def test_text_files_are_documents_named_by_their_path_below_the_pattern(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one.txt").write_bytes(b"1\r\n")
    (tmp_path / "a" / "b" / "two.txt").write_text("\ufefftwo")
    with gzip.open(tmp_path / "a" / "b" / "three.txt.gz", "wt") as stream:
        stream.write("three")
    found = dict(Text(files=[f"{tmp_path}/a/**/*.txt*"]).documents(1, {}))
    assert found == {"one.txt": "1\r\n", "b/two.txt": "two", "b/three.txt.gz": "three"}


def test_text_is_divided_at_a_separator_and_ids_do_not_move_when_text_is_put_before(tmp_path):
    file = tmp_path / "x.txt"
    file.write_text("one|two|three")
    source = Text(files=[str(file)], separator="|")
    before = {text: id for id, text in source.documents(1, {})}
    assert list(before) == ["one", "two", "three"]
    file.write_text("zero|one|two|three")
    after = {text: id for id, text in source.documents(1, {})}
    assert {text: after[text] for text in before} == before


@pytest.mark.parametrize("separator", [None, "\n\n"])
def test_a_text_of_any_size_is_cut_at_line_ends_and_nothing_is_lost(tmp_path, monkeypatch, separator):
    monkeypatch.setattr("data_prep.sources.CHUNK_BYTES", 97)  # Odd, so that characters lie across chunks.
    content = "".join(f"línea {number} ✓\n" for number in range(400))
    (tmp_path / "x.txt").write_text(content)
    pieces = texts(Text(files=[f"{tmp_path}/*.txt"], document_characters=500, separator=separator))
    assert "".join(pieces) == content
    assert len(pieces) > 5
    assert all(len(piece) <= 500 and piece.endswith("\n") for piece in pieces)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_jsonl_takes_the_columns_that_are_named(tmp_path, suffix):
    content = "".join(json.dumps(row) + "\n" for row in ROWS) + "\n"
    file = tmp_path / f"rows.{suffix}"
    file.write_bytes(gzip.compress(content.encode()) if suffix.endswith("gz") else content.encode())
    source = Jsonl(files=[str(file)], text_column="body", id_column="key")
    assert list(source.documents(1, {})) == [(row["key"], row["body"]) for row in ROWS]


def test_parquet_takes_the_columns_that_are_named(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    source = Parquet(files=[f"{tmp_path}/*.parquet"], text_column="body", id_column="key")
    assert list(source.documents(1, {})) == [(row["key"], row["body"]) for row in ROWS]
    with pytest.raises(InputError, match="no column 'text', only key, body"):
        texts(Parquet(files=[f"{tmp_path}/*.parquet"]))


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_hub_reads_what_datasets_can_load(tmp_path, kind):
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "train.parquet")
    else:
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    source = Hub(name=str(tmp_path), text_column="body", id_column="key")
    assert list(source.documents(1, {})) == [(row["key"], row["body"]) for row in ROWS]
    assert len(source.inputs()) == 1


def test_a_hub_out_of_reach_is_one_sentence(monkeypatch):
    import datasets

    def unreachable(*arguments, **options):
        raise ConnectionError("Couldn't reach 'some/name' on the Hub (ConnectionError)\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match=r"'some/name' cannot be read \(Couldn't reach .* local copy") as error:
        texts(Hub(name="some/name"))
    assert "\n" not in str(error.value)


def test_collected_documents_open_with_datasets(tmp_path):
    import datasets

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    source = Jsonl(files=[str(tmp_path / "rows.jsonl")], text_column="body", id_column="key")
    collect("mine", source, 1, tmp_path / "out")
    rows = datasets.load_dataset(
        "parquet", data_dir=str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "c")
    )
    assert [dict(row) for row in rows] == [{"id": r["key"], "text": r["body"], "source": "mine"} for r in ROWS]


def test_collect_leaves_out_empty_texts_stops_at_the_limit_and_mends_lone_surrogates(tmp_path):
    lines = ['{"text": "  "}', '{"text": null}', '{"text": "a \\ud800 b"}', '{"text": "two"}', '{"text": "three"}']
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    record = collect("mine", Jsonl(files=[str(tmp_path / "rows.jsonl")], limit=2), 1, tmp_path / "out")
    assert (record["documents"], record["empty"]) == (2, 2)
    found = [text for batch in document.read(tmp_path / "out", "mine") for text in batch.column("text").to_pylist()]
    assert found == ["a \ufffd b", "two"]


def test_parquet_is_written_a_row_group_at_a_time_and_the_fingerprint_does_not_know(tmp_path, monkeypatch):
    (tmp_path / "x.txt").write_text("".join(f"document {number}|" for number in range(1000)))
    source = Text(files=[f"{tmp_path}/x.txt"], separator="|")
    whole = collect("x", source, 1, tmp_path / "whole")
    monkeypatch.setattr("data_prep.document.ROW_GROUP_BYTES", 2000)
    monkeypatch.setattr("data_prep.document.FILE_BYTES", 3000)
    monkeypatch.setattr("data_prep.collect.BATCH_CHARACTERS", 300)
    parts = collect("x", source, 1, tmp_path / "parts")
    assert len(document.files(tmp_path / "parts", "x")) > 2
    assert pq.ParquetFile(document.files(tmp_path / "parts", "x")[0]).num_row_groups == 2
    assert parts == whole
    for k in (0, 500, 999):
        assert document.read_one(tmp_path / "parts", "x", k) == document.read_one(tmp_path / "whole", "x", k)
    assert document.read_one(tmp_path / "parts", "x", 1000) is None
    ids = [id for batch in document.read(tmp_path / "whole", "x") for id in batch.column("id").to_pylist()]
    wanted = {0, 3, 500, 999, 1000}
    assert document.read_ids(tmp_path / "parts", "x", wanted) == {k: ids[k] for k in wanted - {1000}}
    assert [document.find_id(tmp_path / "parts", "x", ids[k]) for k in (0, 500, 999)] == [0, 500, 999]
    assert document.find_id(tmp_path / "parts", "x", "no such id") is None


@pytest.mark.parametrize("chunk_bytes", [4, 2**20])
def test_text_that_is_not_utf8_is_named_with_file_byte_and_choice(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr("data_prep.sources.CHUNK_BYTES", chunk_bytes)
    (tmp_path / "menu.txt").write_bytes("naïve ".encode() + b"caf\xe9 au lait")
    files = [f"{tmp_path}/*.txt"]
    with pytest.raises(InputError, match=r"menu.txt is not utf-8: byte 10 is 0xe9 .*latin-1.*errors: replace"):
        texts(Text(files=files))
    assert texts(Text(files=files, errors="replace")) == ["naïve caf\ufffd au lait"]
    assert texts(Text(files=files, encoding="latin-1")) == ["naÃ¯ve café au lait"]
    with pytest.raises(InputError, match="no encoding 'utf-9'"):
        texts(Text(files=files, encoding="utf-9"))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ('{"body": "x"}', "line 2 has no field 'text', only body"),
        ('{"text": 5}', "line 2 holds int in 'text', not text"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(tmp_path, line, sentence):
    (tmp_path / "rows.jsonl").write_text('{"text": "fine"}\n' + line)
    with pytest.raises(InputError, match=sentence):
        texts(Jsonl(files=[f"{tmp_path}/rows.jsonl"]))


def test_nothing_to_read_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="No file matches"):
        Text(files=[f"{tmp_path}/*.txt"]).inputs()
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(InputError, match="'mine' has no document with text"):
        collect("mine", Text(files=[f"{tmp_path}/*.txt"]), 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"x" * 1000)[:-9])
    with pytest.raises(InputError, match="cut.txt.gz is not a whole gzip file"):
        texts(Text(files=[f"{tmp_path}/cut.txt.gz"]))
    (tmp_path / "fake.parquet").write_bytes(b"no")
    with pytest.raises(InputError, match="fake.parquet is not a Parquet file"):
        texts(Parquet(files=[f"{tmp_path}/fake.parquet"]))
