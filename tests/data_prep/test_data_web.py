"""Web pages and translated catalogues, against files written here from the formats' definitions."""

import gzip
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from data_prep import document, parallel, web_sources
from data_prep.catalogues import catalogue
from data_prep.cli import main
from data_prep.collect import collect
from data_prep.extraction import Extractor, decoded
from data_prep.files import InputError
from data_prep.pair_sources import Gettext
from data_prep.sources import Source
from data_prep.web_sources import Html, Warc

PARAGRAPHS = [
    f"In chapter {number} the harbour pilots of the island describe how they read the tides, the wind and the colour of "
    f"the water before they bring a ship of {number * 100} tons past the reef."
    for number in range(1, 6)
]


def page(number: int, charset: str = "") -> str:
    body = "".join(f"<p>{paragraph} Über {number}.</p>\n" for paragraph in PARAGRAPHS)
    return (
        f"<!DOCTYPE html><html><head>{charset}<title>Page {number}</title><script>var hidden = 1;</script></head>"
        "<body><nav><ul><li><a href='/'>Home</a></li><li><a href='/login'>Log in</a></li></ul></nav>"
        f"<article><h1>Harbour pilots, part {number}</h1>\n{body}</article>"
        "<footer>Copyright, all rights reserved</footer></body></html>"
    )


def rows_of(source: Source, folder: Path) -> list[tuple[str, ...]]:
    collect("x", source, 1, folder)
    return [
        tuple(row[name] for name in ("id", *document.sides(batch)))
        for batch in document.read(folder, "x")
        for row in batch.to_pylist()
    ]


def record(kind: str, url: str, content: bytes, content_type: str) -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2026-01-01T00:00:00Z\r\n"
    head += f"WARC-Record-ID: <urn:uuid:0>\r\nContent-Type: {content_type}\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content + b"\r\n\r\n"


def response(url: str, body: bytes, kind: str = "text/html", status: str = "200 OK", more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    return record("response", url, head.encode() + body, "application/http; msgtype=response")


def crawl() -> list[bytes]:
    return [
        record("warcinfo", "", b"software: by hand\r\n", "application/warc-fields"),
        record("request", "http://x/1", b"GET / HTTP/1.1\r\n\r\n", "application/http; msgtype=request"),
        response("http://x/1", page(1).encode(), "text/html; charset=UTF-8"),
        response("http://x/2", page(2).encode("latin-1"), "text/html; charset=ISO-8859-1"),
        response("http://x/3", page(3, "<meta charset='cp1252'>").encode("cp1252")),
        response("http://x/4", gzip.compress(page(4).encode()), more="Content-Encoding: gzip\r\n"),
        response("http://x/missing", page(5).encode(), status="404 Not Found"),
        response("http://x/picture", b"\x89PNG", "image/png"),
        response("http://x/empty", b"<html><body></body></html>"),
        response("http://x/huge", page(6).encode() + b" " * 20_000),
        record("conversion", "http://x/wet", "Plain text of a page, ü.\n".encode(), "text/plain"),
    ]


@pytest.mark.parametrize("suffix", ["warc", "warc.gz", "warc.zst"])
def test_a_crawl_gives_its_pages_by_url_and_counts_the_rest(tmp_path, suffix):
    file = tmp_path / f"x.{suffix}"
    compress = {"warc": bytes, "warc.gz": gzip.compress, "warc.zst": lambda part: zstd(part)}[suffix]
    file.write_bytes(b"".join(map(compress, crawl())))  # Each record a member of its own, as crawlers write them.
    source = Warc(files=[str(file)], page_bytes=15_000)
    origin = collect("x", source, 1, tmp_path / "out")
    counts = {name: origin[name] for name in ("documents", *Warc.counts)}
    assert counts == {
        "documents": 5,
        "responses": 9,
        "not_ok": 1,
        "not_html": 1,
        "too_large": 1,
        "without_text": 1,
    }
    found = dict(rows_of(source, tmp_path / "rows"))
    assert list(found) == [*(f"http://x/{number}" for number in range(1, 5)), "http://x/wet"]
    assert found["http://x/wet"] == "Plain text of a page, ü.\n"
    for number in range(1, 5):
        text = found[f"http://x/{number}"]
        assert all(f"{paragraph} Über {number}." in text for paragraph in PARAGRAPHS)
        assert not any(word in text for word in ("Log in", "hidden", "rights reserved", "<p>"))


def zstd(content: bytes) -> bytes:
    compressed = pa.Codec("zstd").compress(content, asbytes=True)
    assert isinstance(compressed, bytes)
    return compressed


@pytest.mark.slow
def test_pages_in_other_processes_give_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "FEW_TASKS", 2)
    monkeypatch.setattr(web_sources, "PAGE_TASK_BYTES", 5_000)
    for part in range(2):
        content = [response(f"http://x/{part}/{number}", page(number).encode()) for number in range(12)]
        (tmp_path / f"{part}.warc.gz").write_bytes(b"".join(map(gzip.compress, [*crawl(), *content])))
    records, contents = [], []
    for workers in (1, 2):
        records.append(collect("x", Warc(files=[f"{tmp_path}/*.warc.gz"]), workers, tmp_path / f"out{workers}"))
        contents.append([path.read_bytes() for path in sorted((tmp_path / f"out{workers}").iterdir())])
    assert records[0] == records[1]
    assert contents[0] == contents[1]
    assert records[0]["documents"] == 2 * (12 + 6)


