from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import photographs, rgb_config

from simtrail.data.sources import image_files
from simtrail.downstream import embedding
from simtrail.downstream.embedding import embed_files
from simtrail.errors import InputError
from simtrail.model.encoder import Encoder

ORIGIN = {"model": "models:/moths@champion", "version": "3", "encoder_sha256": "abc"}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(rgb_config({"pretrain.encoder.model": "test_resnet"})).eval()


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """36 photographs, two of them damaged, in batches of 4 and parts of 8."""
    monkeypatch.setattr(embedding, "BATCH", 4)
    monkeypatch.setattr(embedding, "PART", 2)
    photographs(tmp_path / "photos")
    for name in ("class0/3.png", "class2/11.png"):
        (tmp_path / "photos" / name).write_bytes(b"damaged")
    return image_files(tmp_path / "photos")


def good(sources) -> list[str]:
    return [source.name for source in sources if source.path.stat().st_size > 7]


def test_every_format_has_the_features_of_all_readable_files_and_their_origin(encoder, sources, tmp_path):
    paths = good(sources)
    expected = encoder.embed(paths).to_numpy()
    for name in ("a.parquet", "b.npy", "c.csv", "d"):
        rejected = embed_files(encoder, sources, tmp_path / name, ORIGIN)
        assert len(rejected) == 2
        assert pd.read_csv(tmp_path / f"{name[0]}.rejected.csv").to_dict() == rejected.to_dict()
        assert not (tmp_path / f"{name}.parts").exists()
    table = pd.read_parquet(tmp_path / "a.parquet")
    metadata = json.loads(pq.read_schema(tmp_path / "a.parquet").metadata[b"simtrail"])
    beside = [json.loads((tmp_path / name).read_text()) for name in ("b.npy.json", "c.csv.json", "d/about.json")]
    for about in [metadata, *beside]:
        assert about.items() >= ORIGIN.items()
        assert json.loads(about["recipe"])["size"] == 32
    text = pd.read_csv(tmp_path / "c.csv")
    projector = np.loadtxt(tmp_path / "d/tensors.tsv", delimiter="\t", ndmin=2)
    results = {
        "parquet": (table["path"], np.stack(table["vector"])),
        "npy": (pd.read_csv(tmp_path / "b.paths.csv")["path"], np.load(tmp_path / "b.npy")),
        "csv": (text["path"], text.drop(columns="path").to_numpy()),
        "projector": ((tmp_path / "d/metadata.tsv").read_text().splitlines(), projector),
    }
    for found, features in results.values():
        assert list(found) == paths
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-6)


def test_a_killed_run_goes_on_and_gives_the_same_bytes(encoder, sources, tmp_path, monkeypatch):
    embed_files(encoder, sources, tmp_path / "whole.parquet", ORIGIN)
    stream, read = Encoder.stream, []

    def killed(self, items, *rest):
        read.append(len(items))
        yield from islice(stream(self, items, *rest), 19)
        raise KeyboardInterrupt

    monkeypatch.setattr(Encoder, "stream", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            embed_files(encoder, sources, tmp_path / "again.parquet", ORIGIN)
    assert not (tmp_path / "again.parquet").exists()
    assert read == [36, 20]  # 19 of 36, of which the parts of 8 are kept
    monkeypatch.setattr(Encoder, "stream", stream)
    embed_files(encoder, sources, tmp_path / "again.parquet", ORIGIN)
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert (tmp_path / "again.rejected.csv").read_bytes() == (tmp_path / "whole.rejected.csv").read_bytes()


def test_parts_of_another_encoder_or_of_other_files_are_not_used(encoder, sources, tmp_path, monkeypatch):
    def killed(self, items, *rest):
        yield from (np.full(encoder.width, 7, np.float32) for _ in range(9))
        raise KeyboardInterrupt

    stream = Encoder.stream
    for changes in ({"origin": {**ORIGIN, "encoder_sha256": "other"}}, {"sources": sources[1:]}):
        monkeypatch.setattr(Encoder, "stream", killed)
        job = {"sources": sources, "origin": ORIGIN}
        with pytest.raises(KeyboardInterrupt):
            embed_files(encoder, out=tmp_path / "a.parquet", **job)
        monkeypatch.setattr(Encoder, "stream", stream)
        embed_files(encoder, out=tmp_path / "a.parquet", **{**job, **changes})
        vectors = np.stack(pd.read_parquet(tmp_path / "a.parquet")["vector"])
        assert not (vectors == 7).all(1).any()


def test_strict_stops_at_the_first_bad_file_and_a_good_run_removes_the_old_list(encoder, sources, tmp_path):
    with pytest.raises(InputError, match=r"3\.png: .*; without --strict, such files are listed and left out"):
        embed_files(encoder, sources, tmp_path / "a.npy", ORIGIN, strict=True)
    assert not (tmp_path / "a.npy").exists()
    embed_files(encoder, sources, tmp_path / "a.npy", ORIGIN)
    assert (tmp_path / "a.rejected.csv").exists()
    with pytest.raises(InputError, match=r"3\.png: .*; without --strict"):  # also where nothing is left to do
        embed_files(encoder, sources, tmp_path / "a.npy", ORIGIN, strict=True)
    embed_files(encoder, sources[:2], tmp_path / "a.npy", ORIGIN, strict=True)
    assert not (tmp_path / "a.rejected.csv").exists()
    with pytest.raises(InputError, match=r"a\.h5: must end in \.parquet, \.npy or \.csv"):
        embed_files(encoder, sources, tmp_path / "a.h5", ORIGIN)
    with pytest.raises(InputError, match="no such folder"):
        embed_files(encoder, sources, tmp_path / "none/a.npy", ORIGIN)


def test_nothing_but_bad_files_is_an_error_with_the_reasons_and_leaves_nothing(encoder, sources, tmp_path):
    bad = [source for source in sources if source.name not in good(sources)]
    with pytest.raises(InputError, match=r"none of 2 files can be used, such as .*3\.png: .*; .*11\.png: "):
        embed_files(encoder, bad, tmp_path / "a.parquet", ORIGIN)
    assert not list(tmp_path.glob("a*"))
