"""A base with packed weights: what is plain is merged, and what is packed is carried and not judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fake_checkpoints import write_fake
from xmerge.checkpoints import read_checkpoint

UP = "model.layers.{}.mlp.up_proj.{}"
RECIPE = """\
merge_method: slerp
base_model: base
models: [{model: base}, {model: donor}]
parameters: {t: [{filter: self_attn, value: 0.5}]}
"""


@pytest.fixture
def packed(tmp_path: Path, monkeypatch) -> Path:
    """A folder with a base whose every other layer is packed, filled with numbers, and a plain donor."""
    extra = {UP.format(n, "weight"): ("F8_E4M3", (12, 8)) for n in (0, 2)}
    extra |= {UP.format(n, "weight_scale_inv"): ("F32", (1, 1)) for n in (0, 2)}
    write_fake(tmp_path / "base", extra=extra, quantization_config={"quant_method": "fp8"})
    write_fake(tmp_path / "donor")
    for stored in read_checkpoint(tmp_path / "base", "base").tensors.values():
        if stored.name in extra:
            with (tmp_path / "base" / stored.file).open("r+b") as file:
                file.seek(stored.offset)
                # No byte above 0x6f, so that none of it is NaN in any dtype.
                file.write(bytes((17 * number + 5) % 0x70 for number in range(stored.nbytes)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_packed(folder: Path) -> dict[str, bytes]:
    """The bytes of everything that is packed, by name."""
    found = {}
    for stored in read_checkpoint(folder, "model").tensors.values():
        if "up_proj" in stored.name and stored.name.split(".")[2] in ("0", "2"):
            found[stored.name] = (folder / stored.file).read_bytes()[stored.offset :][: stored.nbytes]
    return found


@pytest.mark.parametrize("dtype", ["", "dtype: float32\n"])
def test_packed_weights_of_the_base_are_carried_byte_for_byte(packed, xmerge, dtype):
    """Weights, scales and the word of config.json stay together, in whatever dtype the rest is written."""
    (packed / "recipe.yml").write_text(RECIPE + dtype, encoding="utf-8")
    said = xmerge("merge", "recipe.yml", "out", "--direct")
    assert said.exit_code == 0, said.err
    assert read_packed(packed / "out") == read_packed(packed / "base")
    assert '"quant_method": "fp8"' in (packed / "out" / "config.json").read_text(encoding="utf-8")
    assert "its weights are packed (FP8), and only the program that packed them reads them" in said.out


def test_a_packed_checkpoint_is_verified_as_far_as_it_is_plain(packed, xmerge):
    """Against a base everything is compared; alone, the names of what is packed are not judged, and that is said."""
    said = xmerge("verify", "base")
    assert said.exit_code == 0, said
    assert "FP8: names are not judged" in said.out
    assert xmerge("verify", "base", "--base", "base").exit_code == 0
    told = xmerge("verify", "donor", "--base", "base")
    assert told.exit_code == 4
    assert f"'{UP.format(0, 'weight_scale_inv')}' is missing" in told.out + told.err