def test_a_damaged_or_foreign_warc_is_one_sentence(tmp_path):
    file = tmp_path / "x.warc.gz"
    file.write_bytes(b"".join(map(gzip.compress, crawl()))[:-20])
    with pytest.raises(InputError, match="x.warc.gz is not a whole gzip file"):
        collect("x", Warc(files=[str(file)]), 1, tmp_path / "out")
    (tmp_path / "y.warc").write_text("This is no crawl at all.\n" * 20)
    with pytest.raises(InputError, match="y.warc is not a WARC file"):
        collect("x", Warc(files=[f"{tmp_path}/y.warc"]), 1, tmp_path / "out")
    for lost in (10, 200):
        (tmp_path / "z.warc").write_bytes(b"".join(crawl())[:-lost])
        with pytest.raises(InputError, match="z.warc is not a whole WARC file"):
            collect("x", Warc(files=[f"{tmp_path}/z.warc"]), 1, tmp_path / "out")


def test_a_limit_counts_what_was_read_up_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(web_sources, "PAGE_TASK_BYTES", 1)  # A task a page.
    content = [response("http://x/picture", b"\x89PNG", "image/png"), response("http://x/0", page(0).encode())]
    content += [response(f"http://x/{number}", page(number).encode()) for number in range(1, 9)]
    (tmp_path / "x.warc").write_bytes(b"".join(content))
    origin = collect("x", Warc(files=[f"{tmp_path}/x.warc"], limit=3), 1, tmp_path / "out")
    assert (origin["documents"], origin["responses"], origin["not_html"]) == (3, 4, 1)


def test_html_files_are_documents_and_pages_without_text_are_counted(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "one.html").write_text(page(1))
    (tmp_path / "in" / "deep" / "two.html.gz").write_bytes(gzip.compress(page(2).encode()))
    (tmp_path / "in" / "menu.html").write_text("<html><head><title>Menu</title></head><body><nav></nav></body></html>")
    (tmp_path / "in" / "empty.html").write_text("")
    (tmp_path / "in" / "large.html").write_text(page(3) + " " * 20_000)
    source = Html(files=[f"{tmp_path}/in/**/*.html*"], page_bytes=15_000)
    origin = collect("x", source, 1, tmp_path / "out")
    assert {name: origin[name] for name in ("documents", *Html.counts)} == {
        "documents": 2,
        "too_large": 1,
        "without_text": 2,
    }
    assert {id for id, _ in rows_of(source, tmp_path / "rows")} == {"one.html", "deep/two.html.gz"}
    assert "trafilatura" in source.inputs()


def test_the_setting_for_tables_keeps_them_or_not():
    table = "<table><tr><th>Port</th><th>Depth</th></tr><tr><td>Ilha</td><td>14 metres</td></tr></table>"
    content = page(1).replace("</article>", f"{table}</article>").encode()
    texts = {tables: Extractor("balanced", tables).text(content) for tables in (True, False)}
    assert "14 metres" in texts[True]
    assert "14 metres" not in texts[False]
    assert all(PARAGRAPHS[0] in text for text in texts.values())


@pytest.mark.parametrize(
    ("content", "charset", "expected"),
    [
        ("ü€".encode(), "latin-1", "ü€"),  # What is UTF-8 is read as that, whatever is said about it.
        ("ü€".encode("cp1252"), "iso-8859-1", "ü€"),
        ("ü€".encode("cp1252"), None, "ü€"),
        ("żółw".encode("iso8859-2"), "ISO-8859-2", "żółw"),
        ("かな".encode("shift_jis"), "shift_jis", "かな"),
        (b"<meta charset=koi8-r>" + "мир".encode("koi8-r"), None, "<meta charset=koi8-r>мир"),
        (b"<meta http-equiv=x content='text/html; charset=koi8-r'>" + "мир".encode("koi8-r"), "no-such",
         "<meta http-equiv=x content='text/html; charset=koi8-r'>мир"),
        ("ü" * 30 + "\ufffd", None, "ü" * 30 + "\ufffd"),
        (("ü" * 30).encode() + b"\xff", None, "ü" * 30 + "\ufffd"),
    ],
)  # fmt: skip
def test_pages_are_decoded_as_browsers_decode_them(content, charset, expected):
    assert decoded(content if isinstance(content, bytes) else content.encode(), charset) == expected


CATALOGUE = r"""
# Translators' comment
msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\n"
"Plural-Forms: nplurals=2; plural=(n > 1);\n"

#: file.py:1
msgid "Plain \"quoted\"\ttext\\n"
msgstr "Texte \"cité\"\tsimple\\n"

msgid ""
"over several\n"
"lines"
msgstr ""
"sur plusieurs\n"
"lignes"
msgctxt "menu"
msgid "Open"
msgstr "Ouvrir"

#, python-format
msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d fichier"
msgstr[1] "%d fichiers"

#, fuzzy, python-format
#| msgid "older"
msgid "unsure"
msgstr "incertain"

msgid "untranslated"
msgstr ""

#~ msgid "obsolete"
#~ msgstr "vieux"
"""
PAIRS = [
    ('Plain "quoted"\ttext\\n', 'Texte "cité"\tsimple\\n'),
    ("over several\nlines", "sur plusieurs\nlignes"),
    ("Open", "Ouvrir"),
    ("%d file", "%d fichier"),
    ("%d files", "%d fichiers"),
]


def test_a_catalogue_gives_its_pairs_and_counts_what_it_leaves_out(tmp_path):
    (tmp_path / "fr.po").write_text(CATALOGUE)
    source = Gettext(files=[f"{tmp_path}/*.po"])
    assert [pair for _, *pair in rows_of(source, tmp_path / "out")] == [list(pair) for pair in PAIRS]
    origin = collect("x", source, 1, tmp_path / "counted")
    assert {name: origin[name] for name in ("documents", *Gettext.counts)} == {
        "documents": 5,
        "untranslated": 1,
        "fuzzy": 1,
    }
    swapped = rows_of(Gettext(files=[f"{tmp_path}/*.po"], swap=True, take_fuzzy=True), tmp_path / "swapped")
    assert ("incertain", "unsure") in [(text, target) for _, text, target in swapped]


def test_catalogues_are_read_as_gnu_gettext_compiles_them(tmp_path):
    """`msgfmt` compiles, Python's `gettext` reads what came out."""
    import gettext
    import shutil

    if shutil.which("msgfmt") is None:
        pytest.skip("GNU gettext is not on this machine")
    (tmp_path / "fr.po").write_text(CATALOGUE)
    subprocess.run(["msgfmt", "-o", tmp_path / "fr.mo", tmp_path / "fr.po"], check=True)
    with open(tmp_path / "fr.mo", "rb") as stream:
        translations = gettext.GNUTranslations(stream)
    for message in catalogue(iter(CATALOGUE.split("\n")), Path("fr.po")):
        for number, (text, target) in enumerate(message.pairs()):
            if message.fuzzy or not target:
                continue
            context = message.parts.get("msgctxt")
            if "msgid_plural" in message.parts:
                assert translations.ngettext("%d file", "%d files", number + 1) == target
            else:
                assert (translations.pgettext(context[0], text) if context else translations.gettext(text)) == target


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('msgid "open', "line 3 is not gettext"),
        ("msgid open", "line 3 is not gettext"),
        ('msgstr "again"', "line 3 is not gettext"),
        ("free text", "line 3 is not gettext"),
    ],
)
def test_a_wrong_line_of_a_catalogue_is_named(tmp_path, line, sentence):
    (tmp_path / "x.po").write_text(f'msgid "a"\nmsgstr "b"\n{line}\n')
    with pytest.raises(InputError, match=sentence):
        collect("x", Gettext(files=[f"{tmp_path}/x.po"]), 1, tmp_path / "out")


def test_a_crawl_goes_through_the_whole_recipe(tmp_path, capsys):
    content = [response(f"http://x/{number}", page(number).encode()) for number in range(40)]
    (tmp_path / "x.warc.gz").write_bytes(b"".join(map(gzip.compress, content)))
    config = {
        "output": str(tmp_path / "out"),
        "sources": {"web": {"class_path": "Warc", "init_args": {"files": [f"{tmp_path}/*.warc.gz"]}}},
        "split": {"validation": 0.2, "test": 0.2},
        "tokenizer": {"vocab_size": 300},
    }
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    assert main(["run", "--config", str(tmp_path / "x.yaml")]) == 0
    assert "40 responses" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "out")]) == 0
